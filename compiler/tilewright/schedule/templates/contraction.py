"""Matrix products and convolutions: accumulators in registers, vectors along output channels.

In: an unscheduled kernel (loop names as the operator files define them). Out: a trace that packs the
constant operand into panels, tiles the output, keeps the tile in registers and runs panels on threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tilewright.loop.ir import For, Kernel
from tilewright.loop.rewrite import loops
from tilewright.schedule.target import Target
from tilewright.schedule.templates import mcu
from tilewright.schedule.templates.draft import Draft, parallelize_outer, volume, weights_of
from tilewright.schedule.templates.rows import row_reduction
from tilewright.schedule.templates.tiles import map_tile, register_tile, spatial_tile
from tilewright.schedule.trace import Trace


def product(kernel: Kernel, target: Target) -> Trace:
    """Matrix product with loops b0.., m, n and reduction k."""
    if mcu.applies(kernel, target):
        return mcu.dot_product(kernel, target, ["m"], "n", ["k"])
    found = loops(kernel.body)
    if "n" not in found:
        return row_reduction(kernel, target)
    return contraction(kernel, target, ["m"], "n", ["k"], weights_of(kernel, "n", ["k"]))


def convolution(kernel: Kernel, target: Target) -> Trace:
    """Convolution with loops n, g, oh, ow, co and reductions kh, kw, ci."""
    sums = ["kh", "kw", "ci"]
    if mcu.applies(kernel, target):
        return mcu.dot_product(kernel, target, ["oh", "ow"], "co", sums)
    if "co" not in loops(kernel.body):
        return row_reduction(kernel, target)
    weights = weights_of(kernel, "co", sums)
    group = loops(kernel.body)["g"].extent.const if "g" in loops(kernel.body) else 1
    return contraction(kernel, target, ["oh", "ow"], "co", sums, weights, group)


def phases(kernel: Kernel, target: Target) -> Trace:
    """Several nests in a row, each a small convolution (transposed convolution by phases)."""
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
        _tile(d, target, names, rows, cols, sums, weights, len(sums))
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
    d = Draft(kernel)
    names = list(loops(kernel.body))
    work = math.prod(d.extent(v) for v in names)
    nest = [v for v in names if v not in reduction]
    _tile(d, target, nest, rows, cols, reduction, weights, group=group)
    parallelize_outer(d, work)
    return d.trace


def _tile(
    d: Draft,
    target: Target,
    names: Sequence[str],
    rows: Sequence[str],
    cols: str,
    reduction: Sequence[str],
    weights: tuple[str, int, Sequence[int]] | None,
    taps: int = 1,
    group: int = 1,
) -> None:
    """Tile one nest of output loops `names`; `taps` reduction loops stand side by side in it."""
    width = target.lanes(4)
    sums = [v for v in reduction if d.has(v)]
    depth = max(1, math.prod(d.extent(v) for v in sums) if taps == 1 else sum(map(d.extent, sums)))
    n = d.extent(cols)
    present = [v for v in rows if d.has(v)]
    extents = [d.extent(v) for v in present]
    tile = register_tile(math.prod(extents), n, depth, target)
    shape: tuple[int, ...] = ()
    if len(present) == 2:
        tile = map_tile(extents, n, depth, target, tile)
        shape = spatial_tile(extents[0], extents[1], tile.rows)
    elif present:
        shape = (min(tile.rows, extents[0]),)
    nr = tile.vectors * width
    if weights is not None:
        buffer, along, rest = weights
        span = nr if group == 1 or n % nr == 0 else n
        dims = [[along, span, "outer"], *[[r, 0, "whole"] for r in rest], [along, span, "inner"]]
        d.do("pack", buffer, dims)
    inner: list[str] = []
    outer: list[str] = []
    for var, size in zip(present, shape, strict=True):
        if size == 1:
            outer.append(var)
        elif size < d.extent(var):
            d.do("split", var, size, f"{var}o", f"{var}i")
            outer.append(f"{var}o")
            inner.append(f"{var}i")
        else:
            inner.append(var)
    head = [v for v in names if d.has(v) and v not in {*present, cols}]
    lane = cols
    if n > nr:
        d.do("split", cols, nr, f"{cols}o", f"{cols}t")
        outer.insert(0, f"{cols}o")
        lane = f"{cols}t"
    if min(n, nr) > width:
        d.do("split", lane, width, f"{cols}v", f"{cols}l")
        inner.append(f"{cols}v")
        lane = f"{cols}l"
    nest = [*inner, lane]
    d.do("reorder", [*head, *outer, *nest])
    d.do("stage", nest)
    if taps == 1 and sums:
        d.do("reorder", [*sums, *nest])
    else:
        for v in sums:
            d.do("reorder", [v, *nest])
    for v in inner:
        d.do("unroll", v)
    d.do("vectorize", lane)
