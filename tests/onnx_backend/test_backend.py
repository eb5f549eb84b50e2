"""`tilewright.onnx_backend`: ONNX's backend interface over compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tilewright.errors import ModelError, UnsupportedError
from tilewright.onnx_backend import Backend, prepare, run_model, run_node, supports_device


def model(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, Any]], outputs: list[str]
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    results = [onnx.ValueInfoProto(name=o) for o in outputs]
    graph = helper.make_graph(nodes, "g", infos, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def reshape_then_relu() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    return model(
        nodes, {"x": (TensorProto.FLOAT, ["n", 6]), "shape": (TensorProto.INT64, [2])}, ["y"]
    )


def test_values_that_decide_shapes_are_compiled_in() -> None:
    prepared = prepare(reshape_then_relu())
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    (y,) = prepared.run([x, np.array([3, 4])])
    assert np.array_equal(y, np.maximum(x, 0).reshape(3, 4))
    assert prepared.fixed == ("shape",) and not prepared.constant
    (again,) = prepared.run({"shape": np.array([3, 4]), "x": -x})
    assert np.array_equal(again, np.maximum(-x, 0).reshape(3, 4))


def test_other_values_and_shapes_compile_anew() -> None:
    prepared = prepare(reshape_then_relu())
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for data, shape in ((x, [3, 4]), (x, [12, 1]), (x[:1], [2, 3]), (x, [3, 4])):
        (y,) = prepared.run([data, np.array(shape)])
        assert np.array_equal(y, data.reshape(shape))


def test_a_value_behind_arithmetic_is_traced_to_its_inputs() -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Expand", ["x", "s"], ["y"]),
    ]
    sizes = (TensorProto.INT64, [2])
    m = model(nodes, {"x": (TensorProto.FLOAT, [1, 3]), "a": sizes, "b": sizes}, ["y"])
    prepared = prepare(m)
    x = np.ones((1, 3), np.float32)
    (y,) = prepared.run([x, np.array([2, 1]), np.array([3, 2])])
    assert y.shape == (5, 3) and set(prepared.fixed) == {"a", "b"}


def test_results_come_by_name_and_in_order() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["a"])]
    m = model(nodes, {"x": (TensorProto.FLOAT, [3])}, ["a", "n"])
    x = np.array([1, -2, 3], np.float32)
    a, n = run_model(m, x)
    assert np.array_equal(a, abs(x)) and np.array_equal(n, -x)


def test_one_node() -> None:
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    x = np.array([-1, 5], np.float32)
    (y,) = run_node(node, [x, None, np.array(2, np.float32)])
    assert np.array_equal(y, [-1, 2])


def test_types_that_only_store_values_come_back_as_themselves() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    (y,) = run_node(node, [np.array([1.0, 2.5], np.float32)])
    assert y.dtype.name == "bfloat16" and np.array_equal(y.astype(np.float32), [1.0, 2.5])


def test_results_whose_size_depends_on_data_are_cut() -> None:
    x = np.array([0, 3, 0, 4, 5], np.float32)
    (found,) = run_node(helper.make_node("NonZero", ["x"], ["y"]), [x])
    assert np.array_equal(found, [[1, 3, 4]])


def test_tensors_without_elements() -> None:
    node = helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0)
    (y,) = run_node(node, [np.zeros((0, 3), np.float32)])
    assert y == -np.inf
    (z,) = run_node(helper.make_node("Relu", ["x"], ["y"]), [np.zeros((2, 0), np.float32)])
    assert z.shape == (2, 0)


def test_refusals_and_wrong_inputs() -> None:
    m = model([helper.make_node("RandomNormalLike", ["x"], ["y"])], {"x": (1, [3])}, ["y"])
    with pytest.raises(UnsupportedError, match="random numbers"):
        prepare(m).run([np.zeros(3, np.float32)])
    relu = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, [3])}, ["y"])
    with pytest.raises(ModelError, match="has 1 inputs, got 2"):
        prepare(relu).run([np.zeros(3, np.float32)] * 2)
    with pytest.raises(ModelError, match="input `x` is missing"):
        prepare(relu).run([])
    with pytest.raises(ModelError, match="got float64"):
        prepare(relu).run([np.zeros(3)])
    with pytest.raises(ModelError, match="device CUDA"):
        Backend.prepare(relu, "CUDA")
    assert supports_device("CPU:0") and not supports_device("CUDA")


def test_an_operator_is_expanded_by_its_function() -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 5)).astype(np.float32)
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], axes=[0, 2])
    (y,) = run_node(node, [x])
    want = (x - x.mean((0, 2), keepdims=True)) / (x.std((0, 2), keepdims=True) + 1e-9)
    assert np.allclose(y, want, atol=1e-5)


def test_broadcasting_of_old_opsets() -> None:
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("a", [2, 3, 4]), ("b", [3]))]
    node = helper.make_node("Add", ["a", "b"], ["y"], broadcast=1, axis=1)
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name="y")])
    m = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)])
    a, b = np.zeros((2, 3, 4), np.float32), np.arange(3, dtype=np.float32)
    (y,) = run_model(m, [a, b])
    assert np.array_equal(y, a + b[:, None])
