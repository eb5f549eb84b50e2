"""Depthwise convolution and pooling: vectors along channels, a block of pixels in registers.

In: an unscheduled kernel with loops n, oh, ow, c and window kh, kw. Out: a trace, or the space of such
traces, of which the default is one point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.errors import ScheduleError
from tilewright.loop.ir import Fma, Kernel
from tilewright.loop.rewrite import expressions, loops
from tilewright.schedule.space import Choice, Space, Value, upto
from tilewright.schedule.target import Target
from tilewright.schedule.templates import mcu
from tilewright.schedule.templates.draft import Draft, share_out, weights_of
from tilewright.schedule.templates.rows import row_reduction
from tilewright.schedule.trace import Trace

#: Channels from which neighbouring rows of a map share no page.
MANY_CHANNELS = 200


def depthwise(kernel: Kernel, target: Target) -> Trace:
    """Depthwise convolution or pooling with loops n, oh, ow, c and window kh, kw."""
    if mcu.applies(kernel, target) and target.lanes(4) == 1:
        return mcu.depthwise(kernel, target)
    if "c" not in loops(kernel.body):
        return row_reduction(kernel, target)
    draft = _packed(kernel)
    return (*draft.trace, *channelwise(draft.kernel, target, ["oh", "ow"], "c", ["kh", "kw"]))


def depthwise_space(kernel: Kernel, target: Target) -> Space | None:
    """The schedules of a depthwise convolution or pooling; None where another template applies."""
    if mcu.applies(kernel, target) and target.lanes(4) == 1:
        return mcu.depthwise_space(kernel, target)
    if target.family == "cuda" or "c" not in loops(kernel.body):
        return None
    draft = _packed(kernel)
    rows, window = ["oh", "ow"], ["kh", "kw"]
    start = _default_blocking(draft, target, rows, "c", window)
    extents = [draft.extent(v) for v in rows if draft.has(v)]
    taps, n, width = math.prod(draft.extent(v) for v in window), draft.extent("c"), target.lanes(4)
    params: dict[str, tuple[Value, ...]] = {
        f"tile{i}": upto(e, *range(1, min(16, e) + 1)) for i, e in enumerate(extents)
    }
    params["vectors"] = upto(max(1, math.ceil(n / width)), 1, 2, 3, 4)
    params["lanes"] = tuple(w for w in (width, width // 2, width // 4) if w >= 4) or (width,)
    params["unroll"] = ("all", "inner", "none") if taps > 1 else ("none",)
    params["channels"] = ("inside", "outside")
    default: dict[str, Value] = {f"tile{i}": s for i, s in enumerate(start.shape)}
    default.update(
        vectors=start.vectors, lanes=start.lanes, unroll=start.unroll, channels=start.channels
    )

    def build(choice: Choice) -> Trace:
        shape = tuple(int(choice[f"tile{i}"]) for i in range(len(extents)))
        vectors, lanes = int(choice["vectors"]), int(choice["lanes"])
        words = str(choice["unroll"]), str(choice["channels"])
        if math.prod(shape) * vectors > max(target.registers - 2, 2):
            raise ScheduleError(f"a block of {shape} pixels x {vectors} vectors spills")
        blocking = Blocking(shape, vectors, lanes, *words)
        made = _channelwise(draft.kernel, target, blocking, rows, "c", window)
        return (*draft.trace, *made)

    def cost(choice: Choice) -> float:
        shape = [int(choice[f"tile{i}"]) for i in range(len(extents))]
        vectors, lanes = int(choice["vectors"]), int(choice["lanes"])
        pixels = math.prod(shape)
        if pixels * vectors > max(target.registers - 2, 2):
            return math.inf
        blocks = math.prod(math.ceil(e / s) for e, s in zip(extents, shape, strict=True))
        panels = math.ceil(n / (lanes * vectors))
        work = taps * vectors * (pixels / target.fma_per_cycle + 1)
        step = max(work, taps * target.fma_latency if pixels * vectors < 4 else 0)
        return blocks * panels * (step + 2 * pixels * vectors + 8)

    return Space("channelwise", params, default, build, cost)


def _packed(kernel: Kernel) -> Draft:
    """Weights, where they are constant, with the channels last."""
    draft = Draft(kernel)
    weights = weights_of(kernel, "c", ["kh", "kw"])
    if weights is not None:
        buffer, along, rest = weights
        draft.do("pack", buffer, [*[[r, 0, "whole"] for r in rest], [along, 0, "whole"]])
    return draft


@dataclass(frozen=True, slots=True)
class Blocking:
    """A point of the space.

    shape     pixels of a block per loop of `rows` that exists
    vectors   vectors of channels per block
    lanes     elements per vector
    unroll    the window: `all` of it is spelled out, the `inner` loop only, or `none`
    channels  the loop over vectors of channels is `inside` the loops over blocks, or `outside`
    """

    shape: tuple[int, ...]
    vectors: int
    lanes: int
    unroll: str
    channels: str


def channelwise(
    kernel: Kernel, target: Target, rows: Sequence[str], cols: str, window: Sequence[str]
) -> Trace:
    """Depthwise convolution and pooling: vectors along channels, a block of pixels in registers.

    The window is unrolled, so neighbouring pixels of the block share their loads (LLVM removes the
    repeated ones) and the weights of a channel vector are loaded once per block.
    """
    blocking = _default_blocking(Draft(kernel), target, rows, cols, window)
    return _channelwise(kernel, target, blocking, rows, cols, window)


def _default_blocking(
    d: Draft, target: Target, rows: Sequence[str], cols: str, window: Sequence[str]
) -> Blocking:
    """As many pixels as fit the registers next to the weights, wide rather than high.

    Maxima and means hold no weights: 2 x 2 pixels, which share most of what they load; with many channels
    a row of few pixels, as rows then lie far apart.
    """
    taps = math.prod(d.extent(v) for v in window)
    unrolled = taps <= 25
    budget = max(1, (target.registers - (taps if taps <= 9 and target.registers > 16 else 2)) // 2)
    extents = [d.extent(v) for v in rows if d.has(v)]
    shape = tuple(_pixel_block(extents, min(budget, 8) if unrolled else 4))
    unroll = "all" if unrolled and taps > 1 else "none"
    weighted = any(isinstance(e, Fma) for e in expressions(d.kernel.body))
    if not weighted and taps <= 9 and len(extents) == 2 and min(extents) > 1:
        many = d.extent(cols) >= MANY_CHANNELS
        shape = (1, _even(extents[1], 4)) if many else (2, 2)
    return Blocking(shape, 1, target.lanes(4), unroll, "inside")


def _channelwise(
    kernel: Kernel,
    target: Target,
    blocking: Blocking,
    rows: Sequence[str],
    cols: str,
    window: Sequence[str],
) -> Trace:
    """The trace of a blocking."""
    d = Draft(kernel)
    width = blocking.lanes
    taps = math.prod(d.extent(v) for v in window)
    n = d.extent(cols)
    work = taps * n * math.prod(d.extent(v) for v in rows)  # before the loops get other names
    inner: list[str] = []
    outer: list[str] = []
    present = [v for v in rows if d.has(v)]
    for var, size in zip(present, blocking.shape, strict=True):
        d.tile(var, size, outer, inner)
    lanes: list[str] = []
    lane, at = cols, 0 if blocking.channels == "outside" else len(outer)
    if blocking.vectors > 1 and n > width * blocking.vectors:
        d.do("split", cols, width * blocking.vectors, f"{cols}o", f"{cols}t")
        outer.insert(at, f"{cols}o")
        lane = f"{cols}t"
    if min(n, width * blocking.vectors) > width:
        d.do("split", lane, width, f"{cols}v", f"{cols}l")
        inner.append(f"{cols}v")
        lanes = [f"{cols}l"]
    elif n > width:
        d.do("split", cols, width, f"{cols}o", f"{cols}l")
        outer.insert(at, f"{cols}o")
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
            for v in {"all": sums, "inner": sums[-1:], "none": []}[blocking.unroll]:
                d.do("unroll", v)
        for v in inner:
            d.do("unroll", v)
        if lanes:
            d.do("vectorize", lanes[0])
    share_out(d, work, target)
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
