"""Layer normalisation spelled out by exporters becomes one node; what only looks like it stays."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder, check_pass, model, ops
from onnx import helper

import tilewright
from tilewright.graph.ir import Graph
from tilewright.graph.passes import optimize
from tilewright.graph.passes.fuse_layer_norm import MAX_ROW, fuse_layer_norm

RNG = np.random.default_rng(11)


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def spelled(
    b: Builder, x: str = "x", axes: tuple[int, ...] = (2,), way: str = "div", epsilon: float = 1e-5
) -> str:
    """The steps up to the division, as nodes of `b`."""
    b.node("reduce_mean", "mean", x, axes=axes, keepdims=True)
    b.node("sub", "d", x, "mean")
    if way == "pow":
        b.node("pow", "square", "d", b.const("two", np.float32(2)))
    else:
        b.node("mul", "square", "d", "d")
    b.node("reduce_mean", "variance", "square", axes=axes, keepdims=True)
    b.node("add", "sum", "variance", b.const("epsilon", np.float32(epsilon)))
    b.node("sqrt", "root", "sum")
    if way == "reciprocal":
        b.node("reciprocal", "inverse", "root")
        return b.node("mul", "y", "inverse", "d")
    if way == "one":
        b.node("div", "inverse", b.const("one", np.float32(1)), "root")
        return b.node("mul", "y", "d", "inverse")
    return b.node("div", "y", "d", "root")


@pytest.mark.parametrize("way", ["div", "pow", "reciprocal", "one"])
def test_ways(way: str) -> None:
    b = Builder(x=(2, 3, 8))
    spelled(b, way=way)
    b.node("mul", "scaled", b.const("scale", noise(8)), "y")
    b.node("add", "z", "scaled", b.const("bias", noise(1, 1, 8)))
    out = check_pass(fuse_layer_norm, b.done("z"), 1e-5)
    assert ops(out) == ["layer_norm"] and len(out.nodes[0].inputs) == 3
    assert out.nodes[0].attrs == {"axis": 2, "epsilon": float(np.float32(1e-5))}


def test_several_dims_without_parameters() -> None:
    b = Builder(x=(2, 3, 8))
    spelled(b, axes=(1, 2))
    assert ops(check_pass(fuse_layer_norm, b.done("y"), 1e-5)) == ["layer_norm"]


def test_two_in_a_row_with_parameters_that_are_inputs() -> None:
    b = Builder(x=(2, 3, 8), scale=(8,))
    spelled(b)
    b.node("mul", "z", "y", "scale")
    first = b.done("z")
    out = check_pass(fuse_layer_norm, first, 1e-5)
    assert ops(out) == ["layer_norm"] and out.nodes[0].inputs == ("x", "scale")


def test_a_parameter_that_does_not_fit_a_row_stays() -> None:
    b = Builder(x=(2, 3, 8))
    spelled(b)
    b.node("mul", "z", "y", b.const("scale", noise(3, 1)))
    assert ops(check_pass(fuse_layer_norm, b.done("z"), 1e-5)) == ["layer_norm", "mul"]


def _channels() -> Graph:
    b = Builder(x=(2, 3, 8))
    spelled(b, axes=(1,))
    return b.done("y")


def _read_elsewhere() -> Graph:
    b = Builder(x=(2, 3, 8))
    spelled(b)
    b.node("relu", "other", "d")
    return b.done("y", "other")


def _variance_is_output() -> Graph:
    b = Builder(x=(2, 3, 8))
    spelled(b)
    return b.done("y", "variance")


def _other_axes() -> Graph:
    b = Builder(x=(2, 8, 8))
    b.node("reduce_mean", "mean", "x", axes=(2,), keepdims=True)
    b.node("sub", "d", "x", "mean")
    b.node("mul", "square", "d", "d")
    b.node("reduce_mean", "variance", "square", axes=(1, 2), keepdims=True)
    b.node("add", "sum", "variance", b.const("epsilon", np.float32(1e-5)))
    b.node("sqrt", "root", "sum")
    b.node("div", "y", "d", "root")
    return b.done("y")


def _times_the_root() -> Graph:
    b = Builder(x=(2, 3, 8))
    spelled(b)
    b.graph.nodes.pop()
    b.node("mul", "y", "d", "root")
    return b.done("y")


def _divided_by_the_inverse() -> Graph:
    b = Builder(x=(2, 3, 8))
    spelled(b, way="reciprocal")
    b.graph.nodes.pop()
    b.node("div", "y", "d", "inverse")
    return b.done("y")


def _long_row() -> Graph:
    b = Builder(x=(1, 1, MAX_ROW + 1))
    spelled(b)
    return b.done("y")


@pytest.mark.parametrize(
    "graph",
    [
        _channels, _read_elsewhere, _variance_is_output, _other_axes, _times_the_root,
        _divided_by_the_inverse, _long_row,
    ],
)  # fmt: skip
def test_left_alone(graph) -> None:  # type: ignore[no-untyped-def]
    before = graph()
    assert check_pass(fuse_layer_norm, before).nodes == before.nodes


def test_as_pytorch_exports_it() -> None:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add: one kernel, and ours is right."""
    scale, bias, x = noise(24), noise(24), noise(2, 5, 24) * 3 + 7
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "epsilon"], ["sum"]),
        helper.make_node("Sqrt", ["sum"], ["root"]),
        helper.make_node("Div", ["d", "root"], ["y"]),
        helper.make_node("Mul", ["y", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["z"]),
    ]
    constants = {
        "two": np.float32(2), "epsilon": np.float32(1e-12), "scale": scale, "bias": bias,
    }  # fmt: skip
    proto = model(nodes, {"x": (2, 5, 24)}, ["z"], constants)
    from tilewright.frontend.models import load_model

    assert ops(optimize(load_model(proto.SerializeToString()))) == ["layer_norm"]
    (got,) = tilewright.compile(proto.SerializeToString())(x)
    wide = x.astype(np.float64)
    d = wide - wide.mean(-1, keepdims=True)
    want = d / np.sqrt((d * d).mean(-1, keepdims=True) + 1e-12) * scale + bias
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
