"""Whole models in the interpreter of a GPU's threads give what they give on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilewright import api
from tilewright.bench.inputs import make_inputs

DATA = Path(__file__).parents[1] / "data"
MODELS = [
    "autoencoder_ad_fp32_randw",
    pytest.param("autoencoder_ad_int8_qdq", marks=pytest.mark.slow),
    pytest.param("dscnn_kws_fp32_randw", marks=pytest.mark.slow),
    pytest.param("dscnn_kws_int8_qdq", marks=pytest.mark.slow),
    pytest.param("resnet8_ic_fp32_randw", marks=pytest.mark.slow),
    pytest.param("resnet8_ic_int8_qdq", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", MODELS)
def test_same_results(name: str) -> None:
    path = DATA / f"mlperftiny_{name}.onnx"
    there, here = api.compile(path, "cuda-sm80", device="emulator"), api.compile(path)
    inputs = make_inputs(here.inputs, here.program.graph, seed=0)
    for got, wanted in zip(there(*inputs), here(*inputs), strict=True):
        if np.issubdtype(wanted.dtype, np.integer):
            assert np.array_equal(got, wanted)
        else:
            assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
