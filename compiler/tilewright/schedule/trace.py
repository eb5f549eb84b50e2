"""A schedule as data: an ordered list of primitive applications.

In: operator files, the tuner, logs. Out: the same kernel, faster.
Invariant: a trace serialises to JSON and replays to a structurally equal kernel.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tilewright.errors import ScheduleError
from tilewright.loop.ir import Kernel
from tilewright.loop.sharing import wrong_sharing


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive with its arguments (loop and buffer names, integers, lists of those)."""

    primitive: str
    args: tuple[Any, ...]

    def to_json(self) -> list[Any]:
        return [self.primitive, *[list(a) if isinstance(a, tuple) else a for a in self.args]]

    def __str__(self) -> str:
        return f"{self.primitive}({', '.join(map(str, self.args))})"


Trace = tuple[Step, ...]


def step(primitive: str, *args: Any) -> Step:
    """Shorthand for a `Step`."""
    return Step(primitive, tuple(tuple(a) if isinstance(a, list) else a for a in args))


def trace_to_json(trace: Sequence[Step]) -> list[Any]:
    """JSON form of a trace."""
    return [s.to_json() for s in trace]


def trace_from_json(data: Any) -> Trace:
    """Read a trace back; `ScheduleError` if it is malformed (logs are untrusted)."""
    known = primitives()
    out: list[Step] = []
    if not isinstance(data, list):
        raise ScheduleError("a trace must be a list of steps")
    for item in data:
        if not isinstance(item, list) or not item or item[0] not in known:
            raise ScheduleError(f"unknown step {item!r} in a trace")
        out.append(Step(item[0], tuple(tuple(a) if isinstance(a, list) else a for a in item[1:])))
    return tuple(out)


@cache
def primitives() -> Mapping[str, Callable[..., Kernel]]:
    """All primitives by name: each file of `schedule/primitives` exports one function of that name."""
    package = importlib.import_module("tilewright.schedule.primitives")
    found: dict[str, Callable[..., Kernel]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"tilewright.schedule.primitives.{info.name}")
        found[info.name] = getattr(module, info.name)
    return found


def apply(kernel: Kernel, trace: Sequence[Step]) -> Kernel:
    """Apply a trace; raises `ScheduleError` naming the step and the reason when one is refused."""
    known = primitives()
    for s in trace:
        try:
            kernel = known[s.primitive](kernel, *s.args)
            if reason := wrong_sharing(kernel):
                raise ScheduleError(f"{reason}: do this before `parallelize`")
        except ScheduleError as err:
            raise ScheduleError(f"{kernel.name}: {s}: {err}") from None
    return kernel
