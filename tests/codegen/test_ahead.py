"""Prefetching of weights: what is asked for while a block is used is the block that comes next."""

from __future__ import annotations

from itertools import product as points

import pytest
from loop_helpers import matmul

from tilewright.codegen.ahead import Stream, hint
from tilewright.codegen.kernel import emit_kernel
from tilewright.core.dtypes import F32, I8, I32
from tilewright.core.index import Ix, evaluate, ix, variables
from tilewright.loop.builder import const
from tilewright.loop.ir import Cast, Dot, For, Load, Store
from tilewright.schedule.target import load_target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import apply

LINE = 64


def inner(var: str, count: int, lanes: int) -> For:
    """A loop of a sum over one vector of `lanes` accumulators."""
    store = Store("acc", (ix("l"),), const(0, F32))
    return For(var, Ix(count), (For("l", Ix(lanes), (store,), "vector"),))


@pytest.mark.parametrize(
    ("tiles", "depth", "lanes"), [(4, 64, 32), (7, 50, 48), (3, 9, 16), (16, 64, 16)]
)
def test_all_of_the_next_block_and_little_else(tiles: int, depth: int, lanes: int) -> None:
    block = depth * lanes
    nest = [("panel", 5), ("tile", tiles), ("k", depth)]
    offset = ix("panel") * block + ix("k") * lanes + ix("l")
    found = hint(inner("k", depth, lanes), nest, Stream(offset, 5 * block * 400, 4), LINE)
    assert found is not None
    asked: set[int] = set()
    for tile, k in points(range(tiles), range(depth)):
        first = evaluate(found.at, {"panel": 2, "tile": tile, "k": k}) * 4
        asked |= {(first + i * LINE) // LINE for i in range(found.lines)}
    wanted = set(range(3 * block * 4 // LINE, 4 * block * 4 // LINE))
    assert wanted <= asked
    assert max(asked) <= (4 * block + tiles * depth) * 4 // LINE + found.lines


def test_blocks_of_a_sum_follow_each_other() -> None:
    """Where the sum itself is in blocks, the next block is that of the same panel."""
    nest = [("panel", 5), ("block", 3), ("tile", 4), ("k", 8)]
    offset = ix("panel") * 768 + ix("block") * 256 + ix("k") * 32 + ix("l")
    found = hint(inner("k", 8, 32), nest, Stream(offset, 1 << 20, 4), LINE)
    assert found is not None
    at = evaluate(found.at, {"panel": 1, "block": 1, "tile": 0, "k": 0})
    assert at == 768 + 2 * 256


@pytest.mark.parametrize(
    ("nest", "offset", "size"),
    [
        (
            [("panel", 5), ("k", 8)],
            ix("panel") * 256 + ix("k") * 32 + ix("l"),
            1 << 20,
        ),  # used once
        (
            [("panel", 5), ("tile", 900), ("k", 8)],
            ix("panel") * 256 + ix("k") * 32 + ix("l"),
            1 << 20,
        ),
        (
            [("panel", 5), ("tile", 4), ("k", 8)],
            ix("panel") * 256 + ix("k") * 32 + ix("l"),
            1 << 10,
        ),
        ([("panel", 5), ("tile", 4), ("k", 8)], ix("panel") * 32 + ix("k") * 8 + ix("l"), 1 << 20),
    ],
    ids=["one tile", "many tiles", "small", "overlapping"],
)
def test_nothing_where_it_cannot_gain(nest: list[tuple[str, int]], offset: Ix, size: int) -> None:
    assert hint(inner("k", 8, 32), nest, Stream(offset, size, 4), LINE) is None


@pytest.mark.parametrize(("name", "asks"), [("x86-64-v4", True), ("cortex-a76", False)])
def test_only_where_the_target_says_so(name: str, asks: bool) -> None:
    kernel, target = matmul(49, 256, 256), load_target(name)
    text, _ = emit_kernel(apply(kernel, product(kernel, target)), target)
    assert ("@llvm.prefetch" in text) == asks


def test_bytes_of_a_dot_product_belong_to_the_block() -> None:
    """What a dot product binds is no variable of the code around it (found by the zoo's nudenet in bytes)."""
    weights = Load("w", (ix("k") * 64 + ix("l") * 4 + ix("q"),), I8)
    dot = Dot("q", 4, Cast(weights, I32), Cast(weights, I32), const(0, I32))
    body = (For("l", Ix(16), (Store("acc", (ix("l"),), dot),), "vector"),)
    nest = [("panel", 5), ("tile", 4), ("k", 64)]
    offset = ix("panel") * 4096 + ix("k") * 64 + ix("l") * 4 + ix("q")
    found = hint(For("k", Ix(64), body), nest, Stream(offset, 1 << 20, 1), LINE)
    assert found is not None
    assert variables(found.at) <= {"panel", "tile", "k"}
    assert evaluate(found.at, {"panel": 1, "tile": 0, "k": 0}) == 2 * 4096
