"""Second opinions: who is alone, and who has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilewright.bench.inputs import make_inputs
from tilewright.frontend.models import load_model
from tilewright.runtime.model import TensorSpec
from tilewright.testing.opinions import EXACT, OURS, opinions, verdict

MODEL = Path(__file__).parents[1] / "data" / "mlperftiny_autoencoder_ad_fp32_randw.onnx"


def test_the_one_whose_values_nobody_else_has_is_alone() -> None:
    a = np.linspace(-1, 1, 7)
    found = verdict("y", {"one": a, "two": a + 1e-9, "three": a + 1e-3})
    assert found.alone == "three" and found.others_apart < 1e-8 < found.apart
    assert verdict("y", {"one": a, "two": a + 1e-3}).alone == ""
    assert verdict("y", {"one": a, "two": a + 1e-3, "three": a + 2e-3}, tolerance=1).alone == ""


@pytest.mark.parametrize("odd", [np.full(7, np.nan), np.zeros(8)])
def test_other_shapes_and_nan_are_far_from_everything(odd: np.ndarray) -> None:
    a = np.linspace(-1, 1, 7)
    found = verdict("y", {"odd": odd, "one": a, "two": a})
    assert found.alone == "odd" and found.apart == float("inf") and found.others_apart == 0


def test_a_wrong_output_of_ours_is_ours_alone() -> None:
    graph = load_model(MODEL)
    specs = [TensorSpec(n, graph.types[n].shape, "float32") for n in graph.inputs]
    inputs = dict(zip(graph.inputs, make_inputs(specs, graph, 0), strict=True))
    parties = (EXACT, "onnx ReferenceEvaluator", "tvm", "litert")
    exact = opinions(MODEL, inputs, parties=parties)
    assert "litert" in exact.silent  # it runs no ONNX files
    wrong = exact.outputs[EXACT][0].copy()
    wrong.flat[3] += np.abs(wrong).max()
    (found,) = opinions(MODEL, inputs, [wrong], parties).verdicts(1e-5)
    assert found.alone == OURS and found.others_apart < 1e-5
