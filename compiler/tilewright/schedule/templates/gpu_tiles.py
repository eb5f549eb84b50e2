"""Tiles of products on a GPU without tensor cores: which there are, what they cost.

In: the loops of a product, data-sheet values. Out: tiles. Invariant: a tile fits the output; one that cannot be
launched or would spill costs infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from tilewright.loop.rewrite import loops
from tilewright.schedule.target import Gpu
from tilewright.schedule.templates.draft import Draft
from tilewright.schedule.templates.gpu_parts import Product, Work, divisor, modelled, powers

#: Threads of a block: at least and, by default, at most.
FEWEST, MOST = 32, 256
#: Steps of the sum whose operands are in shared memory at once, for the cost of a default.
PIECE = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs per thread and threads per block, by loop."""

    each: dict[str, int]
    threads: dict[str, int]


def default_tile(d: Draft, p: Product, gpu: Gpu) -> Tile | None:
    """The cheapest of a few tiles, of equal ones the first: divisors of the loops before powers of two, whose
    last tiles overlap, and large before small. None where the output is too small for `FEWEST` threads."""
    piece = divisor(d.extent(p.sums[-1]), PIECE)
    found = [(tile_cost(d, p, t, piece, gpu), t) for t in _some(d, p)]
    cost, tile = min(found, key=lambda f: f[0])
    return tile if math.isfinite(cost) else None


def _some(d: Draft, p: Product) -> Iterator[Tile]:
    def power(n: int, most: int) -> int:
        return powers(min(n, max(most, 1)))[0]

    for largest in (divisor, power):
        for budget in (MOST, MOST // 2, MOST // 4):
            for each in ((4, 4), (2, 4), (4, 2), (2, 2), (1, 2), (1, 1)):
                yield _sized(d, p, largest, budget, *each)


def _sized(
    d: Draft, p: Product, largest: Callable[[int, int], int], budget: int, row: int, col: int
) -> Tile:
    """A tile of numbers that `largest` (extent, bound) picks: up to `row` x `col` outputs per thread."""
    names = (*p.rows, p.cols)
    each = dict.fromkeys(names, 1)
    each[p.cols] = largest(d.extent(p.cols), col)
    each[p.rows[-1]] = largest(d.extent(p.rows[-1]), row)
    threads = dict.fromkeys(names, 1)
    for v in (p.cols, *reversed(p.rows)):
        most = min(budget, 16) if v != p.rows[0] or len(p.rows) == 1 else budget
        threads[v] = largest(d.extent(v) // each[v], most)
        budget //= threads[v]
    return Tile(each, threads)


def tile_cost(d: Draft, p: Product, tile: Tile, piece: int, gpu: Gpu) -> float:
    """Modelled seconds of a product; infinite where the tile does not fit the output or the device."""
    names = (*p.rows, p.cols)
    sizes = {v: tile.each[v] * tile.threads[v] for v in names}
    if any(sizes[v] > d.extent(v) for v in names):
        return math.inf
    threads = prod(tile.threads.values())
    if threads < FEWEST:
        return math.inf
    rows, cols = prod(sizes[v] for v in p.rows), sizes[p.cols]
    each_rows, each_cols = prod(tile.each[v] for v in p.rows), tile.each[p.cols]
    steps = prod(d.extent(v) for v in p.sums)
    across, down = tile.threads[p.cols], prod(tile.threads[v] for v in p.rows)
    # a value that no thread's index moves is read once by a warp
    read = each_rows * p.a.dtype.bytes / min(across, gpu.warp)
    read += each_cols * p.b.dtype.bytes / min(down, gpu.warp)
    moved = rows * p.a.dtype.bytes + cols * p.b.dtype.bytes
    work = Work(
        blocks_of(d, p, sizes), threads, each_rows * each_cols + each_rows + each_cols, moved * piece,
        2.0 * rows * cols * steps, float(moved * steps), read * threads * steps,
    )  # fmt: skip
    return modelled(work, gpu, gpu.flops_f32)


def blocks_of(d: Draft, p: Product, sizes: Mapping[str, int]) -> int:
    """Blocks that cover the output with tiles of these sizes."""
    whole = {*p.sums, *sizes}
    outer = prod(d.extent(v) for v in loops(d.kernel.body) if v not in whole)
    return outer * prod(-(-d.extent(v) // n) for v, n in sizes.items())
