"""Products on tensor cores: tiles of 16 x 8 sums per warp, operands from shared memory.

In: an unscheduled product or convolution and a target with `[gpu]` and `mma`. Out: a trace.
Invariant: types that round more than the operator does (tf32) are used only where the target file asks for
them. A tile of 16 rows is a patch of pixels (4 x 4, 2 x 8, ...); where patches or columns do not divide
the output, the last ones start early, so that nothing in the loops depends on a border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product as pairs
from math import prod

from tilewright.loop import mma
from tilewright.loop.ir import Kernel
from tilewright.loop.rewrite import loops
from tilewright.schedule.target import Gpu, Target
from tilewright.schedule.templates.draft import Draft, weights_of
from tilewright.schedule.templates.gpu_parts import (
    Product,
    Work,
    cut,
    modelled,
    powers,
    product_of,
    shared_bytes,
    widen_sums,
)
from tilewright.schedule.templates.gpu_tiles import blocks_of
from tilewright.schedule.trace import Trace

#: Tiles of 16 rows, and columns, that one block computes at most.
MOST_TILES, MOST_COLS = 4, 64
#: Bytes of each operand's rows that a block holds at once, and that a thread copies at a time.
PIECE, COPY = 64, 16


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to cut a product.

    patch   rows of one tile along each row loop: 16 in all
    tiles   tiles of a block along each row loop
    cols    columns of a block
    depth   steps of the sum that one instruction adds; `piece`: those in shared memory at once
    """

    patch: tuple[int, ...]
    tiles: tuple[int, ...]
    cols: int
    depth: int
    piece: int


def tensor_cores(kernel: Kernel, target: Target) -> Trace | None:
    """The default schedule on tensor cores; None where they cannot compute a product, or it is too small."""
    found = default_plan(kernel, target)
    if found is None or target.gpu is None:
        return None
    d = plan_draft(kernel, *found)
    return d.trace if shared_bytes(d.kernel) <= target.gpu.shared_block else None


def default_plan(kernel: Kernel, target: Target) -> tuple[Product, Plan] | None:
    """The product that a kernel is and how to cut it by default; None where tensor cores do not apply."""
    gpu = target.gpu
    p = product_of(kernel)
    if gpu is None or p is None or mma.sum_type(p.a.dtype, p.b.dtype) is None:
        return None
    if mma.kind(p.a.dtype) not in gpu.mma:
        return None
    plan = _planned(Draft(kernel), p, gpu)
    return None if plan is None else (p, plan)


# ---------------------------------------------------------------- how to cut


def _planned(d: Draft, p: Product, gpu: Gpu) -> Plan | None:
    """The cheapest of plans with large and with small tiles, of equal ones the larger."""
    length = d.extent(p.sums[-1])
    depth = next((n for n in mma.depths(p.a.dtype) if length % n == 0), 0)
    sizes = tuple(d.extent(v) for v in p.rows)
    patch = next(iter(patches(sizes)), None)
    if not depth or patch is None or d.extent(p.cols) < mma.COLS:
        return None
    piece = next(n for n in powers(PIECE // p.a.dtype.bytes, depth) if length % n == 0)
    plans = [
        Plan(patch, _tiles(sizes, patch, tiles), _cols(d.extent(p.cols), cols), depth, piece)
        for tiles in powers(MOST_TILES)
        for cols in powers(MOST_COLS, mma.COLS)
    ]
    return min(plans, key=lambda plan: plan_cost(d, p, plan, gpu))


def patches(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All patches of 16 pixels: those with the fewest computed twice first, long rows where that is equal."""
    fitting = [
        patch
        for patch in pairs(powers(mma.ROWS), repeat=len(sizes))
        if prod(patch) == mma.ROWS and all(n <= s for n, s in zip(patch, sizes, strict=True))
    ]
    return sorted(fitting, key=lambda c: (_covered(sizes, c), c))


def _tiles(sizes: tuple[int, ...], patch: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Patches per block: many, and few pixels computed twice."""

    def cost(tiles: tuple[int, ...]) -> tuple[float, int]:
        covered = _covered(sizes, tuple(n * t for n, t in zip(patch, tiles, strict=True)))
        return covered * (1 + 0.5 / prod(tiles)), -tiles[
            -1
        ]  # a larger tile reads its operands less often

    fitting = [
        tiles
        for tiles in pairs(powers(most), repeat=len(sizes))
        if prod(tiles) <= most
        and all(n * t <= s for n, t, s in zip(patch, tiles, sizes, strict=True))
    ]
    return min(fitting, key=cost)


def _cols(n: int, most: int) -> int:
    """Columns per block, by the same rule."""
    fitting = powers(min(n, most), mma.COLS)
    return min(fitting, key=lambda c: -(-n // c) * c * (1 + 0.5 * mma.COLS / c))


def _covered(sizes: tuple[int, ...], tile: tuple[int, ...]) -> int:
    return prod(-(-s // t) * t for s, t in zip(sizes, tile, strict=True))


# ---------------------------------------------------------------- the steps


def plan_draft(kernel: Kernel, p: Product, plan: Plan) -> Draft:
    """The schedule of a plan; `ScheduleError` where tiles do not fit the output."""
    d = Draft(kernel)
    widen_sums(d)
    _pack(d, p)
    blocks = [v for v in loops(kernel.body) if v not in {*p.rows, *p.sums, p.cols}]
    fragments: list[str] = []
    tiles: list[str] = []
    for v, n, t in zip(p.rows, plan.patch, plan.tiles, strict=True):
        cut(d, v, n, t, blocks, tiles, fragments)
    columns: list[str] = []
    eight: list[str] = []
    cut(d, p.cols, mma.COLS, plan.cols // mma.COLS, blocks, columns, eight)
    d.do("reorder", [*blocks, *tiles, *columns, *fragments, *eight])
    (row,) = _one(d, fragments, "row")
    warps: list[str] = []
    inner: list[str] = []
    for v in (*_one(d, tiles, "tile"), *columns):
        _warps(d, v, warps, inner)
    d.do("reorder", [*warps, *inner, row, *eight])
    d.do("stage", [*warps, *inner, row, *eight])
    pieces, steps = _summed(d, p, plan)
    k = steps[-1]
    d.do("reorder", [*pieces, *warps, *steps[:-1], *inner, row, *eight, k])
    d.do("tensorize_mma", row, eight[0], k, "lane", "held")
    d.do("reorder", [*pieces, *warps, "lane", *steps[:-1], *inner])
    for v in blocks:
        d.do("bind", v, "block")
    for v in (*warps, "lane"):
        d.do("bind", v, "thread")
    _share(d, p, next(iter([*reversed(pieces), *reversed(blocks)]), None), [*warps, "lane"])
    for v in (*inner, "held", *steps[:-1]):
        d.do("unroll", v)
    return d


def _one(d: Draft, names: list[str], name: str) -> list[str]:
    """Neighbouring loops as one, if there are any."""
    if len(names) < 2:
        return names
    d.do("fuse", names[0], names[1], name)
    return _one(d, [name, *names[2:]], f"{name}_")


def _warps(d: Draft, v: str, warps: list[str], inner: list[str]) -> None:
    """Tiles of a block along one loop: two warps where each has two or more."""
    n = d.extent(v)
    if n < 4:
        inner.append(v)
        return
    d.do("split", v, n // 2, f"{v}w", f"{v}m")
    warps.append(f"{v}w")
    inner.append(f"{v}m")


def _summed(d: Draft, p: Product, plan: Plan) -> tuple[list[str], list[str]]:
    """Loops over pieces of the sum, and those within one; the last is what an instruction adds."""
    last = p.sums[-1]
    pieces, inside = list(p.sums[:-1]), last
    if plan.piece < d.extent(last):
        inside = f"{last}i"
        d.do("split", last, plan.piece, f"{last}o", inside)
        pieces.append(f"{last}o")
    if plan.depth == plan.piece:
        return pieces, [inside]
    d.do("split", inside, plan.depth, f"{last}q", f"{last}d")
    return pieces, [f"{last}q", f"{last}d"]


def _pack(d: Draft, p: Product) -> None:
    """Constant weights with the innermost sum side by side, as registers want them."""
    found = weights_of(d.kernel, p.cols, p.sums)
    if found is not None and found[0] == p.b.buffer and found[2]:
        *outer, last = found[2]
        d.try_("pack", p.b.buffer, [[i, 0, "whole"] for i in (*outer, found[1], last)])


def _share(d: Draft, p: Product, where: str | None, threads: list[str]) -> None:
    """Operands by way of shared memory; rows are 16 bytes longer, so that a column meets all banks."""
    if where is None:
        return
    for x in (p.a, p.b):
        size = x.dtype.bytes
        for width in powers(COPY // size):
            count = prod(d.extent(v) for v in threads)
            if d.try_("share", x.buffer, where, count, width, COPY // size):
                break


# ---------------------------------------------------------------- what it costs


def plan_cost(d: Draft, p: Product, plan: Plan, gpu: Gpu) -> float:
    """Modelled seconds of a plan; infinite where its tiles do not fit the output or the device."""
    sizes = {v: n * t for v, n, t in zip(p.rows, plan.patch, plan.tiles, strict=True)}
    sizes[p.cols] = plan.cols
    if any(n > d.extent(v) for v, n in sizes.items()) or plan.piece % plan.depth:
        return math.inf
    rows, size = prod(sizes[v] for v in p.rows), p.a.dtype.bytes
    warps = (2 if prod(plan.tiles) >= 4 else 1) * (2 if plan.cols // mma.COLS >= 4 else 1)
    tiles = rows // mma.ROWS * (plan.cols // mma.COLS) // warps
    steps = prod(d.extent(v) for v in p.sums)
    moved = (rows + plan.cols) * size
    fragments = steps * size * (mma.ROWS + mma.COLS) * tiles * warps
    work = Work(
        blocks_of(d, p, sizes), warps * mma.LANES, (mma.HELD + 2) * tiles + 16,
        moved // size * (plan.piece * size + 16), 2.0 * rows * plan.cols * steps, float(moved * steps),
        float(fragments),
    )  # fmt: skip
    return modelled(work, gpu, gpu.flops_mma)
