"""Register tiles by an analytic cost model.

In: the extents of a product and a `Target`. Out: tile sizes.
The model charges a tile for its multiply-adds, its loads and their latency, whichever is largest, and
for writing it out; remainders are charged what they cost, so odd extents choose odd tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tilewright.schedule.target import Target


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile: `rows` x `vectors` accumulators; `cost` in cycles for the whole problem."""

    rows: int
    vectors: int
    cost: float


def _tile_cycles(rows: int, vectors: int, depth: int, target: Target) -> float:
    """Cycles of one tile: `depth` steps of rows*vectors FMAs, plus writing the tile out."""
    fmas = rows * vectors / target.fma_per_cycle
    reads = (rows + vectors) / target.loads_per_cycle
    # Loads never overlap perfectly with arithmetic: charge a share of them on top.
    step = max(fmas, reads, target.fma_latency) + 0.1 * reads
    return depth * step + 2.0 * rows * vectors + 8.0


def most_rows(vectors: int, target: Target, by_lane: bool = False) -> int:
    """Rows that fit the registers with accumulators, one row of B and one broadcast of A; `by_lane`: a
    register of A for every row, of which several steps use a lane each."""
    if by_lane:
        return (target.registers - vectors) // (vectors + 1)
    return (target.registers - 1 - vectors) // vectors


def register_tile(
    rows: int,
    cols: int,
    depth: int,
    target: Target,
    element_bytes: int = 4,
    by_lane: bool = False,
    panels: int = 1,
) -> Tile:
    """The tile with the least modelled time for a rows x cols x depth product that fits the registers
    (see `most_rows`). Remainders are charged what they cost. The columns are cut into a multiple of `panels`
    panels, if they can be.
    """
    width = target.lanes(element_bytes)
    n_vectors = math.ceil(cols / width)
    best: Tile | None = None
    for vectors in _widths(n_vectors, panels):
        most = most_rows(vectors, target, by_lane)
        for r in range(1, min(max(most, 1), max(rows, 1)) + 1):
            cost = 0.0
            for count_r, size_r in pieces(rows, r):
                for count_v, size_v in pieces(n_vectors, vectors):
                    cost += count_r * count_v * _tile_cycles(size_r, size_v, depth, target)
            tile = Tile(r, vectors, cost)
            if best is None or cost < best.cost * 0.999 or (cost <= best.cost and r > best.rows):
                best = tile
    assert best is not None
    return best


def _widths(n_vectors: int, panels: int) -> list[int]:
    """Vectors that a tile may have, so that the number of panels is a multiple of `panels` where it can be."""
    widths = range(1, min(n_vectors, 8) + 1)
    return [v for v in widths if math.ceil(n_vectors / v) % panels == 0] or list(widths)


def pieces(n: int, size: int) -> Iterator[tuple[int, int]]:
    """n in pieces of `size`: (count, size) of the full ones and of the remainder."""
    if n // size:
        yield n // size, size
    if n % size:
        yield 1, n % size


def spatial_tile(height: int, width: int, rows: int) -> tuple[int, int]:
    """Shape (th, tw) of about `rows` pixels that wastes least on a height x width map."""
    best, best_waste = (1, min(width, rows)), math.inf
    for tw in range(1, min(width, rows) + 1):
        for th in range(1, min(height, rows // tw) + 1):
            tiles = math.ceil(width / tw) * math.ceil(height / th)
            waste = tiles * (rows + 2) - 0.001 * tw
            if waste < best_waste:
                best, best_waste = (th, tw), waste
    return best


def map_tile(
    extents: list[int],
    n: int,
    depth: int,
    target: Target,
    tile: Tile,
    by_lane: bool = False,
    panels: int = 1,
) -> Tile:
    """Choose the number of vectors again for the pixels a tile of this map really has."""
    width = target.lanes(4)
    n_vectors = math.ceil(n / width)
    best, best_cost = tile, math.inf
    for vectors in _widths(n_vectors, panels):
        most = most_rows(vectors, target, by_lane)
        if most < 1:
            continue
        th, tw = spatial_tile(extents[0], extents[1], most)
        cost = 0.0
        for ch, sh in pieces(extents[0], th):
            for cw, sw in pieces(extents[1], tw):
                for cv, sv in pieces(n_vectors, vectors):
                    cost += ch * cw * cv * _tile_cycles(sh * sw, sv, depth, target)
        if cost < best_cost * 0.999:
            best, best_cost = Tile(most, vectors, cost), cost
    return best


def tiling_cycles(
    extents: list[int], shape: tuple[int, ...], cols: int, vectors: int, depth: int, target: Target
) -> float:
    """Modelled cycles of a whole product with tiles of `shape` pixels and `vectors` vectors."""
    width = target.lanes(4)
    blocks: list[tuple[int, int]] = [(1, 1)]
    for n, size in zip(extents, shape, strict=True):
        blocks = [(c * k, s * r) for c, s in blocks for k, r in pieces(n, size)]
    cost = 0.0
    for count, pixels in blocks:
        for panels, inside in pieces(math.ceil(cols / width), vectors):
            cost += count * panels * _tile_cycles(pixels, inside, depth, target)
    return cost
