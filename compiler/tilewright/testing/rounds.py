"""Some examples of a strategy, until one fails: what searches do again and again with other seeds.

In: a strategy, a seed, a test, when the search ends. Out: the smallest failing example that Hypothesis found, or None.
Invariant: it ends with its time, whatever drawing, testing and shrinking do; a failure found late is made smaller for
`extra` seconds more, by at most `SHRINKS` further examples, so that a busy machine gives what an idle one gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from tilewright.errors import ScheduleError, TilewrightError
from tilewright.testing.case import Failure
from tilewright.testing.watch import Over, Slow, Watch
from tilewright.testing.worker import Unjudged

Example = TypeVar("Example")

#: Examples that Hypothesis plans at a time; those that it may try to make a failure smaller.
ROUND, SHRINKS = 40, 80


class _Found(Exception):
    """An example failed; Hypothesis makes it smaller."""


def one_round(
    drawn: st.SearchStrategy[Example],
    turn: int,
    end: float,
    extra: Callable[[], float],
    note: Callable[[Example], None],
    test: Callable[[Example, Failure | None], Failure | None],
    unjudged: Callable[[], None],
) -> tuple[Example, Failure] | None:
    """Test up to `ROUND` examples. `note` hears of each (and may raise `Over`), `test` is told of the first failure
    while that is made smaller, `unjudged` is called for an example that takes too long."""
    found: list[tuple[Example, Failure]] = []
    tries = 0
    watch = Watch(end)

    @seed(turn)
    @settings(
        max_examples=ROUND, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(drawn)
    def check(example: Example) -> None:
        nonlocal tries
        watch.check()
        watch.begin()
        if not found:
            note(example)
        elif (tries := tries + 1) > SHRINKS:
            raise Over
        try:
            failure = test(example, found[0][1] if found else None)
        except ScheduleError:
            return
        except (Unjudged, Slow):
            if not found:
                unjudged()
            return
        except TilewrightError as err:
            failure = Failure("compile", str(err))
        except Exception as err:  # a bug of the compiler, or of the tests themselves
            failure = Failure("error", f"{type(err).__name__}: {err}")
        finally:
            watch.begin()
        if failure is not None:
            if not found:
                watch.end = time.monotonic() + extra()
            found.append((example, failure))
            raise _Found(str(failure))

    try:
        with watch, suppress(_Found, Over, Flaky):  # a failure that did not come again was one
            check()
    except Slow:  # while an example was drawn
        if not found:
            unjudged()
    return found[-1] if found else None
