"""Make a failing case small.

In: a case that fails, the judge. Out: a smaller case that still fails.
Invariant: every step taken keeps a failure of the oracle that saw the first one. Each way of `smaller` is tried until
it gains nothing, all of them until none does (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
Input", 2002). What is tried is counted, not timed: a busy machine gives the same result, as long as time is left.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.verify import verify
from tilewright.testing.case import Case, Failure, iterations
from tilewright.testing.oracles import INTERPRETED, ORACLES, interpreted, judge
from tilewright.testing.smaller import WAYS, Way
from tilewright.testing.watch import Over, Slow, Watch
from tilewright.testing.worker import Unjudged

Judge = Callable[[Case], Failure | None]

#: Candidates that are judged at most; seconds of the clock; seconds of a processor for one candidate.
MOST, SECONDS, EACH = 600, 60.0, 10.0


def minimise(case: Case, test: Judge = judge, seconds: float = SECONDS, most: int = MOST) -> Case:
    """The smallest case found that still fails, with its failure."""
    with Watch(monotonic() + seconds, EACH) as watch:
        search = _Search(test, most, watch, case.failure)
        with suppress(Over):
            search.run(case)
    return search.best or case


def narrowed(case: Case, failure: Failure | None) -> Case:
    """The case for the oracle that saw a failure alone: others only take time."""
    return case.with_(oracles=(failure.oracle,)) if failure and failure.oracle in ORACLES else case


class _Search:
    def __init__(self, test: Judge, most: int, watch: Watch, failure: Failure | None) -> None:
        self.test, self.left, self.watch = test, most, watch
        self.failure = failure
        self.best: Case | None = None
        self.tried: set[bytes] = set()
        self.complete: dict[bytes, bool] = {}

    def run(self, case: Case) -> None:
        self.best = self.failing(case)
        if self.best is None:
            return
        self.failure = self.best.failure
        gained = True
        while gained:
            gained = False
            for way in WAYS:
                gained |= self.along(way)
        whole = self.failing(self.best.with_(oracles=case.oracles))  # as every oracle sees it
        self.best = whole or self.best

    def along(self, way: Way) -> bool:
        """Take every candidate of a way that fails; whether there was one."""
        assert self.best is not None
        at, gained = 0, False
        candidates = way(self.best)
        while True:
            for i, candidate in enumerate(candidates):
                if i >= at and self.fails(candidate):
                    at, gained = i, True
                    candidates = way(self.best)  # goes on where it was
                    break
            else:
                return gained

    def fails(self, candidate: Case) -> bool:
        """Whether a candidate fails, too; it is the best now."""
        assert self.best is not None
        key = pickle.dumps((candidate.kernel, candidate.trace, candidate.data))
        if key in self.tried or self.left <= 0:
            return False
        self.tried.add(key)
        if candidate.kernel is not self.best.kernel and not self.is_complete(candidate):
            return False
        self.left -= 1
        found = self.failing(narrowed(candidate, self.failure))
        self.best = found or self.best
        return found is not None

    def failing(self, case: Case) -> Case | None:
        """The case with its failure, if it fails."""
        self.watch.check()
        self.watch.begin()
        try:
            failure = self.test(case)
        except (ScheduleError, Unjudged, Slow):
            return None  # no legal case any more, or one too many
        except Exception as err:  # a failure of a candidate only if it was one of the case
            name = "compile" if isinstance(err, TilewrightError) else "error"
            same = self.failure is None or self.failure.oracle == name
            text = str(err) if name == "compile" else f"{type(err).__name__}: {err}"
            failure = Failure(name, text) if same else None
        return None if failure is None else case.with_(failure=failure)

    def is_complete(self, case: Case) -> bool:
        """Whether the kernel still writes every element of its outputs, which oracles take for granted."""
        key = pickle.dumps((case.kernel, case.data))
        if key not in self.complete:
            self.watch.begin()
            try:
                self.complete[key] = _complete(case)
            except Slow:
                self.complete[key] = False
        return self.complete[key]


def _complete(case: Case) -> bool:
    if not case.kernel.body or iterations(case.kernel) > INTERPRETED:
        return False
    try:
        verify(case.kernel)
        arrays = case.arrays()
        first, second = (interpreted(case.kernel, arrays, fill) for fill in (7, 9))
    except (TilewrightError, LookupError):
        return False
    return all(first[n].tobytes() == second[n].tobytes() for n in first)
