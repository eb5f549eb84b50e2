"""Which steps run on several threads: those where that gains, by cost.

In: the steps of a model whose loops may be shared out, the target. Out: the same steps, `threaded` where threads pay.
Invariant: decided when a model is compiled, from the target file and the steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.program import Step, ideal_cycles
from tilewright.schedule.target import Target

#: Steps that one core does in fewer cycles (about 10 microseconds) run on the calling thread: handing a share to a
#: thread that spins and waiting for the last piece takes one to two microseconds.
MIN_THREADED_CYCLES = 30_000
#: A model whose steps for threads take fewer cycles in all (about 50 microseconds) has none: threads that slept since
#: its last run are not awake before it is over.
MIN_THREADED_MODEL = 150_000
#: What a core moves between registers and its second-level cache.
BYTES_PER_CYCLE = 16


def threads_that_pay(steps: Sequence[Step], target: Target) -> tuple[Step, ...]:
    """The steps with `threaded` only where threads gain by cost: enough work in the step, and in the model."""

    def cycles(s: Step) -> float:
        return max(ideal_cycles(s.flops, target), s.bytes / BYTES_PER_CYCLE)

    large = [s.threaded and cycles(s) >= MIN_THREADED_CYCLES for s in steps]
    total = sum(cycles(s) for s, yes in zip(steps, large, strict=True) if yes)
    pays = total >= MIN_THREADED_MODEL
    return tuple(replace(s, threaded=yes and pays) for s, yes in zip(steps, large, strict=True))
