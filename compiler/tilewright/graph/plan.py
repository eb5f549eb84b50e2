"""Static memory plan: where each allocation lies in the arena.

In: allocations with sizes and live intervals, which `allocations` finds for a placement. Out: byte offsets and the arena's size.
Greedy by size (Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020):
the largest allocation first, each at the lowest offset free during its whole life.
Where that leaves more than the lower bound, what lies on top is placed sooner, other orders are tried the same
way, and the best plan is kept.
Invariant: two allocations whose lives overlap never share a byte; offsets are multiples of `align`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tilewright.graph.layout import Placement

#: Pairs of allocations looked at per order before the best plan found is taken: well under a second.
MAX_WORK = 1_000_000


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
    bound = busiest(allocations, align)[0]
    best: dict[str, int] = {}
    least = -1
    for order in _orders(allocations, align):
        offsets, total = _improved(order, align, bound)
        if least < 0 or total < least:
            best, least = offsets, total
        if least <= bound:
            break
    return MemoryPlan(best, max(least, 0), bound)


def allocations(
    place: Placement, steps: Sequence[Sequence[str]], reuse: bool = True
) -> list[Allocation]:
    """What `steps`, given by the values they touch, need of an arena, without inputs, outputs and constants; with
    `reuse` only as long as it is needed."""
    g = place.graph
    outside = {*g.inputs, *g.outputs, *g.constants}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, values in enumerate(steps):
        for root in (place.storage[v].root for v in values):
            if root not in outside:
                first.setdefault(root, i if reuse else 0)
                last[root] = i if reuse else len(steps)
    return [
        Allocation(r, place.elements(r) * g.types[r].dtype.bytes, first[r], last[r]) for r in first
    ]


def busiest(allocations: Sequence[Allocation], align: int = 64) -> tuple[int, list[Allocation]]:
    """The largest number of bytes that live at the same time, and what lives then."""
    at = {a.start for a in allocations}
    live = [[a for a in allocations if a.start <= t <= a.end] for t in sorted(at)]
    sums = [sum(_round(a.size, align) for a in together) for together in live]
    return (max(sums), live[sums.index(max(sums))]) if sums else (0, [])


def _orders(allocations: Sequence[Allocation], align: int) -> Iterator[list[Allocation]]:
    """Orders to place allocations in: by size; the busiest steps first (Pisarchyk & Lee's "by breadth");
    by size times life; as they begin."""
    by_size = sorted(allocations, key=lambda a: (-a.size, a.start, a.name))
    yield by_size
    live = {
        t: sum(_round(a.size, align) for a in allocations if a.start <= t <= a.end)
        for t in {a.start for a in allocations}
    }
    breadth = {a.name: max(n for t, n in live.items() if a.start <= t <= a.end) for a in by_size}
    yield sorted(by_size, key=lambda a: -breadth[a.name])
    yield sorted(by_size, key=lambda a: -a.size * (a.end - a.start + 1))
    yield sorted(by_size, key=lambda a: a.start)


def _improved(order: list[Allocation], align: int, bound: int) -> tuple[dict[str, int], int]:
    """The best plan found from `order` on: what lies on top is placed sooner again and again."""
    best = offsets = _place(order, align)
    least = _total(order, best, align)
    seen = {tuple(a.name for a in order)}
    for _ in range(MAX_WORK // max(1, len(order) ** 2)):
        if least <= bound:
            break
        total = _total(order, offsets, align)
        top = next(a for a in order if offsets[a.name] + _round(a.size, align) == total)
        order = _sooner(order, top, seen)
        if not order:
            break
        offsets = _place(order, align)
        if (total := _total(order, offsets, align)) < least:
            best, least = offsets, total
    return best, least


def _sooner(
    order: list[Allocation], top: Allocation, seen: set[tuple[str, ...]]
) -> list[Allocation]:
    """A new order in which `top` goes before some allocation that lives at the same time; [] if none."""
    at = order.index(top)
    for i in range(at - 1, -1, -1):
        if order[i].end < top.start or order[i].start > top.end:
            continue
        moved = [*order[:i], top, *order[i:at], *order[at + 1 :]]
        key = tuple(a.name for a in moved)
        if key not in seen:
            seen.add(key)
            return moved
    return []


def _place(order: Sequence[Allocation], align: int) -> dict[str, int]:
    """Each allocation in turn at the lowest offset that is free during its whole life."""
    placed: list[tuple[int, int, Allocation]] = []
    offsets: dict[str, int] = {}
    for a in order:
        size = _round(a.size, align)
        at = 0
        for lo, hi, b in placed:
            if b.end < a.start or b.start > a.end:
                continue
            if at + size <= lo:
                break
            at = max(at, hi)
        insort(placed, (at, at + size, a), key=lambda p: p[0])
        offsets[a.name] = at
    return offsets


def _total(order: Sequence[Allocation], offsets: Mapping[str, int], align: int) -> int:
    return max((offsets[a.name] + _round(a.size, align) for a in order), default=0)


def _round(n: int, align: int) -> int:
    return -(-n // align) * align
