"""`tilewright ops`: operators, their element types, and what of each format is compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.table import Table

from tilewright.commands._common import console, escape
from tilewright.registry import operators

NAME = "ops"

_PAGE = """\
# Table of operators

Written by `tilewright ops --markdown`; a test holds it up to date. How to add one: [operators.md](operators.md).

## Operators

What models are turned into. *Types* are those that the operator's data may have; 16-bit floats and smaller types
are computed in f32 or i8 and stored rounded.
"""


def command(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print docs/operator_table.md")
    ] = False,
    formats: Annotated[
        bool, typer.Option("--formats", help="list the operators of ONNX and TFLite instead")
    ] = False,
) -> None:
    """List operators with element types, or those of each model format with what becomes of them."""
    if markdown:
        print(page(), end="")
    elif formats:
        for title, rows in _formats():
            _print(("operator", title), rows)
    else:
        _print(_COLUMNS, _rows())


_COLUMNS = ("operator", "kind", "types", "ONNX", "meaning")


def _rows() -> list[tuple[str, ...]]:
    from tilewright.catalogue import element_types, shown

    return [
        (op.name, op.trait, shown(element_types(op)), ", ".join(sorted(op.onnx)) or "-", op.doc)
        for op in sorted(operators().values(), key=lambda o: o.name)
    ]


def _formats() -> list[tuple[str, list[tuple[str, ...]]]]:
    from tilewright.frontend.catalogue import onnx_operators, tflite_operators

    return [("ONNX", list(onnx_operators().items())), ("TFLite", list(tflite_operators().items()))]


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def page() -> str:
    """The page of the docs."""
    parts = [_PAGE, _table(_COLUMNS, _rows())]
    for title, rows in _formats():
        parts.append(f"## {title}\n\n{_summary({r[0]: r[1] for r in rows})}\n")
        parts.append(_table((f"{title} operator", "what becomes of it"), rows))
    return "\n".join(parts)


def _summary(rows: Mapping[str, str]) -> str:
    known = Counter("no" if text.startswith("not") else "yes" for text in rows.values())
    return f"{known['yes']} of {len(rows)} operators are imported."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |\n" for row in lines)
