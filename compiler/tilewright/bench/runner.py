"""Side-by-side timing: ours and the peers' runs interleaved in one process.

In: runners (functions that compute the outputs once). Out: minimum and median seconds of each.
Invariant: in every round each runner gets one turn of about the same length, so that a disturbance
hits all alike; ratios compare within one run only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tilewright.bench.peers import Runner

#: A turn lasts at least this long, so that clock resolution and call overhead do not matter.
TURN_SECONDS = 0.005


@dataclass(slots=True)
class Timing:
    """Seconds per run over all rounds."""

    rounds: list[float] = field(default_factory=list[float])

    @property
    def minimum(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return float(np.median(self.rounds))


def interleave(runners: Mapping[str, Runner], rounds: int) -> dict[str, Timing]:
    """Time all runners, `rounds` turns each."""
    counts: dict[str, int] = {}
    for name, run in runners.items():
        run()
        start = time.perf_counter()
        run()
        counts[name] = max(1, round(TURN_SECONDS / max(time.perf_counter() - start, 1e-7)))
    timings = {name: Timing() for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                run()
            timings[name].rounds.append((time.perf_counter() - start) / counts[name])
    return timings
