"""The graph's text form: what is printed reads back as the same graph, and errors name the line."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright.core.dtypes import ALL, BOOL
from tilewright.errors import IRError
from tilewright.graph.ir import Graph, Node
from tilewright.graph.text import parse, same_graph, to_text


def sample() -> Graph:
    b = Builder(x=(1, 3, 8, 8))
    w = b.const("w", np.random.default_rng(0).standard_normal((4, 3, 3, 3)))
    b.conv("y", "x", w, pads=(1, 1, 1, 1))
    b.node("clip", "z", "y", min=-math.inf, max=6.0)
    b.node("resize", "r", "z", sizes=(1, 4, 16, 16), scales=(1.0, 1.0, 2.0, 2.0), mode="nearest",
           coord="asymmetric", nearest_mode="floor", cubic_a=-0.75, exclude_outside=False)  # fmt: skip
    return b.done("r")


def test_round_trip() -> None:
    g = sample()
    assert same_graph(parse(to_text(g), g.constants), g)
    assert same_graph(parse(to_text(g, "inline")), g)
    assert to_text(parse(to_text(g, "hash"), g.constants)) == to_text(g)


@pytest.mark.parametrize("dtype", sorted(ALL))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 2)])
def test_constants(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    value = (rng.standard_normal(shape) * 100).astype(np.int8).astype(ALL[dtype].numpy)
    if ALL[dtype].is_float and value.size:
        value = value / 3
        value.reshape(-1)[0] = -0.0
    b = Builder()
    b.const("c", 0)
    b.graph.constants["c"] = value.astype(ALL[dtype].numpy)
    b.graph.types["c"] = b.graph.types["c"].__class__(ALL[dtype], shape)
    g = b.done("c")
    assert same_graph(parse(to_text(g)), g)


def test_extreme_floats_come_back() -> None:
    b = Builder()
    b.const("c", np.array([np.inf, -np.inf, 1e-45, 3.4e38, -0.0, 0.1], np.float32))
    b.const("n", np.array([np.nan, -np.nan], np.float32))
    g = b.done("c", "n")
    assert same_graph(parse(to_text(g), g.constants), g)


@pytest.mark.parametrize(
    "name",
    ["53", "a b", "_", "", "it's", 'q"', "a) {b=1} # 'x'", "x: f32[1]", "new\nline", "ü", "a/b:0", "graph",
     "input", "inf", "\\", "\u2028"],
)  # fmt: skip
def test_any_name(name: str) -> None:
    b = Builder()
    b.input(name or "x", (2,))
    x = b.graph.inputs[0]
    b.node("relu", f"{name}.out", x)
    g = b.done(f"{name}.out")
    g.name = name
    g.nodes[0] = g.nodes[0].with_(name=name)
    assert same_graph(parse(to_text(g)), g)


@pytest.mark.parametrize(
    "value",
    [0, -3, 1.5, -0.0, 1e-300, 1e22, math.inf, -math.inf, True, False, "a, b)=(", "", (), (1,), (1, 2),
     (1.0, math.inf, -math.inf), (0.5,)],
)  # fmt: skip
def test_attributes(value: object) -> None:
    g = sample()
    g.nodes[0] = Node("n", "conv2d", ("x", "", "w"), ("y",), {"a": value, "b": 1})  # type: ignore[dict-item]
    back = parse(to_text(g), g.constants)
    assert repr(back.nodes[0]) == repr(g.nodes[0])


@pytest.mark.parametrize(
    "text",
    ["nonsense", "input x", "input x: f99[1]", "const c: f32[2] = [0x1p0]", "const c: f32[64] = sha256 00",
     "y: f32[1] = relu(x", "y: f32[1] = relu(x) {a=} # 'n'", "output", "input x: f32[1] more", "input x: f32[-]",
     "input x: f32[1]\ninput x: f32[1]", "é", "=", "y: f32[1] = relu(x) {a=(1, (2))} # 'n'"],
)  # fmt: skip
def test_errors_name_the_line(text: str) -> None:
    with pytest.raises(IRError, match=r"line \d+: cannot read"):
        parse(f"graph g\n{text}\n")


def test_other_content_is_refused() -> None:
    g = sample()
    with pytest.raises(IRError, match="other content"):
        parse(to_text(g), {"w": g.constants["w"] + 1})


def test_bool_input() -> None:
    b = Builder()
    b.input("m", (3,), BOOL)
    b.node("not", "n", "m")
    g = b.done("n")
    assert same_graph(parse(to_text(g)), g)
