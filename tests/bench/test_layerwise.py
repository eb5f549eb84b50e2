"""layerwise: every value in memory against what the file specifies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilewright
from tilewright.bench.inputs import make_inputs
from tilewright.bench.layerwise import Layers, judge_layers
from tilewright.frontend.models import load_model

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("name", ["dscnn_kws_int8_randw.tflite", "autoencoder_ad_fp32_randw.onnx"])
def test_layers(name: str) -> None:
    path = DATA / f"mlperftiny_{name}"
    compiled, graph = tilewright.compile(path), load_model(path)
    inputs = make_inputs(compiled.spec.inputs, graph, 0)
    layers = Layers()
    judge_layers(layers, compiled, graph, inputs)
    assert layers.values >= 9 and layers.units <= 1 and layers.error < 1e-5
    # another model than the one that was compiled is noticed
    first = next(n for n in graph.nodes if n.op in ("conv2d", "matmul"))
    weights = graph.constants[first.inputs[1]]
    changed = replace(graph, constants={**graph.constants, first.inputs[1]: -weights})
    wrong = Layers()
    judge_layers(wrong, compiled, changed, inputs)
    assert wrong.units > 1 or wrong.error > 0.1


def test_words() -> None:
    layers = Layers()
    assert str(layers) == "-"
    layers.add(np.array([1, 2], np.int8), np.array([1, 2], np.int8))
    assert str(layers) == "equal"
    layers.add(np.array([1, 2], np.int8), np.array([1, 3], np.int8))
    assert str(layers) == "1 of 4 by 1 unit"
