"""`tilewright targets`: the devices that tilewright knows."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer
from rich.table import Table

from tilewright.commands._common import console
from tilewright.errors import TilewrightError
from tilewright.pipeline import resolve_target
from tilewright.schedule.target import load_target, target_names

NAME = "targets"


def command(
    name: Annotated[str | None, typer.Argument(help="show this target's fields")] = None,
) -> None:
    """List targets, or show one in full."""
    if name is not None:
        target = resolve_target(name)
        table = Table(title=target.name, title_justify="left", show_header=False)
        for f in fields(target):
            table.add_row(f.name, str(getattr(target, f.name)).replace("[", r"\["))
        console.print(table)
        return
    try:
        host = resolve_target("host").name
    except TilewrightError:
        host = ""
    table = Table()
    for column in ("target", "description", "vector", "triple"):
        table.add_column(column)
    for known in target_names():
        t = load_target(known)
        label = f"{known} (host)" if known == host else known
        table.add_row(label, t.description, f"{t.vector_bytes * 8} bit", t.triple)
    console.print(table)
