"""What tests of users call: `check` one operator, or state a property of every schedule with `prop`.

In: operators, a target. Out: nothing, or an `AssertionError` with a case that replays.
Invariant: the examples are the same in every run, unless a seed is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from tilewright.pipeline import resolve_target
from tilewright.registry import Operator, register
from tilewright.schedule.target import Target
from tilewright.testing.case import Case, summary, to_json
from tilewright.testing.fuzz import fuzz
from tilewright.testing.strategies import cases
from tilewright.testing.subjects import load_operators


def check(
    operator: str | Operator | Path,
    target: str | Target = "host",
    examples: int = 50,
    start: int = 0,
    save: Path | None = None,
) -> None:
    """Judge `examples` schedules of an operator (by name, as an object, or all of a file) by every oracle.

    Raises `AssertionError` with the failure, made small, and where its case is written (to `save`, or to a temporary
    folder); `TilewrightError` for an operator that is unknown or has no samples.
    """
    if isinstance(operator, Operator):
        register([operator])
        names = [operator.name]
    elif isinstance(operator, Path):
        names = [o.name for o in load_operators(operator)]
    else:
        names = [operator]
    found = fuzz(names, resolve_target(target), float("inf"), start, most=examples, enough=1)
    if found.failures:
        case = found.failures[0]
        path = save or Path(tempfile.mkdtemp(prefix="tilewright-")) / f"{case.operator}.json"
        path.write_text(to_json(case), encoding="utf-8")
        raise AssertionError("\n".join([*summary(case), f"  replay it: tilewright replay {path}"]))


def prop(
    *names: str, target: str | Target = "host", examples: int = 50, start: int = 0
) -> Callable[[Callable[[Case], None]], Callable[[], None]]:
    """Decorate a test of one `Case` (a kernel, a legal schedule, data): pytest runs it on `examples` of them.

    @prop("matmul", "conv2d", target="cortex-a76")
    def test_no_schedule_needs_much_scratch(case): ...
    """
    machine = resolve_target(target)

    def decorate(test: Callable[[Case], None]) -> Callable[[], None]:
        drawn = given(cases(machine, names or None))(test)
        limited = settings(
            max_examples=examples, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )(drawn)  # fmt: skip
        return seed(start)(limited)

    return decorate
