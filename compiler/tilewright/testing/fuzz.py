"""Look for failures for a while.

In: operators, a target, a time. Out: a `Report`: failing cases, made small, and what was covered.
Invariant: every failure is written down as a case that replays without Hypothesis; the search goes on after one,
with other operators. It ends when its time is over; a failure found last is made small for at most `GRACE` more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.ir import For
from tilewright.loop.rewrite import walk
from tilewright.registry import operators
from tilewright.schedule.target import Target, load_target
from tilewright.schedule.trace import apply, primitives
from tilewright.testing.case import Case, Failure
from tilewright.testing.minimise import blame, minimise
from tilewright.testing.oracles import judge
from tilewright.testing.strategies import cases
from tilewright.testing.subjects import testable
from tilewright.testing.worker import Unjudged

#: Examples that Hypothesis plans at a time; failures after which the search ends.
ROUND = 40
ENOUGH = 10
#: Seconds that Hypothesis and, after it, `minimise` may each spend on a failure; seconds that each is given where
#: the search's own time is over.
SHRINK, GRACE = 40.0, 15.0


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
    """Examples that LLVM did not compile in time: their code is not known to be right."""
    failures: list[Case] = field(default_factory=list[Case])
    coverage: Coverage = field(default_factory=Coverage)


class _Found(Exception):
    """An example failed; Hypothesis makes it smaller."""


class _Over(BaseException):
    """Time is over. No `Exception`: Hypothesis would take it for a failure of the example."""


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
    `start` is the first seed, `shrink` the most seconds for making one small, twice."""
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
            out.failures.append(small.with_(guilty=blame(small)) if test is judge else small)
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
    last: list[Case] = []
    stop = end

    @seed(turn)
    @settings(
        max_examples=ROUND, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(cases(target, names))
    def check(case: Case) -> None:
        nonlocal stop
        if time.monotonic() > stop or (not last and most is not None and out.examples >= most):
            raise _Over
        if not last:
            out.examples += 1
            out.coverage.note(case)
            report(out)
        try:
            failure = test(case)
        except ScheduleError:
            return
        except Unjudged:
            out.unjudged += 1
            return
        except TilewrightError as err:
            failure = Failure("compile", str(err))
        except Exception as err:  # a bug of the compiler, or of the tests themselves
            failure = Failure("error", f"{type(err).__name__}: {err}")
        if failure is not None:
            if not last:
                stop = time.monotonic() + _allowed(end, shrink)
            last.append(case.with_(failure=failure))
            raise _Found(str(failure))

    with suppress(_Found, _Over, Flaky):  # a failure that did not come again was one
        check()
    return last[-1] if last else None


def all_names() -> list[str]:
    """Every operator that has samples."""
    return sorted(operators())
