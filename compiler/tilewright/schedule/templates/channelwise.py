"""Depthwise convolution and pooling: vectors along channels, a block of pixels in registers.

In: an unscheduled kernel with loops n, oh, ow, c and window kh, kw. Out: a trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.loop.ir import Kernel
from tilewright.loop.rewrite import loops
from tilewright.schedule.target import Target
from tilewright.schedule.templates import mcu
from tilewright.schedule.templates.draft import Draft, parallelize_outer, weights_of
from tilewright.schedule.templates.rows import row_reduction
from tilewright.schedule.trace import Trace


def depthwise(kernel: Kernel, target: Target) -> Trace:
    """Depthwise convolution or pooling with loops n, oh, ow, c and window kh, kw."""
    if mcu.applies(kernel, target) and target.lanes(4) == 1:
        return mcu.depthwise(kernel, target)
    found = loops(kernel.body)
    if "c" not in found:
        return row_reduction(kernel, target)
    draft = Draft(kernel)
    weights = weights_of(kernel, "c", ["kh", "kw"])
    if weights is not None:
        buffer, along, rest = weights
        draft.do("pack", buffer, [*[[r, 0, "whole"] for r in rest], [along, 0, "whole"]])
    return (*draft.trace, *channelwise(draft.kernel, target, ["oh", "ow"], "c", ["kh", "kw"]))


def channelwise(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, window: Sequence[str]
) -> Trace:
    """Depthwise convolution and pooling: vectors along channels, a block of pixels in registers.

    The window is unrolled, so neighbouring pixels of the block share their loads (LLVM removes the
    repeated ones) and the weights of a channel vector are loaded once per block.
    """
    d = Draft(kernel)
    width = target.lanes(4)
    taps = math.prod(d.extent(v) for v in window)
    n = d.extent(cols)
    unrolled = taps <= 25
    budget = max(1, (target.registers - (taps if taps <= 9 and target.registers > 16 else 2)) // 2)
    present = [v for v in rows if d.has(v)]
    inner: list[str] = []
    outer: list[str] = []
    sizes = _pixel_block([d.extent(v) for v in present], min(budget, 8) if unrolled else 4)
    for var, size in zip(present, sizes, strict=True):
        if size == 1:
            outer.append(var)
        elif size < d.extent(var):
            d.do("split", var, size, f"{var}o", f"{var}i")
            outer.append(f"{var}o")
            inner.append(f"{var}i")
        else:
            inner.append(var)
    lanes: list[str] = []
    if n > width:
        d.do("split", cols, width, f"{cols}o", f"{cols}l")
        outer.append(f"{cols}o")
        lanes = [f"{cols}l"]
    elif n > 1:
        lanes = [cols]
    head = [v for v in loops(d.kernel.body) if v not in {*inner, *outer, *lanes, *window}]
    nest = [*inner, *lanes]
    d.do("reorder", [*head, *outer, *nest])
    if nest:
        d.do("stage", nest)
        sums = [v for v in window if d.has(v)]
        if sums:
            d.do("reorder", [*sums, *nest])
            if unrolled:
                for v in sums:
                    d.do("unroll", v)
        for v in inner:
            d.do("unroll", v)
        if lanes:
            d.do("vectorize", lanes[0])
    parallelize_outer(d, taps * n * math.prod(d.extent(v) for v in rows))
    return d.trace


def _pixel_block(extents: list[int], budget: int) -> list[int]:
    """Block sizes per spatial loop: wide rather than high, no more than `budget` pixels."""
    if not extents:
        return []
    if len(extents) == 1:
        return [_even(extents[0], budget)]
    th = 2 if extents[0] >= 2 and budget >= 8 else 1
    tw = _even(extents[1], budget // th)
    return [*([1] * (len(extents) - 2)), th, tw]


def _even(n: int, most: int) -> int:
    """The block size <= most that leaves the smallest remainder, larger ones first."""
    if n <= most:
        return n
    return min(range(max(1, most // 2), most + 1), key=lambda b: (math.ceil(n / b) * (b + 1), -b))
