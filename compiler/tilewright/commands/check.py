"""`tilewright check`: everything that keeps a model from compiling for a target, all at once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright import api
from tilewright.artifact.elf import Elf
from tilewright.artifact.symbols import foreign_symbols
from tilewright.codegen.spills import calls
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    Shapes,
    TargetName,
    console,
    escape,
    locate,
    parse_size,
)
from tilewright.core.dtypes import F16, F64, I64
from tilewright.errors import TilewrightError
from tilewright.footprint import shortages
from tilewright.frontend.models import examine_model
from tilewright.pipeline import build, largest, resolve_target, survey
from tilewright.program import Program, spec_of
from tilewright.schedule.target import Target

NAME = "check"


@dataclass(frozen=True, slots=True)
class _Problem:
    """One reason why the model does not compile; `node` is empty where it is the model as a whole."""

    node: str
    operator: str
    reason: str
    advice: str


@dataclass(slots=True)
class _Report:
    """What a check came upon. `unchecked`: nodes (name, operator) behind a problem; `notes`: what works,
    but costs more on this target than it may seem."""

    problems: list[_Problem] = field(default_factory=list[_Problem])
    unchecked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    notes: list[_Problem] = field(default_factory=list[_Problem])


def command(
    model: ModelName,
    target: TargetName = "host",
    shape: ShapeList = None,
    ram: Annotated[
        str | None, typer.Option(help="microcontrollers: RAM for the model, as 96K")
    ] = None,
    flash: Annotated[
        str | None, typer.Option(help="microcontrollers: flash for the model, as 512K or 2M")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List all unsupported nodes with the reason and what to do, then what the target cannot take
    (kernels that cannot be made, memory of a microcontroller, functions that nobody has there); exit
    code 1 if there is anything."""
    machine = resolve_target(target)
    limits = parse_size(flash, "--flash"), parse_size(ram, "--ram")
    if machine.board is None and any(limits):
        raise typer.BadParameter(
            f"--ram and --flash are for microcontrollers, which {machine.name} is not"
        )
    path, shapes = locate(model, shape)
    found = examine_model(path, largest(path, shapes))
    report = _Report(
        [
            _Problem(p.node if p.op_type else "", p.op_type, p.reason, p.hint)
            for p in found.problems
        ],
        list(found.unchecked),
    )
    if not report.problems:
        _on_target(path, machine, shapes, limits, report)
    if as_json:
        print(json.dumps({"model": model, "target": machine.name, **asdict(report)}, indent=1))
    else:
        _print(model, machine, report)
    if report.problems:
        raise typer.Exit(1)


# ---------------------------------------------------------------- what the target cannot take


def _on_target(
    path: Path,
    machine: Target,
    shapes: Shapes,
    limits: tuple[int | None, int | None],
    report: _Report,
) -> None:
    """What shows only when the model is compiled."""
    try:
        program, failures = survey(path, machine, shapes)
        for f in failures:
            advice = f"change these nodes, or report it as a gap of {machine.name}"
            report.problems.append(
                _Problem(", ".join(f.nodes), ", ".join(f.operators), f.reason, advice)
            )
        if program is None:
            return
        report.notes += _costly(program)
        if machine.board is None:
            made = api.generate(program)
        else:
            ram = limits[1] or machine.board.ram_bytes
            program, made = api.generate_fitting(
                program, ram, lambda arena: build(path, machine, shapes, arena=arena)
            )
    except TilewrightError as err:
        reason, _, advice = str(err).partition("; ")
        report.problems.append(_Problem("", "", reason, advice))
        return
    board = machine.board
    if board is None or made.need is None:
        return
    report.problems += _missing_functions(program, made.code)
    available = limits[0] or board.flash_bytes, limits[1] or board.ram_bytes
    for reason, advice in shortages(made.need, *available, board.stack_bytes):
        report.problems.append(_Problem("", "", reason, advice))


def _missing_functions(program: Program, code: bytes) -> list[_Problem]:
    """Functions that kernels call and no library of a bare-metal target has, node by node."""
    foreign = foreign_symbols(Elf(code, program.name), spec_of(program))
    if not foreign:
        return []
    called = calls(api.assembly(program))
    found: list[_Problem] = []
    for i, step in enumerate(program.steps):
        own = called.get(step.kernel, set()) | called.get(f"{program.name}_step{i}", set())
        if needed := sorted(own & foreign):
            reason = f"its code calls {', '.join(needed)}, which {program.target.name} has no library for"
            advice = "use another data type in these nodes"
            found.append(_Problem(", ".join(step.nodes), step.label, reason, advice))
    return found


def _costly(program: Program) -> list[_Problem]:
    """Steps in data types that the target computes with in software."""
    if program.target.board is None:
        return []
    slow = {F64: "64-bit floats", F16: "16-bit floats", I64: "64-bit integers"}
    found: list[_Problem] = []
    types = program.graph.types
    for step in program.steps:
        used = {types[o].dtype for o in step.outputs}
        if names := [text for t, text in slow.items() if t in used]:
            reason = f"it computes with {' and '.join(names)}, which {program.target.name} does in software"
            found.append(
                _Problem(", ".join(step.nodes), step.label, reason, "cast to 32 bits in the model")
            )
    return found


# ---------------------------------------------------------------- for people


def _print(model: str, machine: Target, report: _Report) -> None:
    problems = report.problems
    if not problems:
        console.print(f"{model}: every node is supported, and {machine.name} can take the model")
    else:
        _table(f"{model}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", problems)
    if report.unchecked:
        names = ", ".join(f"{name} ({op})" for name, op in report.unchecked)
        console.print(
            f"{len(report.unchecked)} node{'s' if len(report.unchecked) > 1 else ''} behind these could not be "
            f"checked, the types of their inputs are not known: {escape(names)}"
        )
    if report.notes:
        _table("slow on this target", report.notes)


def _table(title: str, problems: list[_Problem]) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("node", "operator", "reason", "what to do"):
        table.add_column(column, overflow="fold")
    for p in problems:
        table.add_row(*map(escape, (p.node or "(the model)", p.operator, p.reason, p.advice)))
    console.print(table)
