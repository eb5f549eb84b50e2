"""Indices that only the run knows, out of range in every way: compiled code clamps them, as documented."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import model
from onnx import helper

import tilewright
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.interp import run

node = helper.make_node
EXTREMES = np.array(
    [-(1 << 63), (1 << 63) - 1, -(1 << 31) - 1, 1 << 32, -6, -5, -1, 0, 4, 5, 1 << 40]
)
CASES = {
    "Gather": ([node("Gather", ["x", "i_n"], ["y"], axis=0)], (11,), None),
    "GatherElements": ([node("GatherElements", ["x", "i_n"], ["y"], axis=0)], (11, 7), None),
    "GatherND": ([node("GatherND", ["x", "i_n"], ["y"])], (11, 1), None),
    "ScatterElements": ([node("ScatterElements", ["x", "i_n", "u"], ["y"], axis=1)], (5, 4), (5, 4)),
    "ScatterND": ([node("ScatterND", ["x", "i_n", "u"], ["y"])], (11, 1), (11, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_out_of_range(name: str) -> None:
    nodes, shape, updates = CASES[name]
    inputs = {"x": [5, 7], "i_n": list(shape), **({"u": list(updates)} if updates else {})}
    m = model(nodes, inputs, ["y"], opset=18)
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((5, 7)).astype(np.float32),
        "i_n": np.resize(EXTREMES, shape),
        **({"u": np.ones(updates, np.float32)} if updates else {}),
    }
    (want,) = run(load_onnx(m), given).values()
    (got,) = tilewright.compile(m.SerializeToString())(**given)
    np.testing.assert_array_equal(got, want)
