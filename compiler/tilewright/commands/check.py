"""`tilewright check`: everything that keeps a model from compiling for a target, all at once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright import api
from tilewright.commands._common import (
    ModelName,
    ShapeList,
    Shapes,
    TargetName,
    console,
    escape,
    locate,
)
from tilewright.errors import TilewrightError
from tilewright.footprint import require_fit
from tilewright.frontend.onnx import check_onnx
from tilewright.pipeline import build, resolve_target

NAME = "check"


@dataclass(frozen=True, slots=True)
class _Problem:
    """One reason why the model does not compile; `node` is empty where it is the model as a whole."""

    node: str
    operator: str
    reason: str
    advice: str


def command(
    model: ModelName,
    target: TargetName = "host",
    shape: ShapeList = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List all unsupported nodes with the reason and what to do, then what the target cannot take
    (memory of a microcontroller, types without code); exit code 1 if there is anything."""
    path, shapes = locate(model, shape)
    machine = resolve_target(target)
    problems = [_Problem(p.node, p.op_type, p.reason, p.hint) for p in check_onnx(path, shapes)]
    if not problems:
        problems = _on_target(path, target, shapes)
    if as_json:
        rows = [asdict(p) for p in problems]
        print(json.dumps({"model": model, "target": machine.name, "problems": rows}, indent=1))
    elif not problems:
        console.print(f"{model}: every node is supported, and {machine.name} can take the model")
    else:
        _print(model, problems)
    if problems:
        raise typer.Exit(1)


def _on_target(path: Path, target: str, shapes: Shapes) -> list[_Problem]:
    """What shows only when the model is compiled."""
    try:
        program = build(path, target, shapes)
        board = program.target.board
        if board is not None:
            need = api.generate(program).need
            assert need is not None
            require_fit(need, board.flash_bytes, board.ram_bytes, board.stack_bytes)
    except TilewrightError as err:
        reason, _, advice = str(err).partition("; ")
        return [_Problem("", "", reason, advice)]
    return []


def _print(model: str, problems: list[_Problem]) -> None:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    table = Table(title=f"{model}: {count}", title_justify="left")
    for column in ("node", "operator", "reason", "what to do"):
        table.add_column(column, overflow="fold")
    for p in problems:
        table.add_row(*map(escape, (p.node or "(the model)", p.operator, p.reason, p.advice)))
    console.print(table)
