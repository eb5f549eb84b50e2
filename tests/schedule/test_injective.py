"""Default schedules of data movement."""

from __future__ import annotations

from tilewright.core.dtypes import F32
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.loop.ir import For, Kernel
from tilewright.pipeline import build
from tilewright.schedule.target import load_target
from tilewright.tune.library import Library


def transpose(shape: tuple[int, ...], perm: tuple[int, ...]) -> Kernel:
    g = Graph("transpose", ["x"], ["y"])
    g.types = {"x": TensorType(F32, shape), "y": TensorType(F32, tuple(shape[p] for p in perm))}
    g.nodes.append(Node("t", "transpose", ("x",), ("y",), {"perm": perm}))
    return build(g, load_target("x86-64-v4"), library=Library()).kernels[0]


def nest(kernel: Kernel) -> list[tuple[str, int]]:
    """Kinds and extents of the loops, outermost first."""
    found: list[tuple[str, int]] = []
    block = kernel.body
    while len(block) == 1 and isinstance(block[0], For):
        found.append((block[0].kind, block[0].extent.const))
        block = block[0].body
    return found


def test_lines_that_a_vector_gathers_are_used_up() -> None:
    """Rows of x become columns: the loop along its rows stands next to the vectors down its columns."""
    loops = nest(transpose((512, 96), (1, 0)))
    assert [extent for _, extent in loops] == [32, 96, 16]
    assert loops[-1][0] == "vector"


def test_what_is_contiguous_keeps_its_order() -> None:
    assert nest(transpose((7, 5, 64), (1, 0, 2)))[-1] == ("vector", 16)
    assert [extent for _, extent in nest(transpose((7, 5, 64), (1, 0, 2)))] == [5, 7, 4, 16]
