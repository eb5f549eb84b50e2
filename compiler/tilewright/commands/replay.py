"""`tilewright replay`: run a failing case of `tilewright fuzz` again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tilewright.codegen.checked import require_checkable
from tilewright.codegen.llvm import runs_here, to_assembly
from tilewright.codegen.module import emit_module, one_call
from tilewright.commands._common import console, escape
from tilewright.commands.fuzz import show_failure, show_graph_failure
from tilewright.errors import AccessError, TargetError
from tilewright.loop.text import to_text
from tilewright.testing import case as cases
from tilewright.testing import graphs
from tilewright.testing.case import Case
from tilewright.testing.minimise import minimise as smaller
from tilewright.testing.native import Native
from tilewright.testing.oracles import judge
from tilewright.testing.worker import shared
from tilewright.tune.admit import admit

NAME = "replay"


def command(
    file: Annotated[Path, typer.Argument(help="case written by `tilewright fuzz`")],
    emit: Annotated[str, typer.Option(help="print the code, comma-separated: ir, ll, asm")] = "",
    minimise: Annotated[
        bool, typer.Option("--minimise", help="make the case smaller first")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="with --minimise: where to write it")
    ] = None,
    checked: Annotated[
        bool, typer.Option("--checked", help="first run code that checks every index")
    ] = False,
) -> None:
    """Judge one case by every oracle that applies; exit code 1 if it fails."""
    wanted = [e.strip() for e in emit.split(",") if e.strip()]
    if any(e not in ("ir", "ll", "asm") for e in wanted):
        raise typer.BadParameter("--emit takes ir, ll and asm")
    table = _table(file)
    if graphs.is_graph_case(table):
        if wanted:
            raise typer.BadParameter("--emit is for cases of one kernel: see `compile --dump-ir`")
        _replay_graph(file, minimise, output)
        return
    case = cases.read(file)
    if minimise:
        case = smaller(case)
        if output is not None:
            output.write_text(cases.to_json(case), encoding="utf-8")
    for what in wanted:
        print(_code(case, what, checked))
    if checked:
        _run_checked(case)
    failure = judge(case)
    if failure is not None:
        show_failure(case.with_(failure=failure))
        raise typer.Exit(1)
    console.print(
        f"{escape(str(file))}: every oracle passes on {case.machine().name}", soft_wrap=True
    )


def _table(file: Path) -> object:
    """The JSON in a file, or None: `case.read` says then what is wrong."""
    try:
        return json.loads(file.read_bytes()[: cases.MAX_BYTES])
    except (OSError, ValueError, RecursionError):
        return None


def _replay_graph(file: Path, smaller: bool, output: Path | None) -> None:
    """Judge a graph case, whose oracles run plain and checked code; exit code 1 if it fails."""
    case = graphs.from_json(file.read_bytes())
    if smaller:
        case = graphs.minimise(case)
        if output is not None:
            output.write_text(graphs.to_json(case), encoding="utf-8")
    failure = graphs.judge(case)
    if failure is not None:
        show_graph_failure(replace(case, failure=failure, guilty=graphs.blame(case)))
        raise typer.Exit(1)
    console.print(
        f"{escape(str(file))}: the graph computes what it should on {case.target}", soft_wrap=True
    )


def _run_checked(case: Case) -> None:
    """Run the case's code with checks; raise `AccessError` for the first index outside its buffer."""
    target = case.machine()
    require_checkable(target)
    if not runs_here(target):
        raise TargetError(f"code for {target.name} does not run here: leave out --checked")
    job = Native(admit(case.kernel, case.trace), target, case.arrays(), checked=True)
    found = shared().run(job)
    if found.problem == "outside":
        raise AccessError(found.message)
    console.print("checked code: every index is inside its buffer")


def _code(case: Case, what: str, checked: bool) -> str:
    """The finished kernel of a case in one form."""
    made = admit(case.kernel, case.trace)
    if what == "ir":
        return to_text(made)
    target = case.machine()
    plan = one_call("case", target, made, fault_at=0 if checked else None)
    text = emit_module(plan, with_weights=False)
    return text if what == "ll" else to_assembly(text, target)
