"""Interleaved timing: everybody gets turns of about the same length, in rotating order."""

from __future__ import annotations

import time

from tilewright.bench.runner import TURN_SECONDS, interleave
from tilewright.graph.ir import Array


def test_turns() -> None:
    calls: list[str] = []

    def runner(name: str, seconds: float) -> list[Array]:
        calls.append(name)
        time.sleep(seconds)
        return []

    timings = interleave(
        {"fast": lambda: runner("fast", 0.001), "slow": lambda: runner("slow", 0.02)}, rounds=3
    )
    assert len(timings["fast"].rounds) == len(timings["slow"].rounds) == 3
    assert 0.001 <= timings["fast"].minimum <= timings["fast"].median < timings["slow"].minimum
    assert timings["slow"].minimum >= 0.02
    assert calls.count("fast") > calls.count("slow") > 3
    assert calls.count("fast") > TURN_SECONDS / 0.02
