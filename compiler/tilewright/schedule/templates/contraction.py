"""Matrix products and convolutions: accumulators in registers, vectors along output channels.

In: an unscheduled kernel (loop names as the operator files define them). Out: a trace that packs the
constant operand into panels, tiles the output, keeps the tile in registers and runs panels on threads;
or the space of such traces, of which the default is one point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel
from tilewright.loop.rewrite import loops
from tilewright.schedule.space import Choice, Space, Value, upto
from tilewright.schedule.target import Target
from tilewright.schedule.templates import mcu
from tilewright.schedule.templates.byte_matrix import byte_matrix, byte_matrix_space
from tilewright.schedule.templates.dots import BLOCK, RUN, dot_loop
from tilewright.schedule.templates.draft import (
    Draft,
    pack_panels,
    parallelize_outer,
    share_out,
    volume,
    weights_of,
)
from tilewright.schedule.templates.rows import row_reduction
from tilewright.schedule.templates.tiles import (
    Tile,
    map_tile,
    most_rows,
    register_tile,
    spatial_tile,
    tiling_cycles,
)
from tilewright.schedule.trace import Trace

#: So many panels keep two threads equally busy, whether or not their number is even.
MANY_PANELS = 8
#: What an even number of them may cost one thread.
EVEN_COST = 1.05
#: Iterations of a sum in parts that pay for keeping the sums of a tile in memory in between.
MIN_PART = 64
#: Bytes of sums that may lie in memory, on the stack of a thread.
MAX_HELD = 1 << 16


def product(kernel: Kernel, target: Target) -> Trace:
    """Matrix product with loops b0.., m, n and reduction k."""
    if mcu.applies(kernel, target):
        return mcu.dot_product(kernel, target, ["m"], "n", ["k"])
    found = loops(kernel.body)
    if "n" not in found:
        return row_reduction(kernel, target)
    return contraction(kernel, target, ["m"], "n", ["k"], weights_of(kernel, "n", ["k"]))


def product_space(kernel: Kernel, target: Target) -> Space | None:
    """The schedules of a matrix product; None where another template than ours applies."""
    if mcu.applies(kernel, target):
        return mcu.dot_space(kernel, target, ["m"], "n", ["k"])
    if target.family == "cuda" or "n" not in loops(kernel.body):
        return None
    return contraction_space(kernel, target, ["m"], "n", ["k"], weights_of(kernel, "n", ["k"]))


def channels_last_space(kernel: Kernel, target: Target) -> Space | None:
    """The schedules of a convolution with channels last; None where another template than ours applies."""
    sums = _sums(kernel)
    if mcu.applies(kernel, target):
        return mcu.dot_space(kernel, target, ["oh", "ow"], "co", sums)
    if target.family == "cuda" or "co" not in loops(kernel.body):
        return None
    weights = weights_of(kernel, "co", sums)
    group = loops(kernel.body)["g"].extent.const if "g" in loops(kernel.body) else 1
    return contraction_space(kernel, target, ["oh", "ow"], "co", sums, weights, group)


def channels_last(kernel: Kernel, target: Target) -> Trace:
    """Convolution with channels last, loops n, g, oh, ow, co and reductions kh, kw, ci."""
    sums = _sums(kernel)
    if mcu.applies(kernel, target):
        return mcu.dot_product(kernel, target, ["oh", "ow"], "co", sums)
    if "co" not in loops(kernel.body):
        return row_reduction(kernel, target)
    weights = weights_of(kernel, "co", sums)
    group = loops(kernel.body)["g"].extent.const if "g" in loops(kernel.body) else 1
    return contraction(kernel, target, ["oh", "ow"], "co", sums, weights, group)


def _sums(kernel: Kernel) -> list[str]:
    """Loops of a convolution's sum, outermost first."""
    return [v for v in loops(kernel.body) if v in ("kh", "kw", "ci")]


def phases(kernel: Kernel, target: Target) -> Trace:
    """Several nests in a row, each a small convolution (transposed convolution by phases)."""
    if target.lanes(4) == 1:
        return mcu.phases(kernel)
    d = Draft(kernel)
    packed: set[str] = set()
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names, sums = _nest_and_sums(top)
        cols = next((v for v in names if v.split("_")[0] == "co"), None)
        if cols is None or not sums:
            continue
        rows = [v for v in names if v.split("_")[0] in ("oh", "ow")]
        weights = weights_of(Kernel(kernel.name, kernel.params, (top,)), cols, sums)
        if weights is not None and weights[0] in packed:
            weights = None
        elif weights is not None:
            packed.add(weights[0])
        tiling = _default_tiling(d, target, rows, cols, sums, len(sums))
        _tile(d, tiling, names, rows, cols, sums, weights, len(sums))
    parallelize_outer(d, volume(kernel))
    return d.trace


def _nest_and_sums(top: For) -> tuple[list[str], list[str]]:
    """Perfectly nested output loops, then the loops found inside the innermost of them."""
    names = [top.var]
    f = top
    while len(f.body) == 1 and isinstance(f.body[0], For):
        f = f.body[0]
        names.append(f.var)
    return names, list(loops(f.body))


def contraction(
    kernel: Kernel,
    target: Target,
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    group: int = 1,
) -> Trace:
    """Register-tiled product, vectors along `cols`, accumulators in registers.

    rows       loops of output pixels, outermost first (one or two of them exist)
    cols       loop of output channels, innermost of the output loops
    reduction  loops of the sum, outermost first
    weights    (buffer, its dim along cols, its other dims in reduction order) if constant
    """
    squares = byte_matrix(kernel, target, rows, cols, reduction, weights)
    if squares is not None:
        return squares
    dots = dot_loop(kernel, target, _present(Draft(kernel), reduction), weights)
    tiling = _default_tiling(Draft(kernel), target, rows, cols, reduction, dots=dots)
    return _contraction(kernel, target, tiling, rows, cols, reduction, weights, group)


@dataclass(frozen=True, slots=True)
class Tiling:
    """A point of the space.

    shape    pixels of a tile per loop of `rows` that exists
    vectors  vectors of output channels per tile
    lanes    elements per vector
    band     0: all tiles of a panel of channels, then the next panel (the panel stays in cache); else
             all panels of a band of this many tiles along the outermost row loop (the pixels stay)
    steps    iterations of the innermost sum that are spelled out
    part     0: every tile sums from beginning to end; else all tiles of a panel go through the weights of
             this many iterations of the innermost sum before any goes on, and sums lie in memory in between
    dots     loop of the sum of which four iterations at a time are a dot product; empty: none
    """

    shape: tuple[int, ...]
    vectors: int
    lanes: int
    band: int = 0
    steps: int = 1
    dots: str = ""
    part: int = 0


def _default_tiling(
    d: Draft,
    target: Target,
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    taps: int = 1,
    dots: str = "",
) -> Tiling:
    """The tile with the least modelled time; `taps` reduction loops stand side by side."""
    sums = [d.extent(v) for v in reduction if d.has(v)]
    depth = max(1, math.prod(sums) if taps == 1 else sum(sums)) // (RUN if dots else 1)
    n = d.extent(cols)
    extents = [d.extent(v) for v in rows if d.has(v)]
    by_lane = _by_lane(dots, sums, target)

    def best(panels: int) -> Tile:
        found = register_tile(math.prod(extents), n, depth, target, 4, by_lane, panels)
        if len(extents) != 2:
            return found
        return map_tile(extents, n, depth, target, found, by_lane, panels)

    tile = best(1)
    weights = depth * n * 4
    if weights > target.l2_bytes // 2:  # threads share out panels, lest each reads all weights
        pair = best(2)
        few = math.ceil(n / (tile.vectors * target.lanes(4))) < MANY_PANELS
        tile = pair if few and pair.cost <= EVEN_COST * tile.cost else tile
    shape: tuple[int, ...] = ()
    if len(extents) == 2:
        shape = spatial_tile(extents[0], extents[1], tile.rows)
    elif extents:
        shape = (min(tile.rows, extents[0]),)
    part = 0
    if taps == 1 and sums and not dots:
        part = _default_part(extents, shape, min(n, tile.vectors * target.lanes(4)), sums, target)
    return Tiling(shape, tile.vectors, target.lanes(4), dots=dots, part=part)


def _default_part(
    extents: Sequence[int], shape: Sequence[int], nr: int, sums: Sequence[int], target: Target
) -> int:
    """Iterations of the innermost sum whose weights stay in a small part of the second-level cache, next to pixels and
    the weights on their way for later, where those of a whole panel do not; 0 where they do, or where the sums of
    all pixels do not."""
    row, tiles = 4 * nr, math.prod(-(-e // s) for e, s in zip(extents, shape, strict=True))
    panel, held = math.prod(sums) * row, math.prod(extents) * row
    if tiles == 1 or 3 * panel <= target.l2_bytes or held > min(target.l2_bytes // 16, MAX_HELD):
        return 0
    fit = [
        p
        for p in range(MIN_PART, sums[-1] + 1)
        if sums[-1] % p == 0 and 8 * p * row <= target.l2_bytes
    ]
    return max(fit, default=0)


def _by_lane(dots: str, sums: Sequence[int], target: Target) -> bool:
    """Whether dot products name shared words by their lane in a vector that was loaded whole."""
    return bool(dots) and "sdot" in target.dot and sums[-1] % BLOCK == 0


def _present(d: Draft, names: Sequence[str]) -> list[str]:
    return [v for v in names if d.has(v)]


def _contraction(
    kernel: Kernel,
    target: Target,
    tiling: Tiling,
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    group: int,
) -> Trace:
    """One nest with the given tiling."""
    d = Draft(kernel)
    names = list(loops(kernel.body))
    work = math.prod(d.extent(v) for v in names)
    nest = [v for v in names if v not in reduction]
    _tile(d, tiling, nest, rows, cols, reduction, weights, group=group)
    share_out(d, work, target, move=True)
    return d.trace


def contraction_space(
    kernel: Kernel,
    target: Target,
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    group: int = 1,
) -> Space:
    """All tilings of a product (see `Tiling`); arguments as for `contraction`."""
    squares = byte_matrix_space(kernel, target, rows, cols, reduction, weights)
    if squares is not None:
        return squares
    d = Draft(kernel)
    dots = dot_loop(kernel, target, _present(d, reduction), weights)
    start = _default_tiling(d, target, rows, cols, reduction, dots=dots)
    extents = [d.extent(v) for v in rows if d.has(v)]
    sums = [d.extent(v) for v in reduction if d.has(v)]
    by_lane = _by_lane(dots, sums, target)
    n, width = d.extent(cols), target.lanes(4)
    params: dict[str, tuple[Value, ...]] = {
        f"tile{i}": upto(e, *range(1, min(target.registers, e) + 1)) for i, e in enumerate(extents)
    }
    params["vectors"] = upto(max(1, math.ceil(n / min(width, 4))), *range(1, 9))
    params["lanes"] = tuple(w for w in (width, width // 2, width // 4) if w >= 4) or (width,)
    params["band"] = (
        upto(math.ceil(extents[0] / start.shape[0]), 0, 1, 2, 4, 8) if extents else (0,)
    )
    params["steps"] = upto(sums[-1], 1, 2, 4, 8) if sums and not dots else (1,)
    parts = [p for p in (64, 128, 256, 512) if sums and not dots and sums[-1] % p == 0]
    params["part"] = (0, *parts)
    default: dict[str, Value] = {f"tile{i}": s for i, s in enumerate(start.shape)}
    default.update(vectors=start.vectors, lanes=start.lanes, band=0, steps=1, part=start.part)

    narrow = {w: replace(target, vector_bytes=4 * int(w)) for w in params["lanes"]}

    def tiling(choice: Choice) -> Tiling:
        shape = tuple(int(choice[f"tile{i}"]) for i in range(len(extents)))
        vectors, lanes, band, steps, part = (
            int(choice[k]) for k in ("vectors", "lanes", "band", "steps", "part")
        )
        return Tiling(shape, vectors, lanes, band, steps, dots, part)

    def build(choice: Choice) -> Trace:
        t = tiling(choice)
        if math.prod(t.shape) > max(most_rows(t.vectors, target, by_lane), 1):
            raise ScheduleError(f"a tile of {t.shape} x {t.vectors} vectors spills")
        return _contraction(kernel, target, t, rows, cols, reduction, weights, group)

    def cost(choice: Choice) -> float:
        t = tiling(choice)
        if math.prod(t.shape) > max(most_rows(t.vectors, target, by_lane), 1):
            return math.inf
        depth = max(1, math.prod(sums)) // (RUN if dots else 1)
        return tiling_cycles(extents, t.shape, n, t.vectors, depth, narrow[t.lanes])

    return Space("contraction", params, default, build, cost)


def _tile(
    d: Draft,
    tiling: Tiling,
    names: Sequence[str],
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    taps: int = 1,
    group: int = 1,
) -> None:
    """Tile one nest of output loops `names`; `taps` reduction loops stand side by side in it."""
    width = tiling.lanes
    sums = [v for v in reduction if d.has(v)]
    n = d.extent(cols)
    present = [v for v in rows if d.has(v)]
    nr = tiling.vectors * width
    if weights is not None:
        span = nr if group == 1 or n % nr == 0 else n
        batch = [v for v in names if v not in {*rows, cols}]
        pack_panels(d, weights, batch, span, RUN if tiling.dots else 0)
    inner: list[str] = []
    outer: list[str] = []
    for var, size in zip(present, tiling.shape, strict=True):
        d.tile(var, size, outer, inner)
    head = [v for v in names if d.has(v) and v not in {*present, cols}]
    lane = cols
    if n > nr:
        d.do("split", cols, nr, f"{cols}o", f"{cols}t")
        outer.insert(_panel_loop(d, tiling.band, outer), f"{cols}o")
        lane = f"{cols}t"
    if min(n, nr) > width:
        d.do("split", lane, width, f"{cols}v", f"{cols}l")
        inner.append(f"{cols}v")
        lane = f"{cols}l"
    nest = [*inner, lane]
    d.do("reorder", [*head, *outer, *nest])
    tiles = [v for v in outer if v != f"{cols}o"]
    if tiling.part and sums and tiles:
        if tiling.band or tiling.steps > 1:
            raise ScheduleError("a sum in parts goes panel by panel, and is not spelled out")
        d.do("stage", [*tiles, *nest])
        _in_parts(d, tiling.part, sums, tiles, nest)
    else:
        d.do("stage", nest)
        if taps == 1 and sums:
            sums, four = _runs(d, sums) if tiling.dots else (_spell_out(d, sums, tiling.steps), [])
            d.do("reorder", [*sums, *nest, *four])
            for v in four:
                d.do("tensorize", v)
        else:
            for v in sums:
                d.do("reorder", [v, *nest])
    few = bool(tiling.dots and sums) and d.extent(sums[-1]) <= BLOCK // RUN
    if sums and (tiling.steps > 1 or few):  # a sum of one dot product has no loop left
        d.do("unroll", sums[-1])
    for v in inner:
        d.do("unroll", v)
    d.do("vectorize", lane)


def _in_parts(d: Draft, part: int, sums: list[str], tiles: list[str], nest: list[str]) -> None:
    """All tiles go through `part` iterations of the innermost sum before any goes on."""
    *before, last = sums
    if d.extent(last) % part:
        raise ScheduleError(f"parts of {part} do not divide the {d.extent(last)} of `{last}`")
    if part < d.extent(last):
        d.do("split", last, part, f"{last}o", f"{last}p")
        before, last = [*before, f"{last}o"], f"{last}p"
    d.do("reorder", [*before, *tiles, last, *nest])
    d.do("hold", last)


def _panel_loop(d: Draft, band: int, outer: list[str]) -> int:
    """Where the loop over panels goes among the outer loops; splits the first of them into bands."""
    if band == 0 or not outer:
        return 0
    if band > 1 and band < d.extent(outer[0]):
        first = outer[0]
        d.do("split", first, band, f"{first}b", f"{first}s")
        outer[:1] = [f"{first}b", f"{first}s"]
    elif band > 1:
        return 0
    return 1


def _spell_out(d: Draft, sums: list[str], steps: int) -> list[str]:
    """Split the innermost sum so that its last loop has `steps` iterations, where that comes out even."""
    n = d.extent(sums[-1])
    if steps in (1, n):
        return sums
    if n % steps:
        raise ScheduleError(f"{steps} steps do not divide the {n} of `{sums[-1]}`")
    d.do("split", sums[-1], steps, f"{sums[-1]}o", f"{sums[-1]}u")
    return [*sums[:-1], f"{sums[-1]}o", f"{sums[-1]}u"]


def _runs(d: Draft, sums: list[str]) -> tuple[list[str], list[str]]:
    """(loops of the sum, the one whose iterations become a dot product)."""
    last = sums[-1]
    outer = sums[:-1]
    if d.extent(last) % BLOCK == 0 and d.extent(last) > BLOCK:
        d.do("split", last, BLOCK, f"{last}o", f"{last}b")
        outer, last = [*outer, f"{last}o"], f"{last}b"
    if d.extent(last) == RUN:
        return outer, [last]
    d.do("split", last, RUN, f"{last}u", f"{last}q")
    return [*outer, f"{last}u"], [f"{last}q"]
