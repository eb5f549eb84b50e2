"""Which candidates to try next for one kernel: evolution over choices, ranked by a model.

In: a space, what is known about it. Out: choices with their traces, the most promising first.
Invariant: nothing is proposed twice, neither as a choice nor as a trace, and nothing that the
analytic model rules out (tiles that spill, costs far above the default's).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tilewright.errors import ScheduleError
from tilewright.schedule.space import Choice, Space, Value
from tilewright.schedule.trace import Trace
from tilewright.tune.model import relative_cost

#: Choices whose analytic cost is above this multiple of the default's are not worth a look.
PRUNE = 1.6
#: Choices made per proposal before ranking.
POOL = 160
#: Share of a batch that is picked at random from the pool.
EXPLORE = 0.2

Key = tuple[tuple[str, Value], ...]


def key_of(choice: Choice) -> Key:
    """A choice as a value that can be hashed."""
    return tuple(sorted(choice.items()))


@dataclass(slots=True)
class Search:
    """The search for one kernel: `known` ratios to the default by choice, `seen` texts of
    traces."""

    space: Space
    rng: random.Random
    known: dict[Key, float] = field(default_factory=dict[Key, float])
    seen: set[str] = field(default_factory=set[str])
    tried: set[Key] = field(default_factory=set[Key])
    costs: dict[Key, float] = field(default_factory=dict[Key, float])
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.tried.add(key_of(self.space.default))
        self.known[key_of(self.space.default)] = 1.0
        self.seen.add(str(self.space.trace(self.space.default)))

    def learn(self, choice: Choice, trace: Trace, ratio: float | None) -> None:
        """Take in a trial; None for one that failed."""
        self.tried.add(key_of(choice))
        self.seen.add(str(trace))
        if ratio is not None:
            self.known[key_of(choice)] = ratio

    def propose(
        self, count: int, rank: Callable[[Sequence[Choice]], list[float]]
    ) -> list[tuple[dict[str, Value], Trace]]:
        """Up to `count` new candidates; fewer, or none, where the space runs out."""
        pool = self._pool()
        if not pool:
            self.exhausted = True
            return []
        order = [c for _, c in sorted(zip(rank(pool), pool, strict=True), key=lambda t: t[0])]
        out: list[tuple[dict[str, Value], Trace]] = []
        while order and len(out) < count:
            explore = self.rng.random() < EXPLORE
            choice = order.pop(self.rng.randrange(len(order)) if explore else 0)
            self.tried.add(key_of(choice))
            try:
                trace = self.space.trace(choice)
            except ScheduleError:
                continue
            if str(trace) not in self.seen:
                self.seen.add(str(trace))
                out.append((choice, trace))
        return out

    def _pool(self) -> list[dict[str, Value]]:
        """New choices: all of a small space; else random ones, children of the best, neighbours."""
        if self.space.size <= POOL:
            return [c for c in self._all() if self._worth(c)]
        best = [dict(k) for k in sorted(self.known, key=lambda k: self.known[k])[:6]]
        found: dict[Key, dict[str, Value]] = {}
        for i in range(8 * POOL):
            if len(found) >= POOL:
                break
            if i % 3 == 0:
                choice = {n: self.rng.choice(v) for n, v in self.space.params.items()}
            elif i % 3 == 1 or len(best) < 2:
                choice = self._mutated(self.rng.choice(best))
            else:
                a, b = self.rng.sample(best, 2)
                choice = self._mutated({n: self.rng.choice((a[n], b[n])) for n in a})
            if self._worth(choice):
                found[key_of(choice)] = choice
        return list(found.values())

    def _all(self) -> list[dict[str, Value]]:
        out: list[dict[str, Value]] = [{}]
        for name, values in self.space.params.items():
            out = [{**c, name: v} for c in out for v in values]
        return out

    def _worth(self, choice: Choice) -> bool:
        key = key_of(choice)
        if key not in self.costs:
            self.costs[key] = relative_cost(self.space, choice)
        return key not in self.tried and self.costs[key] <= PRUNE

    def _mutated(self, choice: Choice) -> dict[str, Value]:
        """One or two parameters moved, mostly to a neighbouring value."""
        out = dict(choice)
        movable = [n for n, v in self.space.params.items() if len(v) > 1]
        for name in self.rng.sample(movable, min(len(movable), self.rng.choice((1, 1, 2)))):
            values = self.space.params[name]
            if out[name] in values and self.rng.random() < 0.7:
                i = values.index(out[name]) + self.rng.choice((-1, 1))
                out[name] = values[min(max(i, 0), len(values) - 1)]
            else:
                out[name] = self.rng.choice(values)
        return out
