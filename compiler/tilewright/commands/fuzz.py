"""`tilewright fuzz`: look for a schedule of a kernel that computes something wrong."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tilewright.commands._common import TargetName, console, errors_console, escape
from tilewright.errors import ToolchainError
from tilewright.graph.text import to_text as graph_text
from tilewright.pipeline import resolve_target
from tilewright.registry import operator, operators
from tilewright.schedule.target import load_target
from tilewright.testing.case import Case, summary, to_json
from tilewright.testing.graphs import GraphCase
from tilewright.testing.graphs import to_json as graphs_to_json
from tilewright.testing.subjects import load_operators

if TYPE_CHECKING:
    from tilewright.testing.fuzz import Report

NAME = "fuzz"
TOO_LONG = "LLVM needs more than a minute for them, or all else more than 20 seconds"


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="operators (`tilewright ops`), or operator files of your own (.py)"),
    ] = None,
    target: TargetName = "host",
    seconds: Annotated[float, typer.Option(min=0.1, help="how long to search")] = 60.0,
    all: Annotated[bool, typer.Option("--all", help="every operator")] = False,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="small graphs instead: passes, fusion, layout, memory")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="where the search begins")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for failing cases")] = Path(
        "failures"
    ),
    coverage: Annotated[
        Path | None,
        typer.Option(help="write what was tried as Markdown: operators and types by primitives"),
    ] = None,
) -> None:
    """Draw kernels, schedules and data, and judge each by what must hold for every schedule; exit code 1 if
    anything fails.

    A failure is made small and written as JSON, which `tilewright replay` runs again anywhere.
    """
    require_hypothesis()
    if graphs:
        if all or names:
            raise typer.BadParameter("--graphs draws operators of its own: name none")
        _search_graphs(resolve_target(target).name, seconds, seed, output)
        return
    from tilewright.testing import fuzz as search  # the only part that needs Hypothesis

    if all == bool(names):
        raise typer.BadParameter("name operators or files, or give --all")
    machine = resolve_target(target)
    chosen = sorted(operators()) if all else _chosen(names or [])
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=errors_console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("start", total=seconds)

        def show(r: Report) -> None:
            text = f"{r.examples} examples, {len(r.failures)} failures"
            bar.update(task, description=text, completed=min(r.seconds, seconds))

        found = search.fuzz(chosen, machine, seconds, seed, show)
    _coverage(found)
    if coverage is not None:
        coverage.write_text(found.coverage.table(found.names, machine), encoding="utf-8")
    for i, case in enumerate(found.failures):
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{case.operator}_{seed}_{i}.json"
        path.write_text(to_json(case), encoding="utf-8")
        show_failure(case, path)
    console.print(
        f"{found.examples} examples of {len(found.names)} operators on {machine.name} in "
        f"{found.seconds:.0f} s: "
        + (f"[red]{len(found.failures)} failures[/red]" if found.failures else "no failure")
    )
    if found.unjudged:
        console.print(f"{found.unjudged} examples were not judged: {TOO_LONG}")
    if not found.names:
        raise typer.BadParameter("none of these operators has a sample that needs a kernel")
    if found.failures:
        raise typer.Exit(1)


def _search_graphs(target: str, seconds: float, seed: int, output: Path) -> None:
    """The search through whole graphs; exit code 1 if one fails."""
    from tilewright.testing.graph_strategies import GraphReport, fuzz_graphs

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=errors_console, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("start")

        def show(r: GraphReport) -> None:
            bar.update(task, description=f"{r.examples} graphs, {len(r.failures)} failures")

        found = fuzz_graphs(target, seconds, seed, show)
    for i, case in enumerate(found.failures):
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"graph_{seed}_{i}.json"
        path.write_text(graphs_to_json(case), encoding="utf-8")
        show_graph_failure(case, path)
    tried = ", ".join(f"{op} {n}" for op, n in sorted(found.operators.items()))
    console.print(f"graphs with each operator: {tried}", soft_wrap=True)
    console.print(
        f"{found.examples} graphs on {target} in {found.seconds:.0f} s: "
        + (f"[red]{len(found.failures)} failures[/red]" if found.failures else "no failure")
    )
    if found.unjudged:
        console.print(f"{found.unjudged} graphs were not judged: {TOO_LONG}")
    if found.failures:
        raise typer.Exit(1)


def show_graph_failure(case: GraphCase, path: Path | None = None) -> None:
    """A failing graph in under 25 lines."""
    console.print(f"[red]failure[/red] of a graph: {escape(str(case.failure))}", soft_wrap=True)
    if case.guilty:
        console.print(f"  guilty: {escape(case.guilty)}", soft_wrap=True)
    for line in graph_text(case.graph).splitlines()[:18]:
        console.print(f"  {escape(line)}", soft_wrap=True)
    if path is not None:
        console.print(f"  replay it: tilewright replay {escape(str(path))}", soft_wrap=True)


def require_hypothesis() -> None:
    """Raise `ToolchainError` where the packages of the extra `test` are missing."""
    if importlib.util.find_spec("hypothesis") is None:
        raise ToolchainError("hypothesis is not installed: pip install 'tilewright[test]'")


def _chosen(names: list[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        if name.endswith(".py"):
            out += [o.name for o in load_operators(Path(name))]
        else:
            out.append(operator(name).name)
    return out


def show_failure(case: Case, path: Path | None = None) -> None:
    """A failing case in under 25 lines."""
    first, *rest = map(escape, summary(case))
    console.print(first.replace("failure", "[red]failure[/red]", 1), soft_wrap=True)
    for line in rest:
        console.print(line, soft_wrap=True)
    if path is not None:
        console.print(f"  replay it: tilewright replay {escape(str(path))}", soft_wrap=True)


def _coverage(report: Report) -> None:
    """What was tried together: primitives by operator, with remainders and without."""
    by_primitive: Counter[str] = Counter()
    operators_of: dict[str, set[str]] = {}
    tails: Counter[str] = Counter()
    types: dict[str, set[str]] = {}
    for (op, primitive, dtype, tail), n in report.coverage.cells.items():
        by_primitive[primitive] += n
        operators_of.setdefault(primitive, set()).add(op)
        types.setdefault(primitive, set()).add(dtype)
        tails[primitive] += n if tail else 0
    empty = Counter(p for _, p in report.coverage.empty(report.names, load_target(report.target)))
    table = Table(title=f"what was tried on {report.target}", title_justify="left")
    for column in (
        "primitive",
        "examples",
        "with a remainder",
        "operators",
        "never with",
        "results of type",
    ):
        table.add_column(
            column, justify="left" if column in ("primitive", "results of type") else "right"
        )
    for primitive in sorted({*by_primitive, *empty}):
        table.add_row(
            primitive, str(by_primitive[primitive]), str(tails[primitive]),
            str(len(operators_of.get(primitive, ()))), str(empty[primitive]),
            " ".join(sorted(types.get(primitive, ()))),
        )  # fmt: skip
    console.print(table)
