"""What amplifies roundings is told from what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tilewright.bench.sensitivity import STEP, moved, unrest
from tilewright.bench.verify import relative_error
from tilewright.cli import app
from tilewright.graph.ir import Array

X = np.random.default_rng(1).standard_normal(1000).astype(np.float32)


def test_only_floats_move_and_by_little() -> None:
    inputs = {"x": X, "i": np.arange(4)}
    out = moved(inputs, 0)
    assert out["i"] is inputs["i"] and np.array_equal(out["x"], moved(inputs, 0)["x"])
    assert 0 < np.abs(out["x"] / X - 1).max() <= 1.1 * STEP
    assert not np.array_equal(out["x"], moved(inputs, 1)["x"])


def test_cancellation_and_steps_are_restless_and_plain_functions_are_not() -> None:
    def cancelled(v: Mapping[str, Array]) -> Array:
        x = v["x"].astype(np.float64)
        return np.asarray([(x - X.astype(np.float64).mean()).mean()])

    def rounded(v: Mapping[str, Array]) -> Array:
        return np.asarray(np.rint(v["x"] * 1e5) % 2)

    def plain(v: Mapping[str, Array]) -> Array:
        return np.asarray(np.tanh(v["x"]))

    assert unrest(cancelled, {"x": X}, relative_error) > 1e-3
    assert unrest(rounded, {"x": X}, relative_error) == 1
    assert unrest(plain, {"x": X}, relative_error) < 1e-5


def test_a_mean_of_nothing_is_no_failure(tmp_path: Path) -> None:
    """Decomposed layer norms of normalised values, as exporters leave them."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("ReduceMean", ["d"], ["m2"], axes=[-1]),
        helper.make_node("MaxPool", ["m2"], ["y"], kernel_shape=[1, 1]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 5, 192])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("d",)],
    )  # fmt: skip
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 5, 1]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "mean.onnx"
    onnx.save(model, path)
    said = CliRunner().invoke(app, ["verify", str(path), "--seeds", "1"]).stdout
    assert "first layer that departs" not in said and "roundings explain" in said, said
    assert (
        "by itself moves by" in said and "amplifies roundings" in said
    )  # the output, of noise alone
