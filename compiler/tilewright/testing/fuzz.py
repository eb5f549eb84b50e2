"""Look for failures for a while.

In: operators, a target, a time. Out: a `Report`: failing cases, made small, and what was covered.
Invariant: every failure is written down as a case that replays without Hypothesis; the search goes on after one,
with other operators. It ends when its time is over, whatever an example does (`testing.watch`); a failure found last is made
small and examined for at most three times `GRACE` more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tilewright.loop.ir import For
from tilewright.loop.rewrite import walk
from tilewright.registry import operators
from tilewright.schedule.target import Target, load_target
from tilewright.schedule.trace import apply, primitives
from tilewright.testing.blame import blame
from tilewright.testing.case import Case, Failure
from tilewright.testing.minimise import minimise, narrowed
from tilewright.testing.oracles import judge
from tilewright.testing.rounds import ROUND, one_round
from tilewright.testing.strategies import cases
from tilewright.testing.subjects import testable
from tilewright.testing.watch import Over, Slow, Watch

#: Failures after which the search ends.
ENOUGH = 10
#: Seconds that Hypothesis, `minimise` and `blame` may each spend on a failure; seconds that each is given where the
#: search's own time is over.
SHRINK, GRACE = 120.0, 15.0


@dataclass(slots=True)
class Coverage:
    """How often what was tried, as (operator, primitive, dtype, whether a remainder was left)."""

    cells: Counter[tuple[str, str, str, bool]] = field(
        default_factory=Counter[tuple[str, str, str, bool]]
    )
    examples: Counter[str] = field(default_factory=Counter[str])

    def note(self, case: Case) -> None:
        self.examples[case.operator] += 1
        dtype = next(p.buffer.dtype.name for p in case.kernel.params if p.role == "out")
        tail = _has_tail(case)
        for name in {s.primitive for s in case.trace} or {"none"}:
            self.cells[(case.operator, name, dtype, tail)] += 1

    def empty(self, names: Sequence[str], target: Target) -> list[tuple[str, str]]:
        """(operator, primitive) that no example brought together."""
        seen = {(o, p) for o, p, _, _ in self.cells}
        return [(o, p) for o in names for p in applicable(target) if (o, p) not in seen]

    def table(self, names: Sequence[str], target: Target) -> str:
        """Markdown: a row per operator and type of result, a column per primitive; in a cell the examples
        without a remainder + those with one, nothing where there were none."""
        columns = ["none", *applicable(target)]
        rows = sorted({(o, t) for o, _, t, _ in self.cells} | {(o, "") for o in names})
        rows = [(o, t) for o, t in rows if t or not self.examples[o]]
        lines = [
            f"| operator | result | {' | '.join(columns)} |",
            "|---|---|" + "---:|" * len(columns),
        ]
        for o, t in rows:
            counts = [(self.cells[o, p, t, False], self.cells[o, p, t, True]) for p in columns]
            cells = [f"{whole}+{rest}" if whole + rest else "" for whole, rest in counts]
            lines.append(f"| {o} | {t} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def applicable(target: Target) -> list[str]:
    """Primitives that mean something on a target."""
    return [p for p in primitives() if p not in _elsewhere(target)]


def _elsewhere(target: Target) -> set[str]:
    """Primitives that mean nothing on a target."""
    gpu = {"bind", "share", "cooperate", "tensorize_mma", "widen"}
    return {"vectorize", "parallelize", "lanes"} if target.family == "cuda" else gpu


def _has_tail(case: Case) -> bool:
    """Whether a split does not divide its loop."""
    made = apply(case.kernel, case.trace)
    return any(isinstance(s, For) and not s.extent.is_const for s in walk(made.body))


@dataclass(slots=True)
class Report:
    """What came of a search."""

    target: str
    names: tuple[str, ...]
    seconds: float = 0.0
    examples: int = 0
    unjudged: int = 0
    """Examples that took too long, in this process or in LLVM: they are not known to be right."""
    failures: list[Case] = field(default_factory=list[Case])
    coverage: Coverage = field(default_factory=Coverage)


def fuzz(
    names: Sequence[str],
    target: str | Target,
    seconds: float,
    start: int = 0,
    report: Callable[[Report], None] = lambda r: None,
    test: Callable[[Case], Failure | None] = judge,
    most: int | None = None,
    enough: int = ENOUGH,
    shrink: float = SHRINK,
) -> Report:
    """Try kernels of operators for `seconds`, at most `most` examples, until `enough` failures are found;
    `start` is the first seed, `shrink` the most seconds for each part of making one small."""
    machine = target if isinstance(target, Target) else load_target(target)
    usable = [n for n in names if testable(n)]
    out = Report(machine.name, tuple(usable))
    begin, turn = time.monotonic(), start
    while usable and len(out.failures) < enough:
        left = seconds - (time.monotonic() - begin)
        if left <= 0 or (most is not None and out.examples >= most):
            break
        failed = _round(
            _least_tried(usable, out.coverage),
            machine,
            turn,
            out,
            begin + seconds,
            test,
            report,
            most,
            shrink,
        )
        turn += 1
        if failed is not None:
            small = minimise(failed, test, _allowed(begin + seconds, shrink))
            out.failures.append(small)
            with suppress(Over, Slow), Watch(time.monotonic() + _allowed(begin + seconds, shrink)):
                if test is judge:
                    out.failures[-1] = small.with_(guilty=blame(small))
            usable = [n for n in usable if n != failed.operator]
        out.seconds = time.monotonic() - begin
        report(out)
    out.seconds = time.monotonic() - begin
    return out


def _allowed(end: float, shrink: float) -> float:
    """Seconds for making a failure small in a search that ends at `end`."""
    return min(shrink, max(GRACE, end - time.monotonic()))


def _least_tried(names: Sequence[str], coverage: Coverage) -> list[str]:
    """The operators of a round: those that had the fewest examples."""
    return sorted(sorted(names, key=lambda n: (coverage.examples[n], n))[:ROUND])


def _round(
    names: Sequence[str], target: Target, turn: int, out: Report, end: float,
    test: Callable[[Case], Failure | None], report: Callable[[Report], None], most: int | None,
    shrink: float,
) -> Case | None:  # fmt: skip
    """Some examples; the smallest failing one, if one failed."""

    def note(case: Case) -> None:
        if most is not None and out.examples >= most:
            raise Over
        out.examples += 1
        out.coverage.note(case)
        report(out)

    def judged(case: Case, first: Failure | None) -> Failure | None:
        return test(narrowed(case, first))

    def unjudged() -> None:
        out.unjudged += 1

    found = one_round(
        cases(target, names), turn, end, lambda: _allowed(end, shrink), note, judged, unjudged
    )
    return found[0].with_(failure=found[1]) if found else None


def all_names() -> list[str]:
    """Every operator that has samples."""
    return sorted(operators())
