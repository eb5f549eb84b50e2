"""Whole models: MLPerf Tiny in int8, bit-equal to LiteRT's reference kernels here and on emulated boards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright
from tilewright.frontend.tflite.load import load_tflite
from tilewright.graph.passes import optimize

DATA = Path(__file__).resolve().parents[2] / "data"
MODELS = ("dscnn_kws", "resnet8_ic", "autoencoder_ad", "mobilenetv1_025_vww")


def path_of(name: str) -> Path:
    return DATA / f"mlperftiny_{name}_int8_randw.tflite"


def inputs_of(model: Any, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-128, 128, t.shape).astype(t.dtype) for t in model.inputs]


@pytest.mark.parametrize("name", [*MODELS[:3], pytest.param(MODELS[3], marks=pytest.mark.slow)])
def test_bit_equal(name: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")
    from tflite_models import Reference

    model = tilewright.compile(path_of(name))
    reference = Reference(path_of(name).read_bytes())
    for seed in range(3):
        inputs = inputs_of(model, seed)
        for a, b in zip(model(*inputs), reference(*inputs), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_no_transpose_is_left(name: str) -> None:
    """But that of the input, which is a view."""
    graph = optimize(load_tflite(path_of(name)))
    left = [n for n in graph.nodes if n.op == "transpose"]
    assert all(n.inputs[0] in graph.inputs for n in left)
    assert len(left) <= 1
    contractions = ("conv2d", "depthwise_conv2d", "matmul")
    assert all(
        graph.types[n.outputs[0]].dtype.name == "i32" for n in graph.nodes if n.op in contractions
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cortex-m4", "cortex-m7", "cortex-m55"])
@pytest.mark.parametrize("name", MODELS)
def test_boards(name: str, target: str) -> None:
    board = tilewright.compile(path_of(name), target)
    here = tilewright.compile(path_of(name))
    inputs = inputs_of(here, 0)
    for a, b in zip(board(*inputs), here(*inputs), strict=True):
        np.testing.assert_array_equal(a, b)
