"""`tilewright ops`: the operators that tilewright knows, from the registry."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tilewright.commands._common import console
from tilewright.registry import operators

NAME = "ops"


def command(
    markdown: Annotated[bool, typer.Option("--markdown", help="print a Markdown table")] = False,
) -> None:
    """List operators with the ONNX operators that import to them."""
    rows = [
        (op.name, op.trait, ", ".join(sorted(op.onnx)) or "-", op.doc)
        for op in sorted(operators().values(), key=lambda o: o.name)
    ]
    if markdown:
        print("| operator | kind | ONNX | meaning |\n|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |")
        return
    table = Table()
    for column in ("operator", "kind", "ONNX", "meaning"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(c.replace("[", r"\[") for c in row))
    console.print(table)
