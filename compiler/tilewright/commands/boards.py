"""`tilewright boards`: models on emulated microcontrollers, with instructions, flash and RAM."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from tilewright.bench.boards import Cost, cost, markdown
from tilewright.commands._common import console, locate
from tilewright.schedule.target import load_target, target_names

NAME = "boards"


def command(
    model: Annotated[
        list[str], typer.Argument(help="model files, or names of `tilewright models`")
    ],
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="boards; repeatable (default: all)")
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="a table for documentation")
    ] = False,
) -> None:
    """Run models on the boards that QEMU emulates: instructions of an inference, flash, RAM, and whether
    the outputs are to the bit those of this machine."""
    boards = target or sorted(filter(_emulated, target_names()), key=lambda n: (len(n), n))
    costs: list[Cost] = []
    for name in model:
        path, _ = locate(name, None)
        costs += [cost(path, board) for board in boards]
    if as_markdown:
        typer.echo(markdown(costs), nl=False)
        return
    table = Table(title="one inference", title_justify="left")
    table.add_column("model")
    table.add_column("target")
    for column in ("instructions", "per MAC", "code", "weights", "RAM", "arena", "stack"):
        table.add_column(column, justify="right")
    table.add_column("= this machine")
    for c in costs:
        numbers = (c.code, c.weights, c.ram, c.arena, c.stack)
        table.add_row(
            c.model, c.target, str(c.instructions), f"{c.per_mac:.2f}", *map(str, numbers),
            "yes" if c.same else "no",
        )  # fmt: skip
    console.print(table)


def _emulated(name: str) -> bool:
    board = load_target(name).board
    return board is not None and bool(board.machine)
