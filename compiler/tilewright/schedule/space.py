"""Schedules as points of a space: named parameters, each with a few values.

In: a template, which knows how to turn a choice of values into a trace for one kernel. Out: traces.
Invariant: a choice is plain data (names to integers or words), so that it can be logged and made again
for another shape; the default choice gives exactly the template's default trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tilewright.errors import ScheduleError
from tilewright.schedule.trace import Trace

Value = int | str
Choice = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Space:
    """All schedules one template can make for one kernel on one target.

    family    the template's name; choices carry over between kernels of one operator and family
    params    parameter -> its values
    default   the analytic default, a value for each parameter
    build     choice -> trace; raises `ScheduleError` where the combination is not legal
    cost      choice -> modelled time in any unit that is comparable within this space; infinite for what
              cannot be good (spills, tiles larger than the problem)
    """

    family: str
    params: Mapping[str, tuple[Value, ...]]
    default: Choice
    build: Callable[[Choice], Trace]
    cost: Callable[[Choice], float] = lambda choice: 1.0

    def __post_init__(self) -> None:
        if self.default.keys() != self.params.keys():
            raise ValueError(f"space {self.family}: the default does not name every parameter")

    @property
    def size(self) -> int:
        """Number of choices, legal or not."""
        return math.prod(len(v) for v in self.params.values())

    def trace(self, choice: Choice) -> Trace:
        """The schedule of a choice; `ScheduleError` if a name or value is unknown or it is not legal."""
        for name, values in self.params.items():
            if name not in choice:
                raise ScheduleError(f"{self.family}: the choice has no `{name}`")
            if choice[name] not in values and choice[name] != self.default[name]:
                raise ScheduleError(f"{self.family}: `{name}` cannot be {choice[name]!r}")
        return self.build({n: choice[n] for n in self.params})

    def nearest(self, choice: Choice) -> dict[str, Value]:
        """The choice of this space that is closest to one of another kernel's space."""
        out: dict[str, Value] = {}
        for name, values in self.params.items():
            wanted = choice.get(name, self.default[name])
            known = (*values, self.default[name])
            if wanted in known:
                out[name] = wanted
            elif isinstance(wanted, int) and all(isinstance(v, int) for v in known):
                out[name] = min(known, key=lambda v: _distance(v, wanted))
            else:
                out[name] = self.default[name]
        return out


def _distance(a: Value, b: Value) -> float:
    """How many doublings lie between two integers."""
    return abs(math.log2((abs(int(a)) + 1) / (abs(int(b)) + 1)))


def upto(most: int, *values: int) -> tuple[int, ...]:
    """Those of `values` that are at most `most`, at least one of them."""
    return tuple(v for v in values if v <= most) or (min(values),)
