"""TopK, NonMaxSuppression, NonZero, Compress, Unique: compiled code against ONNX Runtime and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright.frontend.counted import counted
from tilewright.frontend.onnx import load_onnx
from tilewright.pipeline import build
from tilewright.session import Session

F32 = np.float32


def model(
    op_type: str, arrays: dict[str, Any], constants: dict[str, Any], outputs: int, **attrs: Any
) -> onnx.ModelProto:
    kinds = {n: helper.np_dtype_to_tensor_dtype(a.dtype) for n, a in arrays.items()}
    inputs = [helper.make_tensor_value_info(n, kinds[n], a.shape) for n, a in arrays.items()]
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, [*arrays, *constants], names, **attrs)
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    outs = [helper.make_empty_tensor_value_info(n) for n in names]
    graph = helper.make_graph([node], "g", inputs, outs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """Results of compiled code, counted ones cut to their size."""
    session = Session(build(load_onnx(proto), "host"))
    session.set_inputs({t.name: feeds[t.name] for t in session.program.inputs})
    results = dict(zip([t.name for t in session.program.outputs], session.run(), strict=True))
    for name, (count, axis) in counted(list(results)).items():
        results[name] = np.take(results[name], range(int(results[count])), axis=axis)
    return results


def onnxruntime_gives(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


@pytest.mark.parametrize(
    ("shape", "axis", "k"),
    [((3, 70), 1, 5), ((700,), 0, 700), ((2, 515, 2), 1, 300), ((4, 33), -1, 33)],
)
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_agrees_with_onnxruntime(shape: Any, axis: int, k: int, largest: int) -> None:
    """Ties included; long lists are merged from sorted blocks."""
    x = np.random.default_rng(0).integers(-40, 40, shape).astype(F32)
    proto = model("TopK", {"x": x}, {"k": np.array([k])}, 2, axis=axis, largest=largest)
    want = onnxruntime_gives(proto, {"x": x})
    got = run(proto, {"x": x})
    np.testing.assert_array_equal(got["y0"], want[0])
    np.testing.assert_array_equal(got["y1"], want[1])


@pytest.mark.parametrize("centered", [0, 1])
def test_suppression_agrees_with_onnxruntime(centered: int) -> None:
    rng = np.random.default_rng(1)
    boxes = rng.random((2, 60, 4)).astype(F32) * 3
    boxes[0, 0, 2:] = boxes[0, 0, :2]  # an empty box
    scores = rng.random((2, 3, 60)).astype(F32).round(1)  # with ties
    limits = {"m": np.array([60]), "i": np.array([0.3], F32), "s": np.array([0.35], F32)}
    feeds = {"b": boxes, "c": scores}
    proto = model("NonMaxSuppression", feeds, limits, 1, center_point_box=centered)
    (want,) = onnxruntime_gives(proto, feeds)
    got = run(proto, feeds)
    assert 0 < len(want) < 360
    np.testing.assert_array_equal(got["y0"], want)


def test_counts_follow_the_model_s_own_outputs() -> None:
    x = np.array([[3, 0, 5], [0, 0, 7]], F32)
    proto = model("NonZero", {"x": x}, {}, 1)
    graph = load_onnx(proto)
    assert graph.outputs == ["y0", "y0.count1"]
    assert graph.types["y0"].shape == (2, 6)
    np.testing.assert_array_equal(run(proto, {"x": x})["y0"], np.nonzero(x))


def test_a_known_count_gives_the_exact_size() -> None:
    proto = model("NonZero", {}, {"x": np.array([0, 4, 0, 6], F32)}, 1)
    graph = load_onnx(proto)
    assert graph.outputs == ["y0"] and graph.types["y0"].shape == (1, 2)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_compress(axis: int | None) -> None:
    x = np.arange(12, dtype=F32).reshape(3, 4)
    condition = np.array([True, False, True])
    attrs = {} if axis is None else {"axis": axis}
    feeds = {"x": x, "c": condition}
    got = run(model("Compress", feeds, {}, 1, **attrs), feeds)
    np.testing.assert_array_equal(got["y0"], np.compress(condition, x, axis))


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_unique_agrees_with_onnxruntime(axis: int | None, ordered: int) -> None:
    x = np.random.default_rng(2).integers(0, 2, (6, 5)).astype(F32)
    attrs = {"sorted": ordered} | ({} if axis is None else {"axis": axis})
    proto = model("Unique", {"x": x}, {}, 4, **attrs)
    want = onnxruntime_gives(proto, {"x": x})
    got = run(proto, {"x": x})
    for i, w in enumerate(want):
        np.testing.assert_array_equal(got[f"y{i}"], w)
