"""Operators over integers against ONNX Runtime: as written, and compiled to integer arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright.errors import ModelError
from tilewright.frontend.onnx import load_onnx
from tilewright.graph import interp
from tilewright.pipeline import build
from tilewright.session import Session

Given = Any
MS = "com.microsoft"


def _bytes(kind: str, *shape: int) -> Any:
    info = np.iinfo(kind)
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.integers(info.min, info.max + 1, shape).astype(kind)


def s(value: float) -> Any:
    return np.asarray(value, np.float32)


def i8(value: int) -> Any:
    return np.asarray(value, np.int8)


def u8(value: int) -> Any:
    return np.asarray(value, np.uint8)


def model(
    op_type: str,
    arrays: Sequence[Given],
    attrs: dict[str, Any],
    inputs: Sequence[int] = (0,),
    domain: str = "",
    outputs: int = 1,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of one node; arrays at positions `inputs` are its inputs, the others constants."""
    names = ["" if a is None else f"i{i}" for i, a in enumerate(arrays)]
    infos, constants, feeds = [], [], {}
    for i, a in enumerate(arrays):
        if a is None:
            continue
        if i in inputs:
            feeds[f"i{i}"] = a
            kind = helper.np_dtype_to_tensor_dtype(a.dtype)
            infos.append(helper.make_tensor_value_info(f"i{i}", kind, a.shape))
        else:
            constants.append(numpy_helper.from_array(a, f"i{i}"))
    made = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, made, name="the_node", domain=domain, **attrs)
    outs = [helper.make_empty_tensor_value_info(o) for o in made]
    graph = helper.make_graph([node], "g", infos, outs, constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


def onnxruntime_gives(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


x4, w4 = _bytes("int8", 1, 6, 7, 5), _bytes("int8", 4, 6, 3, 3)
per_channel = np.array([0.01, 0.02, 0.005, 0.013], np.float32)
bias4 = np.array([100, -2000, 3000, 0], np.int32)
pads = {"pads": [1, 1, 1, 1], "strides": [2, 1]}
a2, b2 = _bytes("uint8", 5, 12), _bytes("int8", 12, 4)

#: name -> (operator, operands, attributes, domain, float operators left after compilation)
INTEGER: dict[str, tuple[str, list[Given], dict[str, Any], str, set[str]]] = {
    "conv": (
        "QLinearConv",
        [x4, s(0.1), i8(-7), w4, per_channel, np.zeros(4, np.int8), s(0.4), i8(11), bias4],
        pads,
        "",
        set(),
    ),
    "conv u8": (
        "QLinearConv",
        [_bytes("uint8", 1, 6, 7, 5), s(0.1), u8(120), w4, s(0.02), i8(0), s(0.4), u8(130)],
        {"group": 1},
        "",
        set(),
    ),
    "conv u8 weights": (
        "QLinearConv",
        [
            *[_bytes("uint8", 1, 6, 7, 5), s(0.1), u8(120)],
            *[_bytes("uint8", 4, 6, 3, 3), s(0.02), u8(128), s(0.4), u8(130)],
        ],
        {"pads": [1, 0, 0, 1]},
        "",
        set(),
    ),
    "conv u8 weights off centre": (
        "QLinearConv",
        [
            *[_bytes("uint8", 1, 6, 7, 5), s(0.1), u8(120)],
            *[_bytes("uint8", 4, 6, 3, 3), s(0.02), u8(113), s(0.4), u8(130)],
        ],
        {"pads": [1, 0, 0, 1]},
        "",
        set(),
    ),
    "conv of one dim": (
        "QLinearConv",
        [
            *[_bytes("int8", 1, 6, 9), s(0.1), i8(-7), _bytes("int8", 4, 6, 3), per_channel],
            *[np.zeros(4, np.int8), s(0.4), i8(11), bias4],
        ],
        {"pads": [1, 1]},
        "",
        set(),
    ),
    "depthwise": (
        "QLinearConv",
        [x4, s(0.1), i8(-7), _bytes("int8", 6, 1, 3, 3), s(0.02), i8(0), s(0.4), i8(11)],
        {"group": 6, **pads},
        "",
        set(),
    ),
    "depthwise, two filters for each channel": (
        "QLinearConv",
        [x4, s(0.1), i8(-7), _bytes("int8", 12, 1, 3, 3), s(0.02), i8(0), s(0.4), i8(11)],
        {"group": 6, **pads},
        "",
        set(),
    ),
    "matmul": (
        "QLinearMatMul",
        [a2, s(0.1), u8(128), b2, s(0.02), i8(0), s(0.3), u8(100)],
        {},
        "",
        set(),
    ),
    "gemm": (
        "QGemm",
        [a2, s(0.1), u8(128), b2.T.copy(), per_channel, np.zeros(4, np.int8), bias4, s(0.3), u8(9)],
        {"transB": 1},
        MS,
        set(),
    ),
    "add": (
        "QLinearAdd",
        [x4, s(0.1), i8(-7), _bytes("int8", 6, 1, 1), s(0.3), i8(20), s(0.2113), i8(3)],
        {},
        MS,
        set(),
    ),
    "mul": (
        "QLinearMul",
        [x4, s(0.1), i8(-7), _bytes("int8", 6, 7, 5), s(0.3), i8(20), s(2.2), i8(3)],
        {},
        MS,
        set(),
    ),
    "concat": (
        "QLinearConcat",
        [s(0.2), i8(3), x4, s(0.1113), i8(-7), _bytes("int8", 1, 2, 7, 5), s(0.2), i8(3)],
        {"axis": 1},
        MS,
        set(),
    ),
    "mean of windows": (
        "QLinearAveragePool",
        [x4, s(0.1), i8(-7), s(0.08), i8(-20)],
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 0], "strides": [2, 1]},
        MS,
        set(),
    ),
    "mean of windows, borders counted": (
        "QLinearAveragePool",
        [x4, s(0.1), i8(-7), s(0.08), i8(-20)],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        MS,
        set(),
    ),
    "mean": ("QLinearGlobalAveragePool", [x4, s(0.1), i8(-7), s(0.02), i8(0)], {}, MS, set()),
    "sigmoid": (
        "QLinearSigmoid",
        [_bytes("uint8", 3, 99), s(0.05), u8(117), s(1 / 256), u8(0)],
        {},
        MS,
        set(),
    ),
    "leaky_relu": (
        "QLinearLeakyRelu",
        [x4, s(0.1), i8(-7), s(0.08), i8(-20)],
        {"alpha": 0.3},
        MS,
        set(),
    ),
    "softmax": (
        "QLinearSoftmax",
        [_bytes("uint8", 3, 9), s(0.05), u8(117), s(1 / 256), u8(0)],
        {"axis": -1, "opset": 13},
        MS,
        {"dequantize", "softmax", "quantize"},
    ),
    "where": (
        "QLinearWhere",
        [x4 > 0, x4, s(0.1), i8(-7), _bytes("int8", 7, 5), s(0.3), i8(20), s(0.2113), i8(3)],
        {},
        MS,
        set(),
    ),
}


def _inputs(case: str) -> tuple[int, ...]:
    """Which operands are inputs of the model: tensors of values, not their scales or weights."""
    return {"add": (0, 3), "mul": (0, 3), "concat": (2, 5), "where": (0, 1, 4)}.get(case, (0,))


@pytest.mark.parametrize("case", INTEGER)
def test_quantised_operators_agree_with_onnxruntime(case: str) -> None:
    op_type, arrays, attrs, domain, floats = INTEGER[case]
    proto, feeds = model(op_type, arrays, attrs, _inputs(case), domain)
    (want,) = onnxruntime_gives(proto, feeds)
    graph = load_onnx(proto)
    as_written = interp.run(graph, feeds)["o0"]
    program = build(graph, "host")
    session = Session(program)
    session.set_inputs([feeds[t.name] for t in program.inputs])
    (compiled,) = session.run()
    for got in (as_written, compiled):
        assert got.shape == want.shape and got.dtype == want.dtype
        off = np.abs(got.astype(int) - want.astype(int))
        assert off.max() <= 1 and (off > 0).mean() <= 0.02
    left = {n.op for n in program.graph.nodes if "f32" in str(program.graph.types[n.outputs[0]])}
    assert left <= floats


def test_gemm_without_an_output_scale_gives_floats() -> None:
    arrays = [a2, s(0.1), u8(128), b2, s(0.02), i8(0), bias4]
    proto, feeds = model("QGemm", arrays, {"alpha": 1.0}, (0,), MS)
    (want,) = onnxruntime_gives(proto, feeds)
    np.testing.assert_allclose(_compiled(proto, feeds)[0], want, rtol=1e-5, atol=1e-5)


def _compiled(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    program = build(load_onnx(proto), "host")
    session = Session(program)
    session.set_inputs([feeds[t.name] for t in program.inputs])
    return session.run()


#: exact: i32 results
EXACT: dict[str, tuple[str, list[Given], dict[str, Any], tuple[int, ...]]] = {
    "matmul": ("MatMulInteger", [a2, b2, u8(7), i8(3)], {}, (0, 1)),
    "matmul constant": ("MatMulInteger", [a2, b2, u8(7), i8(3)], {}, (0, 2)),
    "matmul u8": ("MatMulInteger", [a2, _bytes("uint8", 12, 4), u8(7), u8(128)], {}, (0,)),
    "matmul far": ("MatMulInteger", [a2, _bytes("uint8", 12, 4), u8(7), u8(3)], {}, (0,)),
    "matmul columns": (
        "MatMulInteger",
        [a2, b2, u8(7), np.array([1, 2, 0, -4], np.int8)],
        {},
        (0, 2),
    ),
    "matmul batch": (
        "MatMulInteger",
        [_bytes("uint8", 2, 5, 12), _bytes("int8", 2, 12, 4), u8(7)],
        {},
        (0, 1),
    ),
    "matmul bare": ("MatMulInteger", [a2, b2], {}, (0,)),
    "conv": (
        "ConvInteger",
        [_bytes("uint8", 1, 6, 7, 5), w4, u8(99)],
        {"pads": [1, 1, 1, 1], "strides": [2, 1]},
        (0,),
    ),
    "conv zero at run time": (
        "ConvInteger",
        [_bytes("uint8", 1, 6, 7, 5), w4, u8(99)],
        {"pads": [1, 1, 1, 1]},
        (0, 2),
    ),
    "conv u8": (
        "ConvInteger",
        [_bytes("uint8", 1, 6, 7, 5), _bytes("uint8", 6, 1, 3, 3), u8(99), u8(128)],
        {"group": 6},
        (0,),
    ),
    "conv far": (
        "ConvInteger",
        [_bytes("uint8", 1, 6, 7, 5), _bytes("uint8", 4, 6, 3, 3), u8(99), u8(100)],
        {"pads": [1, 0, 1, 0]},
        (0, 2),
    ),
    "conv bare": ("ConvInteger", [_bytes("uint8", 1, 6, 7, 5), w4], {}, (0,)),
}


@pytest.mark.parametrize("case", EXACT)
def test_integer_sums_are_those_of_onnxruntime(case: str) -> None:
    op_type, arrays, attrs, inputs = EXACT[case]
    proto, feeds = model(op_type, arrays, attrs, inputs)
    (want,) = onnxruntime_gives(proto, feeds)
    np.testing.assert_array_equal(_compiled(proto, feeds)[0], want)


@pytest.mark.parametrize("kind", ["signed", "positive", "zero"])
def test_dynamic_quantisation_is_that_of_onnxruntime(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 17)).astype(np.float32)
    x = {"signed": x, "positive": np.abs(x) + 1, "zero": x * 0}[kind]
    proto, feeds = model("DynamicQuantizeLinear", [x], {}, outputs=3)
    for got, want in zip(_compiled(proto, feeds), onnxruntime_gives(proto, feeds), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


REFUSED: dict[str, tuple[str, list[Given], dict[str, Any], str, tuple[int, ...], str]] = {
    "channels last": (
        "QLinearGlobalAveragePool",
        [x4, s(0.1), i8(-7), s(0.02), i8(0)],
        {"channels_last": 1},
        MS,
        (0,),
        "channels_last is not supported",
    ),
    "bias": (
        "QGemm",
        [a2, s(0.1), u8(1), b2, s(0.02), i8(0), bias4.astype(np.float32), s(0.3), u8(9)],
        {},
        MS,
        (0,),
        "bias is f32",
    ),
    "scales": (
        "QLinearConv",
        [x4, s(0.1), i8(-7), w4, per_channel[:3], np.zeros(3, np.int8), s(0.4), i8(11)],
        {},
        "",
        (0,),
        "does not fit",
    ),
    "concat": ("QLinearConcat", [s(0.2), i8(3), x4, s(0.1)], {"axis": 1}, MS, (2,), "4 inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(case: str) -> None:
    op_type, arrays, attrs, domain, inputs, reason = REFUSED[case]
    proto, _ = model(op_type, arrays, attrs, inputs, domain)
    with pytest.raises(ModelError, match=reason) as error:
        load_onnx(proto)
    assert "the_node" in str(error.value)
