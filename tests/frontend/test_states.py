"""States that a user declares for an ONNX model: kept between calls, in the artifact, refused where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import tilewright
from tilewright.cli import app
from tilewright.errors import ModelError
from tilewright.graph.ir import Array
from tilewright.rebuild import check_rebuilt

RNG = np.random.default_rng(5)
STATES = {"h": "hn", "c": "cn"}


def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def stepper() -> onnx.ModelProto:
    """An LSTM of one step that is given its states: x, h, c -> y, hn, cn."""
    weights = {
        "W": RNG.standard_normal((1, 32, 6)) * 0.5, "R": RNG.standard_normal((1, 32, 8)) * 0.5,
        "B": RNG.standard_normal((1, 64)) * 0.1,
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node(
                "LSTM", ["x", "W", "R", "B", "", "h", "c"], ["Y", "hn", "cn"], hidden_size=8
            ),
            helper.make_node("Sigmoid", ["Y"], ["y"]),
        ],
        "stepper",
        [info("x", 1, "n", 6), info("h", 1, "n", 8), info("c", 1, "n", 8)],
        [info("y", 1, 1, "n", 8), info("hn", 1, "n", 8), info("cn", 1, "n", 8)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def expected(model: onnx.ModelProto, steps: list[Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    h = c = np.zeros((1, 1, 8), np.float32)
    out: list[Array] = []
    for x in steps:
        y, h, c = session.run(None, {"x": x, "h": h, "c": c})
        out.append(y)
    return out


def test_a_hundred_steps_as_onnx_runtime_makes_them(tmp_path: Path) -> None:
    model = stepper()
    steps = [RNG.standard_normal((1, 1, 6)).astype(np.float32) for _ in range(100)]
    want = expected(model, steps)
    made = tilewright.compile(model.SerializeToString(), shapes={"n": (1,)}, states=STATES)
    made.save(tmp_path / "out")
    again = tilewright.load(tmp_path / "out")
    for m in (made, again):
        assert [t.name for t in m.inputs] == ["x"] and [t.name for t in m.outputs] == ["y"]
        for x, w in zip(steps, want, strict=True):
            (y,) = m(x)
            assert np.abs(y - w).max() < 1e-6
        m.reset()
        assert np.abs(m(x=steps[0])[0] - want[0]).max() < 1e-6
    headers = "".join(p.read_text() for p in (tmp_path / "out").glob("*.h"))
    assert "STATE_COUNT 2" in headers


def test_commands_take_states_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "stepper.onnx"
    onnx.save(stepper(), path)
    given = ["--shape", "n=1", "--state", "h=hn", "--state", "c=cn"]
    run = CliRunner().invoke
    assert run(app, ["compile", str(path), "-o", str(tmp_path / "out"), *given]).exit_code == 0
    assert check_rebuilt(tmp_path / "out", path) == []
    said = run(app, ["verify", str(path), *given])
    assert said.exit_code == 0 and "verified on 100 inputs" in said.stdout, said.stdout
    said = run(app, ["run", str(path), *given, "--input", "x=0.5"])
    assert said.exit_code == 0 and "hn" not in said.stdout, said.stdout


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"q": "hn"}, "`q` is no input; the inputs are x, h, c"),
        ({"h": "q"}, "`q` is no output; the outputs are y, hn, cn"),
        ({"h": "hn", "c": "hn"}, "belongs to another state already"),
        ({"x": "hn"}, "the input is f32\\[1, 1, 6\\], the output f32\\[1, 1, 8\\]"),
    ],
)
def test_what_cannot_be_a_state_is_refused(states: dict[str, str], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        tilewright.compile(stepper().SerializeToString(), shapes={"n": (1,)}, states=states)


def test_sizes_of_states_are_fixed() -> None:
    with pytest.raises(ModelError, match="fixed sizes"):
        tilewright.compile(stepper().SerializeToString(), shapes={"n": "1..4"}, states=STATES)
