"""Side-by-side timing: ours and the peers' runs interleaved in one process.

In: runners (functions that compute the outputs once). Out: minimum and median seconds of each.
Invariant: in every round each runner gets one turn of about the same length, so that a disturbance
hits all alike; ratios compare within one run only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tilewright.bench.peers import Runner

#: A turn lasts at least this long, so that clock resolution and call overhead do not matter.
TURN_SECONDS = 0.005


@dataclass(slots=True)
class Timing:
    """Seconds per run, one figure per round."""

    rounds: list[float] = field(default_factory=list[float])

    @property
    def minimum(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


def interleave(
    runners: Mapping[str, Runner],
    rounds: int,
    progress: Callable[[float], None] = lambda done: None,
) -> dict[str, Timing]:
    """Time all runners, `rounds` turns each.

    A turn starts with a run that is not timed: it brings the model's data back into the caches and
    gives the previous runner's threads time to go to sleep. The order rotates from round to round.
    """
    counts = {name: _count(run) for name, run in runners.items()}
    timings = {name: Timing() for name in runners}
    order = list(runners)
    for i in range(rounds):
        progress(i / rounds)
        for name in order:
            run, count = runners[name], counts[name]
            run()
            start = time.perf_counter()
            for _ in range(count):
                run()
            timings[name].rounds.append((time.perf_counter() - start) / count)
        order.append(order.pop(0))
    return timings


def _count(run: Runner) -> int:
    """Runs that fill a turn."""
    for _ in range(2):
        run()
    start = time.perf_counter()
    run()
    return max(1, round(TURN_SECONDS / max(time.perf_counter() - start, 1e-7)))
