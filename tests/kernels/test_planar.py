"""Convolutions to few channels as planes: the same results, no vector along channels, chosen by cost."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.core.dtypes import F32
from tilewright.graph import interp
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.graph.passes.choose_variants import choose_variants
from tilewright.pipeline import build
from tilewright.registry import ways
from tilewright.schedule.target import load_target
from tilewright.session import Session


def convolution(ci: int, co: int, taps: tuple[int, int], stride: int = 1, wide: int = 40) -> Graph:
    rng = np.random.default_rng(0)
    g = Graph("planes", ["x"], ["y"])
    g.types["x"] = TensorType(F32, (2, ci, 9, wide))
    w = g.add_constant("w", rng.standard_normal((co, ci, *taps)).astype(np.float32))
    b = g.add_constant("b", rng.standard_normal(co).astype(np.float32))
    pads = (taps[0] // 2, taps[1] // 2, taps[0] // 2, taps[1] // 2)
    g.nodes = [
        Node("conv", "conv2d", ("x", w, b), ("c",), {
            "strides": (1, stride), "pads": pads, "dilations": (1, 1), "group": 1}),
        Node("relu", "relu", ("c",), ("y",)),
    ]  # fmt: skip
    size = (wide + 2 * pads[1] - taps[1]) // stride + 1
    g.types["c"] = g.types["y"] = TensorType(F32, (2, co, 9, size))
    return g


@pytest.mark.parametrize(
    ("ci", "co", "taps"), [(8, 8, (3, 39)), (5, 1, (5, 5)), (1, 1, (3, 3)), (3, 2, (1, 7))]
)
def test_results_are_those_of_the_direct_form(ci: int, co: int, taps: tuple[int, int]) -> None:
    graph = convolution(ci, co, taps)
    x = np.random.default_rng(1).standard_normal(graph.types["x"].shape).astype(np.float32)
    want = interp.run(graph, {"x": x})["y"]
    program = build(graph, "host", variants=lambda g, node: "planar")
    session = Session(program)
    session.set_inputs([x])
    (got,) = session.run()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_two_layers_hand_planes_on() -> None:
    """The first layer's channels stay planes; nothing is laid out anew between the two."""
    graph = convolution(4, 6, (3, 3))
    w = graph.add_constant("w2", np.ones((1, 6, 3, 3), np.float32))
    attrs = graph.nodes[0].attrs
    graph.nodes.append(Node("last", "conv2d", ("y", w), ("z",), attrs))
    graph.types["z"] = TensorType(F32, (2, 1, 9, 40))
    graph.outputs = ["z"]
    program = build(graph, "x86-64-v4", variants=lambda g, node: "planar")
    assert [s.op for s in program.steps].count("copy") <= 1  # of the input, to give it a border
    assert program.placement.layouts["y"].order == (0, 1, 2, 3)


def test_what_has_no_rows_of_pixels_stays() -> None:
    for graph in (convolution(4, 4, (3, 3), stride=2), convolution(4, 9, (3, 3))):
        assert choose_variants(graph, lambda g, node: "planar").nodes == graph.nodes


def test_the_cost_model_chooses_planes_for_few_channels() -> None:
    rule, target = ways()["conv2d"], load_target("x86-64-v4")
    few = convolution(8, 8, (3, 39), wide=264)
    assert rule(few, few.nodes[0], target) == "planar"
    shallow = convolution(8, 8, (1, 1), wide=264)  # moving the pixels costs more than it saves
    assert rule(shallow, shallow.nodes[0], target) is None
    assert rule(few, few.nodes[0], load_target("cortex-m7")) is None
