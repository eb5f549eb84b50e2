"""`tilewright compile`: a model file becomes an artifact directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright import reuse
from tilewright.artifact import manifest as manifests
from tilewright.artifact.write import Written
from tilewright.cache import Cache
from tilewright.commands._artifact import show_artifact
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    StateList,
    TargetName,
    Winograd,
    locate,
    notice,
    parse_size,
    parse_states,
    progress,
)
from tilewright.frontend.external_data import files_read

if TYPE_CHECKING:
    from tilewright.program import Program

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
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="take and keep what was compiled in the cache on disk"
        ),
    ] = True,
) -> None:
    """Compile a model ahead of time: object, libraries, header, manifest, C example.

    A model that was compiled before comes from the cache. For a microcontroller, prints flash and RAM of
    every step, and refuses a model that does not fit.
    """
    start = time.perf_counter()
    if name is not None and not (name.isidentifier() and name.isascii()):
        raise typer.BadParameter(f"--name {name} is not a C identifier")
    limits = parse_size(flash, "--flash"), parse_size(ram, "--ram")
    path, shapes = locate(model, shape)
    states = parse_states(state)
    options: dict[str, object] = {
        "name": name, "states": states, "limits": limits, "selftest": selftest, "checked": checked,
        "winograd": winograd,
    }  # fmt: skip
    request = reuse.Request(path, target, shapes, options)
    kept = Cache.configured() if cache and dump_ir is None else Cache(None)
    key, found = reuse.find(request, output, kept)
    if found is None:
        said: list[str] = []

        def say(message: str) -> None:
            said.append(message)
            notice(message)

        with files_read() as tensors:
            written, weights = _compile(request, output, states, limits, dump_ir, say)
        reuse.store(key, request, written, weights, said, tensors, kept)
    else:
        written = found.written
        for message in found.notices:
            notice(message)
    how = "compiled" if found is None else "taken from the cache"
    show_artifact(
        manifests.read(output), written, f"{how} in {time.perf_counter() - start:.1f} s",
        _available(target, limits),
    )  # fmt: skip


def _compile(
    request: reuse.Request,
    output: Path,
    states: dict[str, str],
    limits: tuple[int | None, int | None],
    dump_ir: Path | None,
    say: Callable[[str], None],
) -> tuple[Written, bytes]:
    """Compile now: what was written, and the weights in it."""
    from tilewright import api
    from tilewright.codegen.checked import require_checkable
    from tilewright.footprint import require_fit
    from tilewright.pipeline import build, resolve_target

    options = request.options
    machine = resolve_target(request.target)
    if machine.board is None and any(limits):
        raise typer.BadParameter(
            f"--ram and --flash are for microcontrollers, which {request.target} is not"
        )
    if options["checked"]:
        require_checkable(machine)
    name = options["name"] if isinstance(options["name"], str) else None
    with progress() as report:
        source, fixed = api.with_states(request.model, request.shapes, states, say)

        def made(arena: int | None = None) -> Program:
            built = build(
                source, machine, fixed, report, say if arena is None else lambda message: None, dump_ir, name,
                winograd=bool(options["winograd"]), arena=arena,
            )  # fmt: skip
            return built.with_checks() if options["checked"] else built

        program = made()
        report("generate code", 0.0)
        board = machine.board
        if board is None:
            generated = api.generate(program)
        else:
            available = limits[0] or board.flash_bytes, limits[1] or board.ram_bytes
            program, generated = api.generate_fitting(program, available[1], made)
            if generated.need is not None:
                require_fit(generated.need, *available, board.stack_bytes)
            if program.arena_limit is not None:
                say(_in_bands(program))
        digest = api.source_hash(request.model)
        written = api.write(program, output, digest, generated, bool(options["selftest"]))
        if dump_ir is not None:
            (dump_ir / "6_assembly.s").write_text(api.assembly(program), encoding="utf-8")
    return written, program.weights


def _in_bands(program: Program) -> str:
    """What it took to fit into the memory."""
    from tilewright.graph.bands import layer_of

    named = [layer_of(n) for s in program.steps for n in s.nodes]
    layers = {layer for layer, banded in named if banded}
    return (
        f"{len(layers)} layers are computed in bands of rows, some rows twice, to fit into the RAM"
    )


def _available(target: str, limits: tuple[int | None, int | None]) -> tuple[int, int] | None:
    """Flash and RAM of a microcontroller, as given or as the part has them; None for others."""
    if target == "host":
        return None
    from tilewright.schedule.target import load_target

    board = load_target(target).board
    return None if board is None else (limits[0] or board.flash_bytes, limits[1] or board.ram_bytes)
