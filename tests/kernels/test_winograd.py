"""Winograd variants of a convolution: the same result within rounding, and only where they apply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.core.dtypes import F32
from tilewright.graph import interp
from tilewright.graph.ir import Array, Graph, Node, TensorType
from tilewright.graph.passes.choose_variants import choose_variants
from tilewright.graph.verify import verify
from tilewright.pipeline import build
from tilewright.registry import operator, variants, ways
from tilewright.schedule.target import load_target
from tilewright.session import Session


def convolution(
    n: int, ci: int, h: int, w: int, co: int, pads: tuple[int, ...], kernel: tuple[int, int] = (3, 3),
    stride: int = 1, group: int = 1,
) -> Graph:  # fmt: skip
    """conv + relu with a bias; weights are seeded."""
    rng = np.random.default_rng(1)
    g = Graph("one", ["x"], ["z"])
    g.types["x"] = TensorType(F32, (n, ci, h, w))
    shape = (co, ci // group, *kernel)
    g.add_constant("w", rng.standard_normal(shape).astype(np.float32))
    g.add_constant("b", rng.standard_normal(co).astype(np.float32))
    attrs = {"strides": (stride,) * 2, "pads": pads, "dilations": (1, 1), "group": group}
    g.nodes = [
        Node("conv", "conv2d", ("x", "w", "b"), ("y",), attrs),
        Node("relu", "relu", ("y",), ("z",)),
    ]
    (g.types["y"],) = operator("conv2d").infer([g.types[i] for i in ("x", "w", "b")], attrs)
    g.types["z"] = g.types["y"]
    return g


def result(graph: Graph, x: Array, name: str | None) -> Array:
    """What compiled code computes; `name`: the variant, None for what is chosen by default."""
    chosen = None if name is None else lambda g, node: name
    session = Session(build(graph, "host", variants=chosen))
    session.set_inputs([x])
    return session.run()[0]


@pytest.mark.parametrize("name", ["winograd2", "winograd4"])
@settings(deadline=None, max_examples=12)
@given(
    n=st.integers(1, 2), ci=st.sampled_from([1, 3, 16]), co=st.sampled_from([1, 5, 16]),
    h=st.integers(3, 11), w=st.integers(3, 11), pads=st.tuples(*[st.integers(0, 1)] * 4),
    kernel=st.sampled_from([(3, 3), (1, 3), (3, 1), (2, 3)]), group=st.integers(1, 2),
)  # fmt: skip
def test_the_same_convolution(
    name: str, n: int, ci: int, co: int, h: int, w: int, pads: tuple[int, ...],
    kernel: tuple[int, int], group: int,
) -> None:  # fmt: skip
    graph = convolution(n, ci * group, h, w, co * group, pads, kernel, group=group)
    changed = choose_variants(graph, lambda g, node: name)
    verify(changed)
    assert [m.op for m in changed.nodes] == ["winograd_input", "matmul", "winograd_output", "relu"]
    x = np.random.default_rng(2).standard_normal((n, ci * group, h, w)).astype(np.float32)
    want = interp.run(graph, {"x": x})["z"]
    # sums of 9 ci products of numbers around 1; the transforms multiply rounding errors by up to 100
    assert np.abs(result(graph, x, name) - want).max() <= 1e-4 * max(1.0, np.abs(want).max())


def test_five_by_five() -> None:
    graph = convolution(1, 16, 12, 9, 24, (2, 2, 2, 2), (5, 5))
    assert len(choose_variants(graph, lambda g, node: "winograd2").nodes) == 4
    x = np.random.default_rng(2).standard_normal((1, 16, 12, 9)).astype(np.float32)
    want = interp.run(graph, {"x": x})["z"]
    assert np.abs(result(graph, x, "winograd2") - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    "graph",
    [
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), (5, 5)),
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), (3, 3), stride=2),
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), (1, 1)),
    ],
)
def test_other_convolutions_stay(graph: Graph) -> None:
    assert choose_variants(graph, lambda g, node: "winograd4").nodes == graph.nodes


def test_weights_that_would_lose_digits_stay() -> None:
    """A filter of large numbers that cancel in the direct sum, but not in the transformed one."""
    graph = convolution(1, 8, 12, 12, 8, (1, 1, 1, 1), (3, 3))
    assert len(choose_variants(graph, lambda g, node: "winograd4").nodes) == 4
    w = np.zeros((8, 8, 3, 3), np.float32)
    w[:, 0] = 1e5
    x = np.random.default_rng(2).standard_normal((1, 8, 12, 12)).astype(np.float32)
    w[:, 1:] = np.random.default_rng(3).standard_normal((8, 7, 3, 3))
    graph.constants["w"] = w
    changed = choose_variants(graph, lambda g, node: "winograd4")
    want = interp.run(graph, {"x": x})["z"]
    got = result(graph, x, "winograd4")
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max(), len(changed.nodes)


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "cortex-a76"])
def test_the_cost_model_chooses(name: str) -> None:
    """Wide layers of large images gain, and few channels do not; microcontrollers have no memory for it."""
    target = load_target(name)
    rule = ways()["conv2d"]
    wide = convolution(1, 64, 28, 28, 64, (1, 1, 1, 1))
    assert rule(wide, wide.nodes[0], target) == "winograd4"
    # vectors of 16 are full along rows of pixels
    narrow = convolution(1, 3, 28, 28, 8, (1, 1, 1, 1))
    assert rule(narrow, narrow.nodes[0], target) == ("planar" if name == "x86-64-v4" else None)
    small = convolution(1, 512, 7, 7, 512, (1, 1, 1, 1))
    if name == "x86-64-v4":  # too fast for its memory to stream 37 MB of weights
        assert rule(small, small.nodes[0], target) == "winograd2"
    assert rule(wide, wide.nodes[0], load_target("cortex-m4")) is None
    assert "winograd_output" in {n.op for n in build(wide, target).graph.nodes}
    off = build(wide, target, without={"variants"})
    assert "winograd_output" not in {n.op for n in off.graph.nodes}


def test_variants_are_found_and_an_unknown_name_is_left_out() -> None:
    assert {"winograd2", "winograd4"} <= set(variants()["conv2d"])
    graph = convolution(1, 4, 9, 9, 4, (1, 1, 1, 1))
    assert choose_variants(graph, lambda g, node: "strassen").nodes == graph.nodes
