"""`tilewright check`: everything that keeps a model from compiling, all at once."""

from __future__ import annotations

import typer
from rich.table import Table

from tilewright.commands._common import ModelName, ShapeList, console, locate
from tilewright.frontend.onnx import check_onnx

NAME = "check"


def command(model: ModelName, shape: ShapeList = None) -> None:
    """List all unsupported nodes of a model with the reason and what to do; exit code 1 if any."""
    path, shapes = locate(model, shape)
    problems = check_onnx(path, shapes)
    if not problems:
        console.print(f"{model}: every node is supported")
        return
    table = Table(title=f"{model}: {len(problems)} problems", title_justify="left")
    for column in ("node", "operator", "reason", "what to do"):
        table.add_column(column, overflow="fold")
    for p in problems:
        table.add_row(*(s.replace("[", r"\[") for s in (p.node, p.op_type, p.reason, p.hint)))
    console.print(table)
    raise typer.Exit(1)
