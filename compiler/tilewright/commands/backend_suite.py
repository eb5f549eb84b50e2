"""`tilewright backend-suite`: ONNX's own backend tests, through compiled code."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tilewright.commands._common import console, errors_console, escape
from tilewright.errors import TilewrightError

if TYPE_CHECKING:
    from tilewright.backend_suite.cases import Verdict

NAME = "backend-suite"

_OUTCOMES = ("pass", "refused", "wrong", "crash", "timeout", "error")


def command(
    match: Annotated[str, typer.Option("-k", help="only cases whose name has this pattern")] = "",
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", help="node, simple, pytorch-operator, pytorch-converted, light"),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="only each n-th case")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="worker processes")] = 2,
    limit: Annotated[
        float, typer.Option("--limit", help="seconds of processor time a case may take")
    ] = 60.0,
    status: Annotated[
        Path | None, typer.Option("--status", help="hold the results against this file")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="write the status file")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="write every verdict as a line of JSON")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="list what fails")] = False,
    summary: Annotated[
        bool, typer.Option("--markdown", help="print the table of docs/onnx_backend.md")
    ] = False,
) -> None:
    """Run the backend tests of the installed onnx package through compiled code."""
    from tilewright.backend_suite.cases import KINDS, load_cases
    from tilewright.backend_suite.status import differences, read_status, write_status
    from tilewright.backend_suite.workers import judge_all

    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise typer.BadParameter(f"--kind {unknown[0]}: the kinds are {', '.join(KINDS)}")
    if update and (status is None or match or kinds or every > 1):
        raise typer.BadParameter("--update needs --status, and all cases to be run")
    cases = [c for c in load_cases(kinds or KINDS) if re.search(match, c.key)][::every]
    verdicts: list[Verdict] = []
    for v in judge_all(cases, jobs, limit):
        verdicts.append(v)
        if verbose and v.outcome != "pass":
            console.print(escape(f"{v.outcome:8} {v.key}: {v.reason}"), soft_wrap=True)
    if output is not None:
        output.write_text("".join(json.dumps(asdict(v)) + "\n" for v in verdicts), encoding="utf-8")
    if update and status is not None:
        write_status(status, verdicts)
    if summary:
        print(markdown(verdicts))
    else:
        _print(verdicts)
    if status is not None:
        wrong = differences(read_status(status), verdicts)
        for line in wrong:
            errors_console.print(escape(line), soft_wrap=True)
        if wrong:
            raise TilewrightError(f"{len(wrong)} cases are not as {status} says")


def _rows(verdicts: Sequence[Verdict]) -> list[tuple[str, Counter[str]]]:
    kinds = dict.fromkeys(v.key.partition("/")[0] for v in verdicts)
    return [(k, _counted([v for v in verdicts if v.key.startswith(f"{k}/")])) for k in kinds]


def _counted(verdicts: Sequence[Verdict]) -> Counter[str]:
    counts: Counter[str] = Counter(v.outcome for v in verdicts)
    passed = [v for v in verdicts if v.outcome == "pass"]
    counts["cases"] = len(verdicts)
    counts["values"] = sum(1 for v in passed if v.fixed and not v.constant)
    counts["constant"] = sum(1 for v in passed if v.constant)
    return counts


def _print(verdicts: Sequence[Verdict]) -> None:
    table = Table()
    for column in ("kind", "cases", *_OUTCOMES, "values fixed", "constant"):
        table.add_column(column)
    for kind, n in _rows(verdicts):
        table.add_row(kind, *(str(n[c]) for c in ("cases", *_OUTCOMES, "values", "constant")))
    console.print(table)
    console.print(f"{sum(v.seconds for v in verdicts):.0f} s of processor time")


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The tables of the docs: outcomes by kind, and refusals by reason."""
    head = ("cases", "pass", "refused", "wrong", "crash", "values", "constant")
    lines = [f"| kind | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for kind, n in _rows(verdicts):
        lines.append(f"| {kind} | {' | '.join(str(n[c]) for c in head)} |")
    reasons = Counter(_reason(v.reason) for v in verdicts if v.outcome == "refused")
    lines += ["", "| refused | operator | reason |", "|---|---|---|"]
    for (op, why), count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        lines.append(f"| {count} | {op} | {why} |")
    return "\n".join(lines)


def _reason(text: str) -> tuple[str, str]:
    """Operator and reason of a refusal, without the names of the model's nodes and values."""
    where = re.match(r"node `[^`]*` \(([^)]*)\): (.*)", text, re.DOTALL)
    op, why = (where[1], where[2]) if where else ("", text)
    why = re.sub(r" \(and \d+ more: .*", "", why)
    return op, re.sub(r"^input `[^`]*`", "an input", why).replace("|", "/")
