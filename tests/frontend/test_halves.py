"""Models of float16 are computed in float32 inside, as ONNX Runtime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tilewright.core.dtypes import F16, F32
from tilewright.frontend.halves import widen_halves
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.ir import Array, Graph
from tilewright.graph.verify import verify

HALF, SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
RNG = np.random.default_rng(8)


def half(*shape: int) -> Array:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float16)


def model(
    nodes: list[Any], x: tuple[int, list[int]], y: int, stored: dict[str, Array]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network(io: int) -> onnx.ModelProto:
    """Convolution, gate, product and softmax in float16, between casts where inputs and outputs are float32."""
    node = helper.make_node
    nodes = [
        node("Conv", ["h", "w", "b"], ["c"], pads=[1, 1, 1, 1]), node("Sigmoid", ["c"], ["s"]),
        node("Mul", ["c", "s"], ["m"]), node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "v"], ["g"]), node("Softmax", ["g"], ["z"]),
    ]  # fmt: skip
    casts = [node("Cast", ["x"], ["h"], to=HALF), node("Cast", ["z"], ["y"], to=SINGLE)]
    if io == HALF:
        casts = [node("Identity", ["x"], ["h"]), node("Identity", ["z"], ["y"])]
    stored = {"w": half(8, 3, 3, 3), "b": half(8), "v": half(8, 5)}
    return model([casts[0], *nodes, casts[1]], (io, [1, 3, 12, 12]), io, stored)


@pytest.mark.parametrize("io", [HALF, SINGLE])
def test_results_are_those_of_onnx_runtime(io: int) -> None:
    made = network(io)
    x = RNG.standard_normal((1, 3, 12, 12)).astype(np.float16 if io == HALF else np.float32)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (want,) = session.run(None, {"x": x})
    (y,) = tilewright.compile(made)(x)
    assert y.dtype == want.dtype
    assert np.abs(y.astype(np.float64) - want).max() < 1e-5 * np.abs(want).max()


def halves(graph: Graph) -> set[str]:
    return {n for n, t in graph.types.items() if t.dtype is F16}


def test_only_the_boundary_stays() -> None:
    graph = load_onnx(network(HALF))
    verify(graph)
    assert graph.types["x"].dtype is F16 and graph.types["y"].dtype is F16
    assert halves(graph) <= {"x", "y"} and graph.types["m"].dtype is F32
    assert not halves(load_onnx(network(SINGLE)))


def test_what_is_cast_there_and_back_is_rounded() -> None:
    node = helper.make_node
    made = model(
        [node("Cast", ["x"], ["h"], to=HALF), node("Cast", ["h"], ["y"], to=SINGLE)],
        (SINGLE, [64]), SINGLE, {},
    )  # fmt: skip
    x = RNG.standard_normal(64).astype(np.float32)
    (y,) = tilewright.compile(made)(x)
    assert np.array_equal(y, x.astype(np.float16).astype(np.float32))


def test_integers_see_the_rounded_value_and_float32_the_exact_one() -> None:
    node = helper.make_node
    made = model(
        [
            node("Mul", ["x", "c"], ["m"]), node("Cast", ["m"], ["i"], to=TensorProto.INT32),
            node("Cast", ["m"], ["f"], to=SINGLE), node("Cast", ["i"], ["j"], to=SINGLE),
            node("Add", ["f", "j"], ["y"]),
        ],
        (HALF, [64]), SINGLE, {"c": np.float16(13.7)},
    )  # fmt: skip
    x = (RNG.standard_normal(64) * 100).astype(np.float16)
    (y,) = tilewright.compile(made)(x)
    exact = x.astype(np.float32) * np.float32(np.float16(13.7))
    assert np.array_equal(y, exact + exact.astype(np.float16).astype(np.int32))


def test_a_graph_without_halves_is_left_alone() -> None:
    graph = load_onnx(model([helper.make_node("Relu", ["x"], ["y"])], (SINGLE, [3]), SINGLE, {}))
    assert widen_halves(graph) is graph
