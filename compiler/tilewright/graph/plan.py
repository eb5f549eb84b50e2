"""Static memory plan: where each allocation lies in the arena.

In: allocations with sizes and live intervals. Out: byte offsets and the arena's size.
Greedy by size (Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020):
the largest allocation first, each at the lowest offset free during its whole life.
Invariant: two allocations whose lives overlap never share a byte; offsets are multiples of `align`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allocation:
    """`name` needs `size` bytes from step `start` to step `end`, both included."""

    name: str
    size: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Offsets in bytes, total size, and `lower_bound`: the largest sum of live allocations."""

    offsets: Mapping[str, int]
    size: int
    lower_bound: int


def plan_memory(allocations: Sequence[Allocation], align: int = 64) -> MemoryPlan:
    """Place all allocations at multiples of `align` bytes."""
    placed: list[tuple[int, int, Allocation]] = []
    offsets: dict[str, int] = {}
    for a in sorted(allocations, key=lambda a: (-a.size, a.start, a.name)):
        size = _round(a.size, align)
        at = 0
        for lo, hi, b in sorted(placed, key=lambda p: p[0]):
            if b.end < a.start or b.start > a.end:
                continue
            if at + size <= lo:
                break
            at = max(at, hi)
        placed.append((at, at + size, a))
        offsets[a.name] = at
    total = max((hi for _, hi, _ in placed), default=0)
    return MemoryPlan(offsets, total, _lower_bound(allocations, align))


def _lower_bound(allocations: Sequence[Allocation], align: int) -> int:
    events = sorted({a.start for a in allocations})
    return max(
        (sum(_round(a.size, align) for a in allocations if a.start <= t <= a.end) for t in events),
        default=0,
    )


def _round(n: int, align: int) -> int:
    return -(-n // align) * align
