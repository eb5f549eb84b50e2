"""Recurrent cells: the sums of a block of units in registers, weights packed as they are read.

In: an unscheduled kernel (loop names as `loop.recurrence` makes them). Out: a trace. The loop over time is
serial; inside it every nest of sequences `b` and units `j` around a sum over `k` becomes a small matrix
product whose activations run in the same vectors.
"""

from __future__ import annotations

from tilewright.loop.ir import Alloc, For, Kernel
from tilewright.loop.rewrite import loops, walk
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import (
    Draft,
    parallelize_outer,
    vectorize_pass,
    volume,
    weights_of,
)
from tilewright.schedule.trace import Trace


def recurrence(kernel: Kernel, target: Target) -> Trace:
    """The default: as many units at once as sums fit half the registers."""
    d = Draft(kernel)
    width = target.lanes(4)
    if width > 1:
        packed: set[str] = set()
        nests = [v for v in loops(kernel.body) if v.split("_")[0] == "j"]
        span = min((_vectors(d, v, target) for v in nests), default=1)
        for var in nests:
            _tile(d, var, width, span, packed)
        for var in [v for v in loops(d.kernel.body) if v.split("_")[0] in ("ji", "jc", "jf", "jq")]:
            vectorize_pass(d, var, width)
    parallelize_outer(d, volume(kernel))
    return d.trace


def _vectors(d: Draft, units: str, target: Target) -> int:
    """Vectors of units whose sums fit half the registers, for all rows of the block."""
    sums = sum(isinstance(s, Alloc) for s in loops(d.kernel.body)[units].body)
    row = _around(d.kernel, units)
    rows = d.extent(row) if row else 1
    room = target.registers // (2 * max(sums, 1) * rows)
    return max(1, min(4, room, d.extent(units) // target.lanes(4)))


def _tile(d: Draft, units: str, width: int, vectors: int, packed: set[str]) -> None:
    """Sums of `vectors` vectors of units and of all rows of the block in registers."""
    nest = loops(d.kernel.body)[units]
    sums = [v for v in loops(nest.body) if v.split("_")[0] == "k"]
    if len(sums) != 1:
        return
    row, n = _around(d.kernel, units), d.extent(units)
    span = min(width * vectors, n)
    found = weights_of(Kernel("nest", d.kernel.params, (nest,)), units, sums)
    if found is not None and found[0] not in packed:
        buffer, along, rest = found
        by_sum = [rest[-1], *rest[:-1]]  # gates of one state beside each other
        dims = [[along, span, "outer"], *[[r, 0, "whole"] for r in by_sum], [along, span, "inner"]]
        d.do("pack", buffer, dims)
        packed.add(buffer)
    outer, inner, lane = [], [], units
    if n > span:
        d.do("split", units, span, f"{units}o", f"{units}t")
        outer, lane = [f"{units}o"], f"{units}t"
    if vectors > 1:
        d.do("split", lane, width, f"{units}v", f"{units}l")
        inner, lane = [f"{units}v"], f"{units}l"
    tile = [*([row] if row else []), *inner, lane]
    d.do("reorder", [*outer, *tile])
    d.do("stage", tile)
    d.do("reorder", [sums[0], *tile])
    for v in tile[:-1]:
        d.do("unroll", v)
    d.do("vectorize", lane)


def _around(kernel: Kernel, var: str) -> str:
    """The loop over rows that holds `var` alone; empty if there is none."""
    for s in walk(kernel.body):
        if isinstance(s, For) and len(s.body) == 1:
            (only,) = s.body
            if isinstance(only, For) and only.var == var and s.var.split("_")[0] == "b":
                return s.var
    return ""
