"""The graph verifier names what is wrong; the interpreter computes, frees and checks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright.core.dtypes import F32, F64
from tilewright.errors import IRError, ModelError
from tilewright.graph.interp import run
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.graph.verify import verify


def sample() -> Graph:
    b = Builder(x=(2, 3))
    b.node("add", "s", "x", b.const("c", np.float32(1)))
    b.node("relu", "y", "s")
    return b.done("y")


def broken(change: Callable[[Graph], object]) -> Graph:
    g = sample()
    change(g)
    return g


BROKEN: dict[str, tuple[str, Callable[[Graph], object]]] = {
    "order": ("before it is defined", lambda g: g.nodes.reverse()),
    "twice": ("defined twice", lambda g: g.nodes.append(g.nodes[0])),
    "input twice": ("defined twice", lambda g: g.inputs.append("x")),
    "no operator": ("no operator `what`", lambda g: g.nodes.append(Node("n", "what", (), ("z",)))),
    "no type": ("has no type", lambda g: g.nodes.append(Node("n", "relu", ("x",), ("z",)))),
    "wrong type": ("declared f32", lambda g: g.types.update(y=TensorType(F32, (9,)))),
    "constant type": ("declared f64", lambda g: g.types.update(c=TensorType(F64, ()))),
    "attrs": ("attributes", lambda g: g.nodes.append(Node("n", "relu", ("x",), ("z",), {"a": 1}))),
    "no output": ("`nope` is not defined", lambda g: g.outputs.append("nope")),
    "too few inputs": ("cannot read", lambda g: (
        g.types.update(z=TensorType(F32, (2, 3))), g.nodes.append(Node("n", "add", ("x",), ("z",))),
    )),
    "attribute type": ("`perm` is 1", lambda g: (
        g.types.update(z=TensorType(F32, (2, 3))),
        g.nodes.append(Node("n", "transpose", ("x",), ("z",), {"perm": 1})),
    )),
    "bool for int": ("`axis` is True", lambda g: (
        g.types.update(z=TensorType(F32, (2, 3))),
        g.nodes.append(Node("n", "softmax", ("x",), ("z",), {"axis": True})),
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs(name: str) -> None:
    message, change = BROKEN[name]
    with pytest.raises(IRError, match=message):
        verify(broken(change))


def test_runs() -> None:
    x = np.array([[-3, 0, 1], [2, -1, 5]], np.float32)
    got = run(sample(), {"x": x})
    assert list(got) == ["y"]
    np.testing.assert_array_equal(got["y"], np.maximum(x + 1, 0))


def test_keep() -> None:
    x = np.zeros((2, 3), np.float32)
    assert list(run(sample(), {"x": x}, keep=["s"])) == ["y", "s"]
    assert set(run(sample(), {"x": x}, keep="all")) == {"x", "c", "s", "y"}


def test_outputs_that_are_inputs_and_constants() -> None:
    b = Builder(x=(2,))
    b.const("c", np.float32(4))
    got = run(b.done("c", "x", "c"), {"x": np.ones(2, np.float32)})
    assert list(got) == ["c", "x"] and got["c"] == 4


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "`x` is missing"),
        ({"x": np.zeros((2, 4), np.float32)}, r"is f32\[2, 4\], the model wants f32\[2, 3\]"),
        ({"x": np.zeros((2, 3), np.float64)}, "is f64"),
        ({"x": np.zeros((2, 3), np.float32), "q": np.zeros(1)}, "no input `q`"),
    ],
)
def test_wrong_inputs(inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run(sample(), inputs)
