"""The measure of errors, and the reference with visible inner values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilewright.bench.verify import onnxruntime_reference, relative_error
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
