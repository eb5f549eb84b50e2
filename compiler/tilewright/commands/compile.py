"""`tilewright compile`: a model file becomes an artifact directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright import api
from tilewright.codegen.checked import require_checkable
from tilewright.codegen.ptxas import KernelReport
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    StateList,
    TargetName,
    Winograd,
    console,
    escape,
    locate,
    notice,
    parse_size,
    parse_states,
    progress,
    size,
)
from tilewright.footprint import Footprint, require_fit
from tilewright.pipeline import build, resolve_target
from tilewright.program import Program
from tilewright.report import is_default

NAME = "compile"


def command(
    model: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="directory for the artifact")],
    target: TargetName = "host",
    shape: ShapeList = None,
    state: StateList = None,
    name: Annotated[
        str | None, typer.Option(help="C name of the model (default: the file's)")
    ] = None,
    dump_ir: Annotated[
        Path | None, typer.Option(help="directory for the text of every stage")
    ] = None,
    ram: Annotated[
        str | None,
        typer.Option(help="microcontrollers: RAM for the model, as 96K (default: the part's)"),
    ] = None,
    flash: Annotated[
        str | None, typer.Option(help="microcontrollers: flash for the model, as 512K or 2M")
    ] = None,
    selftest: Annotated[
        bool,
        typer.Option(
            "--selftest", help="add NAME_selftest.c, which checks the model on its device"
        ),
    ] = False,
    checked: Annotated[
        bool,
        typer.Option("--checked", help="check every index before an access (slow; for debugging)"),
    ] = False,
    winograd: Winograd = True,
) -> None:
    """Compile a model ahead of time: object, libraries, header, manifest, C example.

    For a microcontroller, prints flash and RAM of every step, and refuses a model that does not fit.
    """
    start = time.perf_counter()
    if name is not None and not (name.isidentifier() and name.isascii()):
        raise typer.BadParameter(f"--name {name} is not a C identifier")
    board = resolve_target(target).board
    limits = parse_size(flash, "--flash"), parse_size(ram, "--ram")
    if board is None and any(limits):
        raise typer.BadParameter(
            f"--ram and --flash are for microcontrollers, which {target} is not"
        )
    path, shapes = locate(model, shape)
    with progress() as report:
        if checked:
            require_checkable(resolve_target(target))
        source, fixed = api.with_states(path, shapes, parse_states(state), notice)
        program = build(source, target, fixed, report, notice, dump_ir, name, winograd=winograd)
        program = program.with_checks() if checked else program
        report("generate code", 0.0)
        generated = api.generate(program)
        if generated.need is not None and board is not None:
            available = limits[0] or board.flash_bytes, limits[1] or board.ram_bytes
            require_fit(generated.need, *available, board.stack_bytes)
        written = api.write(program, output, api.source_hash(path), generated, selftest)
        if dump_ir is not None:
            (dump_ir / "6_assembly.s").write_text(api.assembly(program), encoding="utf-8")
    table = Table(title=f"{program.name} for {program.target.name}", title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    for file, bytes_ in sorted(written.files.items()):
        table.add_row(str(output / file), size(bytes_))
    console.print(table)
    console.print(
        f"{len(program.steps)} steps, {len(program.kernels)} kernels, weights {size(program.weights_bytes)}, "
        f"arena {size(program.arena_bytes)}, compiled in {time.perf_counter() - start:.1f} s"
    )
    _schedules(program)
    if generated.need is not None and board is not None:
        _memory(generated.need, *available)
    if generated.gpu is not None and generated.gpu.reports:
        _kernels(generated.gpu.reports)
    for note in written.notes:
        notice(note)


def _schedules(program: Program) -> None:
    """How many kernels have their schedule from the logs, and which."""
    tuned = {k: r for k, r in program.reasons.items() if not is_default(r)}
    fixed = len(program.kernels) - len(tuned)
    if not tuned:
        console.print(f"schedules: {fixed} by default rules, none from tuning logs")
        return
    console.print(
        f"schedules: {len(tuned)} of {len(program.kernels)} from tuning logs, {fixed} by default rules"
    )
    for kernel, reason in tuned.items():
        console.print(
            f"  {kernel.removeprefix(f'{program.name}_')}: {escape(reason)}", soft_wrap=True
        )


def _kernels(reports: Sequence[KernelReport]) -> None:
    """What ptxas says about every kernel."""
    table = Table(title="kernels", title_justify="left")
    table.add_column("kernel")
    for column in ("blocks", "threads", "registers", "spills", "shared", "occupancy"):
        table.add_column(column, justify="right")
    for r in reports:
        table.add_row(
            r.name, f"{r.blocks}", f"{r.threads}", f"{r.registers}", f"{r.spill_bytes}", f"{r.shared_bytes}",
            f"{r.occupancy:.0%}", style="bold" if r.spill_bytes else None,
        )  # fmt: skip
    console.print(table)
    console.print("spills and shared memory in bytes; never run on a GPU: see docs/gpu.md")


def _memory(need: Footprint, flash: int, ram: int) -> None:
    """Where flash and RAM go, step by step."""
    table = Table(title="memory in bytes", title_justify="left")
    for column in ("step", "first node"):
        table.add_column(column)
    for column in ("code", "weights", "live arena", "stack"):
        table.add_column(column, justify="right")
    peak = need.peak()
    for s in need.steps:
        style = "bold" if s is peak else None
        numbers = map(str, (s.code, s.weights, s.arena, s.stack))
        table.add_row(s.label, escape(s.node), *numbers, style=style)
    console.print(table)
    console.print(
        f"flash {need.flash} of {flash} bytes: code {need.code}, weights {need.weights}\n"
        f"RAM {need.ram} of {ram} bytes: arena {need.arena}, inputs {need.inputs}, outputs "
        f"{need.outputs}, stack {need.stack}"
    )
