"""`tilewright models`: the model zoo, what is here and what can be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tilewright.bench.zoo import ZooError, ZooModel, cache_dir, fetch, find, suite, zoo, zoo_model
from tilewright.commands._common import console, escape, notice, size

NAME = "models"


def command(
    names: Annotated[list[str] | None, typer.Argument(help="models (default: all)")] = None,
    fetch_them: Annotated[bool, typer.Option("--fetch", help="download what is missing")] = False,
    suite_name: Annotated[
        str | None, typer.Option("--suite", help="the models of this suite")
    ] = None,
) -> None:
    """List the models of the zoo, or fetch them; exit code 1 if one cannot be fetched."""
    chosen = [zoo_model(n) for n in names or ()]
    if suite_name is not None:
        chosen += [m for m in suite(suite_name) if m not in chosen]
    missing = 0
    table = Table(title=f"cache: {cache_dir()}", title_justify="left")
    for column in ("model", "from", "licence", "suites", "size", "file"):
        table.add_column(column, overflow="fold", justify="right" if column == "size" else "left")
    for model in chosen or list(zoo().values()):
        path = find(model)
        if path is None and fetch_them:
            missing += not _fetch(model)
            path = find(model)
        table.add_row(
            model.name, model.origin, model.licence, " ".join(model.suites),
            size(path.stat().st_size) if path else "", escape(_place(path)),
        )  # fmt: skip
    console.print(table)
    if missing:
        raise typer.Exit(1)


def _place(path: Path | None) -> str:
    """Where a file is, short for the cache."""
    if path is None:
        return "not here"
    return "in the cache" if path.parent == cache_dir() else str(path)


def _fetch(model: ZooModel) -> bool:
    """Fetch one model; a failure becomes a notice."""
    try:
        with console.status(f"fetching {model.name} from {model.origin}"):
            fetch(model)
    except ZooError as err:
        notice(str(err))
        return False
    return True
