"""The measure of errors, and the reference with visible inner values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright
from tilewright.bench.inputs import make_inputs
from tilewright.bench.references import onnxruntime_reference
from tilewright.bench.verify import Verifier, layer_error, relative_error
from tilewright.frontend.expose import expose

MODEL = Path(__file__).resolve().parents[1] / "data" / "mlperftiny_dscnn_kws_fp32_randw.onnx"


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs", "error"),
    [
        (f32(1, 2), f32(1, 2), 0.0),
        (f32(1, 2.5), f32(1, 2), 0.25),
        (f32(0, 0), f32(0, 0), 0.0),
        (f32(1e-9), f32(0), 1.0),
        (f32(np.nan, 1), f32(np.nan, 1), 0.0),
        (f32(np.inf, 1), f32(np.inf, 1), 0.0),
        (f32(np.nan, 1), f32(0, 1), np.inf),
        (f32(1, 1), f32(np.nan, 1), np.inf),
        (f32(-np.inf, 1), f32(np.inf, 1), np.inf),
        (f32(1), f32(1, 2), np.inf),
        (f32(), f32(), 0.0),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array([2**40], np.int64), np.array([2**40], np.int64), 0.0),
    ],
)
def test_relative_error(ours: np.ndarray, theirs: np.ndarray, error: float) -> None:
    assert relative_error(ours, theirs) == error


def i8(*values: int) -> np.ndarray:
    return np.array(values, np.int8)


@pytest.mark.parametrize(
    ("ours", "theirs", "error"),
    [
        (i8(1, 2), i8(2, 1), 0.0),
        (i8(1, 4), i8(1, 2), 1.0),
        (i8(1, 2), i8(1), np.inf),
        (f32(1, 2), f32(2, 1), 0.5),
        (np.array([1, 2]), np.array([2, 1]), 0.5),
    ],
)
def test_bytes_may_be_one_step_away(ours: np.ndarray, theirs: np.ndarray, error: float) -> None:
    assert layer_error(ours, theirs) == error


def test_a_wrong_step_of_a_quantised_model_is_found() -> None:
    """A zero point that is off by two in one layer: the layer is named."""
    pytest.importorskip("onnxruntime")
    model = Path(__file__).resolve().parents[1] / "data" / "mlperftiny_dscnn_kws_int8_qdq.onnx"
    compiled = tilewright.compile(model)
    inputs = make_inputs(compiled.inputs, compiled.program.graph, 0)
    assert Verifier(model, compiled, 1e-4).verify(inputs).passed
    graph = compiled.program.graph
    node = next(n for n in graph.nodes if n.op == "rescale")
    wrong = {**node.attrs, "zero_point": int(str(node.attrs["zero_point"])) - 2}
    graph.nodes[graph.nodes.index(node)] = node.with_(attrs=wrong)
    report = Verifier(model, compiled, 1e-4).verify(inputs)
    assert not report.passed and f"`{node.name}`" in report.first_departure


def test_expose_adds_what_exists() -> None:
    plain = expose(MODEL, set())
    assert not plain.inner
    inner = onnx_values()
    shown = expose(MODEL.read_bytes(), {inner[0], "no such value"})
    assert shown.inner == (inner[0],)
    assert shown.outputs == plain.outputs


def test_the_reference_gives_inner_values() -> None:
    pytest.importorskip("onnxruntime")
    name = onnx_values()[0]
    reference = onnxruntime_reference(MODEL, {name})
    assert reference is not None
    outputs, inner = reference({"input": np.ones((1, 1, 49, 10), np.float32)})
    assert len(outputs) == 1
    assert set(inner) == {name} and inner[name].ndim == 4


def onnx_values() -> list[str]:
    from tilewright.frontend.expose import read_proto

    return [v for node in read_proto(MODEL).graph.node for v in node.output]
