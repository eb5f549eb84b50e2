"""Weights that the next block of a product reads, asked for while the tiles of this one are computed.

In: an innermost loop that runs along a constant in memory, the loops around it. Out: where to prefetch, as
index forms of these loops. Invariant: a hint; no result depends on it, so the loop IR does not know it.

A product runs along a block of packed weights once for each tile of pixels. The first time the block comes
from the last level of cache or from memory, and the multiply-adds wait; all later times it is in the second
level and the memory waits. So each of the R tiles asks for its share, one R-th, of the block that comes next:

    for panel: for tile in R: for k in K:      weights[panel, k, 0..step)
      also: prefetch weights[panel + 1] + (tile * K + k) * step / R
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tilewright.core.index import Ix, coefficient, ix, substitute, variables
from tilewright.loop.ir import Block, Dot, For, Load, Store
from tilewright.loop.rewrite import expressions, loads, parts, walk

#: Constants of fewer bytes are in the caches soon enough.
MIN_BYTES = 1 << 16
#: With so many tiles per block, waiting for the first one is nothing.
MAX_TILES = 64


@dataclass(frozen=True, slots=True)
class Stream:
    """A constant that a loop runs along: the element offset of a load, bytes in all and of an element."""

    offset: Ix
    size: int
    element: int


@dataclass(frozen=True, slots=True)
class Hint:
    """Prefetch `lines` cache lines from element `at` on."""

    at: Ix
    lines: int


def inner_loads(block: Block) -> Iterator[Load]:
    """Loads of a block that is all stores under unrolled and vector loops; none of any other block."""
    inside = list(walk(block))
    if not all(isinstance(s, Store) or (isinstance(s, For) and s.kind != "serial") for s in inside):
        return
    for e in expressions(block):
        yield from loads(e)


def _inner_extents(block: Block) -> dict[str, int]:
    """Extents of what moves within one iteration: loops, and variables that dot products bind."""
    found = {s.var: s.extent.const for s in walk(block) if isinstance(s, For)}
    for e in expressions(block):
        found |= {x.var: x.extent for x in parts(e) if isinstance(x, Dot)}
    return found


def hint(loop: For, nest: Sequence[tuple[str, int]], stream: Stream, line: int) -> Hint | None:
    """What an iteration of `loop`, the last of `nest` (outermost first, with extents), should ask for."""
    inner = _inner_extents(loop.body)
    offset = stream.offset
    step = coefficient(offset, loop.var)
    if stream.size < MIN_BYTES or not step or step < 0:
        return None
    spread = [(coefficient(offset, v), n) for v, n in inner.items()]
    if any(c is None or c < 0 for c, _ in spread):
        return None
    if 1 + sum((c or 0) * (n - 1) for c, n in spread) > step:
        return None  # iterations overlap or lie far apart: no stream
    block, position = 1, Ix(0)  # in iterations of `loop`
    tiles, tile, following = 1, Ix(0), 0
    for var, n in reversed(nest):
        c = coefficient(offset, var)
        if c is None or c < 0:
            return None
        if c == 0:
            tile, tiles = tile + ix(var) * tiles, tiles * n
        elif tiles > 1:
            following = c
            break
        elif c == block * step:
            position, block = position + ix(var) * block, block * n
        else:
            return None
    if not 1 < tiles <= min(MAX_TILES, step):
        return None
    share = -(-step // tiles)
    first = substitute(
        offset, dict.fromkeys(inner, Ix(0)) | dict.fromkeys(variables(position), Ix(0))
    )
    at = first + (following or block * step) + (tile * block + position) * share
    return Hint(at, -(-share * stream.element // line))
