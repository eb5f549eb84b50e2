"""LSTM, GRU, RNN and control flow, compiled: against ONNX Runtime, and state over many steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright
from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.errors import UnsupportedError
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.ir import Array

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
RNG = np.random.default_rng(3)


def f(*shape: int) -> Array:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def compare(model: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    want = session(model).run(None, feeds)
    got = tilewright.compile(model)(*feeds.values())
    for a, b in zip(got, want, strict=True):
        assert np.abs(np.asarray(a) - b).max(initial=0.0) < 5e-6


def layer(
    op: str, steps: int = 5, count: int = 2, hidden: int = 6, full: bool = True, lengths: bool = True,
    constants: bool = True, **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
    """A model of one recurrent layer, and its inputs."""
    both, rows = 2 if attrs.get("direction") == "bidirectional" else 1, GATES[op] * hidden
    values: dict[str, Array | None] = {
        "X": f(steps, count, 3), "W": f(both, rows, 3), "R": f(both, rows, hidden),
        "B": f(both, 2 * rows) if full else None,
        "L": np.array([steps, *RNG.integers(1, steps + 1, count - 1)], np.int32) if lengths else None,
        "H": f(both, count, hidden) if full else None,
    }  # fmt: skip
    outputs = ["Y", "Y_h"]
    if op == "LSTM":
        values |= {"C": f(both, count, hidden), "P": f(both, 3 * hidden)} if full else {}
        outputs.append("Y_c")
    given = {k: v for k, v in values.items() if v is not None}
    feeds = {k: v for k, v in given.items() if k in ("X", "L") or not constants}
    names = [k if v is not None else "" for k, v in values.items()]
    node = helper.make_node(op, names, outputs, name="n", hidden_size=hidden, **attrs)
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(k, kind(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in given.items() if k not in feeds],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ), feeds


@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layers(op: str, direction: str) -> None:
    compare(*layer(op, direction=direction))
    compare(*layer(op, direction=direction, full=False, lengths=False, clip=0.3))


@pytest.mark.parametrize("op", list(GATES))
def test_operands_known_at_run_time_and_odd_sizes(op: str) -> None:
    compare(*layer(op, constants=False))
    compare(*layer(op, steps=3, count=9, hidden=33))


def test_attributes() -> None:
    compare(*layer("GRU", linear_before_reset=1, direction="bidirectional"))
    compare(*layer("LSTM", input_forget=1))
    compare(*layer("LSTM", lengths=False, activations=["HardSigmoid", "ScaledTanh", "Affine"],
                   activation_alpha=[0.3, 0.5, 0.7], activation_beta=[0.4, 0.6, 0.8]))  # fmt: skip
    with pytest.raises(UnsupportedError, match="are not 3 of"):
        load_onnx(layer("LSTM", activations=["Tanh"])[0])


def test_every_direction_is_one_kernel_for_all_steps() -> None:
    model, _ = layer("LSTM", steps=100, direction="bidirectional")
    steps = [s.op for s in tilewright.compile(model).program.steps]
    assert steps.count("lstm") == 2 and steps.count("matmul") == 2 and len(steps) < 20


# ---------------------------------------------------------------- control flow


def body(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> onnx.GraphProto:
    """A nested graph: `i` is the iteration, names with `c` are conditions, others vectors of 3."""
    kinds = {"i": (TensorProto.INT64, []), "c": (TensorProto.BOOL, [])}

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, *kinds.get(name[0], (TensorProto.FLOAT, [3])))

    return helper.make_graph(nodes, "body", [*map(info, inputs)], [*map(info, outputs)])


def looped(stop: float) -> onnx.ModelProto:
    """Doubles x at most 6 times, as long as its sum stays below `stop`."""
    inner = body(
        [
            helper.make_node("Add", ["v", "v"], ["w"]),
            helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0),
            helper.make_node("Less", ["s", "stop"], ["cout"]),
        ],
        ["i", "cin", "v"], ["cout", "w"],
    )  # fmt: skip
    node = helper.make_node("Loop", ["most", "", "x"], ["y"], body=inner, name="loop")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.array(6, np.int64), "most"),
         numpy_helper.from_array(np.array(stop, np.float32), "stop")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("stop", [0.0, 20.0, 1e9])
def test_a_loop_ends_by_a_condition_at_run_time(stop: float) -> None:
    compare(looped(stop), {"x": np.array([1, 2, 0.5], np.float32)})


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("name", ["silero_vad_v6", "silero_vad_v6_16k_op15", "silero_vad_v6_half"])
def test_silero_vad_over_100_steps(name: str) -> None:
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    model = tilewright.compile(path, shapes=zoo()[name].shapes)
    peer = session(str(path))
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    largest = worst = 0.0
    for i in range(100):
        sound = (0.1 * (1 + np.sin(i / 5)) * RNG.standard_normal((1, 576))).astype(np.float32)
        feeds = {"input": sound, **zoo()[name].given}
        want, theirs = peer.run(None, {**feeds, "state": theirs})
        got, ours = model(*({**feeds, "state": ours}[t.name] for t in model.inputs))
        largest = max(largest, float(np.abs(want).max()))
        worst = max(worst, float(np.abs(got - want).max()))
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert worst <= 1e-4 * largest


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("signed", "columns", "zeros"), [(True, True, False), (False, False, True)]
)
def test_states_are_quantised_at_every_step(
    direction: str, signed: bool, columns: bool, zeros: bool
) -> None:
    """com.microsoft's DynamicQuantizeLSTM: in whole steps, so ONNX Runtime's results but for its own rounding."""
    both, hidden, size = 2 if direction == "bidirectional" else 1, 24, 9
    number: Any = np.int8 if signed else np.uint8
    low = -128 if signed else 0
    scales = (both, 4 * hidden) if columns else (both,)
    values: dict[str, Array] = {
        "X": f(6, 1, size), "W": RNG.integers(low, low + 256, (both, size, 4 * hidden)).astype(number),
        "R": RNG.integers(low, low + 256, (both, hidden, 4 * hidden)).astype(number),
        "B": f(both, 8 * hidden), "H": f(both, 1, hidden), "C": f(both, 1, hidden),
    }  # fmt: skip
    for name in ("W", "R"):
        values[f"{name}s"] = (RNG.random(scales) * 0.002 + 0.001).astype(np.float32)
        values[f"{name}z"] = np.full(scales, 128 if zeros else 0, number)
    inputs = ["X", "W", "R", "B", "", "H", "C", "", "Ws", "Wz", "Rs", "Rz"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", inputs, ["Y", "Y_h", "Y_c"], domain="com.microsoft",
        hidden_size=hidden, direction=direction,
    )  # fmt: skip
    free = ("X", "H", "C")
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, values[n].shape) for n in free],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("Y", "Y_h", "Y_c")],
        [numpy_helper.from_array(a, n) for n, a in values.items() if n not in free],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    compare(model, {n: values[n] for n in free})
