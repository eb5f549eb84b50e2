"""What models keep from run to run, and subgraphs: compiled, over several runs, against LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import i8, same
from tflite_models import Op, Reference, T, build, const, samples, single

import tilewright
from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.tflite.load import load_tflite
from tilewright.graph.text import parse, same_graph, to_text

RNG = np.random.default_rng(3)


def f(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def agree(model: bytes, runs: int = 5, steps: int = 0) -> tilewright.CompiledModel:
    """Run after run, with other inputs each time."""
    compiled: Any = tilewright.compile(model)
    reference = Reference(model)
    for seed in range(runs):
        inputs = samples(model, seed)
        for a, b in zip(compiled(*inputs), reference(*inputs), strict=True):
            same(a, b, steps, 2e-5)
    return compiled


def accumulator(initial: np.ndarray | None) -> bytes:
    """y = state + x, kept; CALL_ONCE gives the state its first value."""
    handle = T(kind="RESOURCE", shape=())
    row = T("float32", (1, 3))
    named = ("VarHandleOptions", {"sharedName": "total", "container": ""})
    main = (
        {"x": row, "h": handle, "old": row, "new": row},
        [
            Op("CALL_ONCE", [], [], "CallOnceOptions", {"initSubgraphIndex": 1}),
            Op("VAR_HANDLE", [], ["h"], *named),
            Op("READ_VARIABLE", ["h"], ["old"], "ReadVariableOptions"),
            Op("ADD", ["old", "x"], ["new"], "AddOptions"),
            Op("ASSIGN_VARIABLE", ["h", "new"], [], "AssignVariableOptions"),
        ],
        ["x"],
        ["new"],
    )
    first = np.zeros((1, 3), np.float32) if initial is None else initial
    once = (
        {"h": handle, "value": const(first)},
        [
            Op("VAR_HANDLE", [], ["h"], *named),
            Op("ASSIGN_VARIABLE", ["h", "value"], [], "AssignVariableOptions"),
        ],
        [],
        [],
    )
    return build(main, once)


@pytest.mark.parametrize("initial", [None, np.array([[1.5, -2.0, 7.0]], np.float32)])
def test_variables(initial: np.ndarray | None, tmp_path: Path) -> None:
    compiled = agree(accumulator(initial))
    assert [t.name for t in compiled.inputs] == ["x"]
    assert len(compiled.outputs) == 1
    x = np.ones((1, 3), np.float32)
    first = 0 if initial is None else initial
    compiled.reset()
    np.testing.assert_array_equal(compiled(x)[0], x + first)
    np.testing.assert_array_equal(compiled(x)[0], 2 * x + first)
    compiled.save(tmp_path)
    loaded = tilewright.load(tmp_path)
    assert loaded.spec.states == compiled.spec.states
    for k in range(1, 4):
        np.testing.assert_array_equal(loaded(x)[0], k * x + first)
    name = compiled.name.upper()
    header = (tmp_path / f"{compiled.name}.h").read_text()
    assert f"#define {name}_STATE_COUNT 1" in header
    assert f"{compiled.name}_reset" in header


def test_states_have_a_text_form() -> None:
    graph = load_tflite(accumulator(np.array([[1.5, -2.0, 7.0]], np.float32)))
    assert len(graph.states) == 1
    assert same_graph(parse(to_text(graph), graph.constants), graph)


def test_a_variable_that_is_only_initialised_is_no_state() -> None:
    handle, row = T(kind="RESOURCE", shape=()), T("float32", (1, 3))
    named = ("VarHandleOptions", {"sharedName": "v", "container": ""})
    main = (
        {"x": row, "h": handle, "v": row, "y": row},
        [
            Op("CALL_ONCE", [], [], "CallOnceOptions", {"initSubgraphIndex": 1}),
            Op("VAR_HANDLE", [], ["h"], *named),
            Op("READ_VARIABLE", ["h"], ["v"], "ReadVariableOptions"),
            Op("MUL", ["x", "v"], ["y"], "MulOptions"),
        ],
        ["x"],
        ["y"],
    )
    once = (
        {"h": handle, "value": const(f(1, 3))},
        [
            Op("VAR_HANDLE", [], ["h"], *named),
            Op("ASSIGN_VARIABLE", ["h", "value"], [], "AssignVariableOptions"),
        ],
        [],
        [],
    )
    assert not agree(build(main, once)).spec.states


@pytest.mark.parametrize("rank", [1, 2])
def test_svdf(rank: int) -> None:
    state = T("float32", (2, 8 * 5), variable=True)
    agree(
        single(
            "SVDF", [T("float32", (2, 6)), const(f(8, 6)), const(f(8, 5)), const(f(8 // rank)), state],
            [T("float32", (2, 8 // rank))], "SVDFOptions", rank=rank, fusedActivationFunction=1,
        ),
        runs=8,
    )  # fmt: skip


def test_svdf_of_bytes() -> None:
    time = const(RNG.integers(-3000, 3000, (8, 5)).astype(np.int16), scale=2**-12)
    bias = const(RNG.integers(-999, 999, 8).astype(np.int32), scale=2**-12 * 0.004)
    agree(
        single(
            "SVDF",
            [T("int8", (1, 6), scale=0.05, zero=-3), const(i8(8, 6), scale=0.01), time, bias,
             T("int16", (1, 8 * 5), scale=0.004, variable=True)],
            [T("int8", (1, 8), scale=0.05, zero=4)], "SVDFOptions", rank=1, fusedActivationFunction=1,
        ),
        runs=8,
    )  # fmt: skip


@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("major", [False, True])
def test_lstm(coupled: bool, major: bool, weights: str) -> None:
    units, size = 5, 4

    def matrix(*shape: int) -> T:
        return const(f(*shape)) if weights == "float32" else const(i8(*shape), scale=0.007)

    none = T("float32", (0,))
    inputs = [T("float32", (3, 2, size) if major else (2, 3, size))]
    inputs += [matrix(units, size) for _ in range(4)] + [matrix(units, units) for _ in range(4)]
    inputs += [none] * 3 + [const(f(units)) for _ in range(4)] + [none] * 2
    inputs += [T("float32", (2, units), variable=True) for _ in range(2)]
    names = [f"in{i}" for i in range(len(inputs))]
    absent = {9, 10, 11, 16, 17} | ({1, 5, 12} if coupled else set())
    tensors = {n: t for i, (n, t) in enumerate(zip(names, inputs, strict=True)) if i not in absent}
    tensors["out"] = T("float32", (3, 2, units) if major else (2, 3, units))
    fields = {"fusedActivationFunction": 4, "timeMajor": major, "cellClip": 0.9, "projClip": 0.0}
    options = "UnidirectionalSequenceLSTMOptions"
    used = ["" if i in absent else n for i, n in enumerate(names)]
    op = Op("UNIDIRECTIONAL_SEQUENCE_LSTM", used, ["out"], options, fields)
    agree(build((tensors, [op], ["in0"], ["out"])))


def test_rnn() -> None:
    inputs = [T("float32", (2, 4)), const(f(5, 4)), const(f(5, 5)), const(f(5))]
    state = T("float32", (2, 5), variable=True)
    agree(
        single(
            "RNN", [*inputs, state], [T("float32", (2, 5))], "RNNOptions", fusedActivationFunction=4
        )
    )


def branches(condition: T) -> bytes:
    row = T("float32", (2, 3))
    double = ({"a": row, "b": row}, [Op("ADD", ["a", "a"], ["b"], "AddOptions")], ["a"], ["b"])
    negative = ({"a": row, "b": row}, [Op("NEG", ["a"], ["b"])], ["a"], ["b"])
    main = (
        {"c": condition, "x": row, "y": row},
        [
            Op(
                "IF",
                ["c", "x"],
                ["y"],
                "IfOptions",
                {"thenSubgraphIndex": 1, "elseSubgraphIndex": 2},
            )
        ],
        ["x"] if condition.data is not None else ["c", "x"],
        ["y"],
    )
    return build(main, double, negative)


@pytest.mark.parametrize(
    "condition", [T("bool", (1,)), const(np.array([True])), const(np.array([False]))]
)
def test_if(condition: T) -> None:
    agree(branches(condition))


def loop(start: T) -> bytes:
    """x is doubled while i < 3."""
    row, i = T("float32", (2, 3)), T("int32", ())
    condition = (
        {"i": i, "x": row, "n": const(np.int32(3)), "go": T("bool", ())},
        [Op("LESS", ["i", "n"], ["go"], "LessOptions")], ["i", "x"], ["go"],
    )  # fmt: skip
    body = (
        {"i": i, "x": row, "one": const(np.int32(1)), "j": i, "y": row},
        [Op("ADD", ["i", "one"], ["j"], "AddOptions"), Op("ADD", ["x", "x"], ["y"], "AddOptions")],
        ["i", "x"], ["j", "y"],
    )  # fmt: skip
    main = (
        {"i": start, "x": row, "j": i, "y": row},
        [Op("WHILE", ["i", "x"], ["j", "y"], "WhileOptions", {"condSubgraphIndex": 1, "bodySubgraphIndex": 2})],
        ["x"] if start.data is not None else ["i", "x"], ["y"],
    )  # fmt: skip
    return build(main, condition, body)


def test_while() -> None:
    agree(loop(const(np.int32(0))))


def test_while_of_unknown_length() -> None:
    with pytest.raises(UnsupportedError, match="only at run time"):
        load_tflite(loop(T("int32", ())))


def test_an_endless_loop_is_refused() -> None:
    """Also one whose body does nothing."""
    row = T("float32", (2, 3))
    condition = ({"x": row, "go": const(np.array(True))}, [], ["x"], ["go"])
    body = ({"x": row}, [], ["x"], ["x"])
    fields = {"condSubgraphIndex": 1, "bodySubgraphIndex": 2}
    main = ({"x": row, "y": row}, [Op("WHILE", ["x"], ["y"], "WhileOptions", fields)], ["x"], ["y"])
    with pytest.raises(ModelError, match="at most"):
        load_tflite(build(main, condition, body))
