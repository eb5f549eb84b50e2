"""Winograd variants of a convolution: the same result within rounding, and only where they apply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.core.dtypes import F32
from tilewright.graph import interp
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.graph.passes.choose_variants import choose_variants
from tilewright.graph.verify import verify
from tilewright.pipeline import build
from tilewright.registry import operator, variants
from tilewright.session import Session


def convolution(
    n: int, ci: int, h: int, w: int, co: int, pads: tuple[int, ...], kernel: int = 3, stride: int = 1,
    group: int = 1,
) -> Graph:  # fmt: skip
    """conv + relu with a bias; weights are seeded."""
    rng = np.random.default_rng(1)
    g = Graph("one", ["x"], ["z"])
    g.types["x"] = TensorType(F32, (n, ci, h, w))
    shape = (co, ci // group, kernel, kernel)
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


@pytest.mark.parametrize("name", ["winograd2", "winograd4"])
@settings(deadline=None, max_examples=12)
@given(
    n=st.integers(1, 2), ci=st.sampled_from([1, 3, 16]), co=st.sampled_from([1, 5, 16]),
    h=st.integers(3, 11), w=st.integers(3, 11), pads=st.tuples(*[st.integers(0, 1)] * 4),
)  # fmt: skip
def test_the_same_convolution(
    name: str, n: int, ci: int, co: int, h: int, w: int, pads: tuple[int, ...]
) -> None:
    graph = convolution(n, ci, h, w, co, pads)
    changed = choose_variants(graph, lambda g, node: name)
    verify(changed)
    assert [m.op for m in changed.nodes] == ["winograd_input", "matmul", "winograd_output", "relu"]
    x = np.random.default_rng(2).standard_normal((n, ci, h, w)).astype(np.float32)
    want = interp.run(graph, {"x": x})["z"]
    session = Session(build(graph, "host", variants=lambda g, node: name))
    session.set_inputs([x])
    got = session.run()[0]
    # sums of 9 ci products of numbers around 1; the transforms multiply rounding errors by up to 100
    assert np.abs(got - want).max() <= 1e-4 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(
    "graph",
    [
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), kernel=5),
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), stride=2),
        convolution(1, 4, 9, 9, 4, (1, 1, 1, 1), group=2),
    ],
)
def test_other_convolutions_stay(graph: Graph) -> None:
    assert choose_variants(graph, lambda g, node: "winograd4").nodes == graph.nodes


def test_variants_are_found_and_an_unknown_name_is_left_out() -> None:
    assert {"winograd2", "winograd4"} <= set(variants()["conv2d"])
    graph = convolution(1, 4, 9, 9, 4, (1, 1, 1, 1))
    assert choose_variants(graph, lambda g, node: "strassen").nodes == graph.nodes
