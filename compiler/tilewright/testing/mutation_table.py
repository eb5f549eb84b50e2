"""After how many examples the tests find bugs that were planted, and how small they make the case.

In: names of mutants, or none for all. Out: tables in Markdown (kernels, graphs); exit code 1 if one was not found.

    python -m tilewright.testing.mutation_table [NAME ...]
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.testing import graph_mutants
from tilewright.testing.case import Case, Failure
from tilewright.testing.fuzz import fuzz
from tilewright.testing.graph_mutants import GRAPH_MUTANTS, GraphMutant
from tilewright.testing.graph_strategies import fuzz_graphs
from tilewright.testing.mutants import MUTANTS, Mutant, planted
from tilewright.testing.oracles import judge
from tilewright.testing.worker import Worker

#: Seconds of the clock for a search, and for each part of making what it finds small: neither is ever reached, as
#: examples are counted, not timed. So the rows are the same on a busy machine.
SECONDS, SHRINK = 7200.0, 1800.0


#: Seconds that a kernel with a bug may run before it counts as endless.
JOB = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one mutant; `examples` is 0 if it was not found."""

    mutant: Mutant
    examples: int
    oracle: str = ""
    steps: int = 0
    extent: int = 0
    """The longest dim of the case."""
    seconds: float = 0.0
    """Of this process's processor."""


def search(mutant: Mutant, worker: Worker, most: int = 500, seed: int = 0) -> Row:
    """Look for a mutant with at most `most` examples."""
    begin = time.process_time()
    worker.mutant = mutant.name

    def test(case: Case) -> Failure | None:
        with contextlib.nullcontext() if mutant.drawing else planted(mutant.name):
            return judge(case, worker)

    with planted(mutant.name) if mutant.drawing else contextlib.nullcontext():
        found = fuzz(
            mutant.operators, mutant.target, SECONDS, seed, test=test, most=most, enough=1, shrink=SHRINK
        )  # fmt: skip
    seconds = time.process_time() - begin
    if not found.failures:
        return Row(mutant, 0, seconds=seconds)
    case = found.failures[0]
    oracle = case.failure.oracle if case.failure else ""
    return Row(mutant, found.examples, oracle, len(case.trace), _longest(case), seconds)


def _longest(case: Case) -> int:
    return max((n for p in case.kernel.params for n in p.buffer.shape), default=1)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| planted bug | found after examples | by | steps left | longest dim |",
        "|---|---:|---|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r.mutant.what} (`{r.mutant.name}`) | {r.examples or '**not found**'} | {r.oracle} | "
            f"{r.steps} | {r.extent} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class GraphRow:
    """What came of a bug in a graph stage; `examples` is 0 if it was not found."""

    mutant: GraphMutant
    examples: int
    nodes: int = 0
    extent: int = 0
    blamed: str = ""


def search_graphs(
    mutant: GraphMutant, target: str = "x86-64-v4", most: int = 500, seed: int = 0
) -> GraphRow:
    """Look for a bug in a graph stage with at most `most` graphs."""
    with graph_mutants.planted(mutant):
        found = fuzz_graphs(target, SECONDS, seed, most=most, enough=1, shrink=SHRINK)
    if not found.failures:
        return GraphRow(mutant, 0)
    case = found.failures[0]
    longest = max((n for t in case.graph.types.values() for n in t.shape), default=1)
    return GraphRow(mutant, found.examples, len(case.graph.nodes), longest, case.guilty)


def graph_table(rows: Sequence[GraphRow]) -> str:
    """Markdown."""
    lines = [
        "| planted bug | found after graphs | nodes left | longest dim | blamed |",
        "|---|---:|---:|---:|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.mutant.what} (`{r.mutant.name}`) | {r.examples or '**not found**'} | {r.nodes} | "
            f"{r.extent} | {r.blamed} |"
        )
    return "\n".join(lines)


def main(names: Sequence[str]) -> int:
    """Search for all mutants, or those named; prints the table. 1 if one was not found."""
    rows: list[Row] = []
    worker = Worker(JOB)
    for m in MUTANTS:
        if names and m.name not in names:
            continue
        rows.append(search(m, worker))
        r = rows[-1]
        print(f"{m.name}: {r.examples} examples, {r.oracle}, {r.steps} steps, longest dim {r.extent}, {r.seconds:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    worker.close()
    wanted = [m for m in GRAPH_MUTANTS if not names or m.name in names]
    graphs = [search_graphs(m) for m in wanted]
    if rows:
        print(table(rows))
    if graphs:
        print(graph_table(graphs))
    return int(any(not n for n in (*(r.examples for r in rows), *(g.examples for g in graphs))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
