"""Default schedules of products: which operands are read how often, and what threads share out."""

from __future__ import annotations

import numpy as np

from tilewright.codegen.kernel import parallel_loop
from tilewright.core.dtypes import F32
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.loop.ir import For, Kernel
from tilewright.pipeline import build
from tilewright.schedule.target import load_target
from tilewright.schedule.templates.tiles import register_tile
from tilewright.tune.library import Library

TARGET = load_target("x86-64-v4")


def product(rows: int, cols: int, depth: int) -> Kernel:
    g = Graph("product", ["a"], ["c"])
    g.types = {"a": TensorType(F32, (rows, depth)), "c": TensorType(F32, (rows, cols))}
    b = g.add_constant("b", np.zeros((depth, cols), np.float32))
    g.nodes.append(Node("matmul", "matmul", ("a", b), ("c",)))
    return build(g, TARGET, library=Library()).kernels[0]


def outermost(kernel: Kernel) -> For:
    return next(s for s in kernel.body if isinstance(s, For))


def test_large_weights_are_read_once() -> None:
    loop = outermost(product(128, 384, 1536))
    assert loop.var == "no" and loop.kind == "parallel"
    assert loop.extent.const % 2 == 0  # two threads are equally busy


def test_what_is_smaller_is_read_again() -> None:
    assert outermost(product(2048, 192, 128)).var == "mo"  # weights of 96 KB, pixels of 1 MB
    assert outermost(product(128, 384, 256)).var == "no"  # weights of 384 KB, pixels of 128 KB


def test_threads_share_out_what_moves_least_between_them() -> None:
    """Rows where the weights are few bytes, and then each thread goes through all panels with its rows."""
    few, many = product(192, 384, 192), product(32, 1024, 1024)
    loops = [parallel_loop(kernel) for kernel in (few, many)]
    assert [f.var for f in loops if f is not None] == ["mo", "no"]
    assert outermost(few).var == "no"


def test_panels_come_in_pairs_where_they_can() -> None:
    for cols in (320, 384, 480, 960):
        tile = register_tile(128, cols, 512, TARGET, panels=2)
        assert -(-cols // (16 * tile.vectors)) % 2 == 0
    assert register_tile(128, 16, 512, TARGET, panels=2).vectors == 1
