"""Padding that moves nothing: constants at the ends of a concatenation, and the border its input has in memory."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import Builder, check_pass, random_inputs

from tilewright.core.dtypes import F32, I8, DType
from tilewright.graph.interp import run
from tilewright.graph.ir import Array, AttrValue, Graph
from tilewright.graph.passes.pad_with_constants import pad_with_constants
from tilewright.pipeline import build
from tilewright.session import Session

PLAIN: dict[str, AttrValue] = {"strides": (1, 1), "dilations": (1, 1)}


def _zeros(n: int, value: float = 0.0) -> Array:
    return np.full((1, n, 4, 5), value, np.float32)


@pytest.mark.parametrize(
    ("parts", "ops"),
    [
        (("x", _zeros(2)), ["pad"]),
        ((_zeros(1, 7), "x", _zeros(2, 7), _zeros(1, 7)), ["pad"]),
        ((_zeros(1), "x", "y", _zeros(3)), ["concat", "pad"]),
        ((_zeros(1), "x", _zeros(2), "y"), ["concat", "pad"]),
        (("x", _zeros(1), "y"), ["concat"]),  # in the middle
        (("x", np.concatenate([_zeros(1), _zeros(1, -0.0)], 1)), ["concat"]),  # two zeros
        ((_zeros(1), "x", _zeros(1, 3)), ["concat", "pad"]),
        ((_zeros(1, np.nan), "x"), ["pad"]),
        (("x", "y"), ["concat"]),
    ],
)
def test_constants_at_the_ends(parts: tuple[str | Array, ...], ops: list[str]) -> None:
    b = Builder(x=(1, 3, 4, 5), y=(1, 2, 4, 5))
    names = [p if isinstance(p, str) else b.const(f"c{k}", p) for k, p in enumerate(parts)]
    out = check_pass(pad_with_constants, b.done(b.node("concat", "out", *names, axis=1)))
    assert [n.op for n in out.nodes] == ops


def test_nothing_but_constants() -> None:
    b = Builder(x=(1, 3, 4, 5))
    b.const("c", _zeros(2))
    b.node("concat", "out", "c", "c", axis=1)
    assert pad_with_constants(b.done("out")).nodes == b.graph.nodes


def _block(pads: dict[str, AttrValue], kind: DType, window: str, own: int) -> Graph:
    """A convolution whose result is read by another one with a border of its own, and padded for a sum, as BlazeFace
    has it; what is padded is also convolved with a border."""
    b = Builder()
    b.input("x", (1, 3, 6, 6), kind)
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> str:
        name = b.graph.fresh("w")
        return b.const(name, rng.integers(-3, 4, shape).astype(kind.numpy))

    def back(value: str) -> str:
        if kind is not I8:
            return value
        name = b.graph.fresh("bytes")
        return b.node("cast", name, value, to="i8")

    value = back(b.conv("c", "x", weights(8, 3, 1, 1)))
    padded = b.node("pad", "p", value, mode="constant", **pads)
    wide = b.graph.types[padded].shape[1]
    if window == "max_pool2d":
        b.node(window, "d", value, kernel=(3, 3), pads=(1, 1, 1, 1), **PLAIN)
    else:
        b.node(window, "d", value, weights(8, 1, 3, 3), pads=(1, 1, 1, 1), **PLAIN)
    b.node("depthwise_conv2d", "e", padded, weights(wide, 1, 3, 3), pads=(own,) * 4, **PLAIN)
    b.node("add", "s", padded, padded)
    return b.done("d", "e", "s")


@pytest.mark.parametrize("kind", [F32, I8])
@pytest.mark.parametrize("window", ["depthwise_conv2d", "max_pool2d"])
@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize(
    ("pads", "views"),
    [
        ({"before": (0, 0, 0, 0), "after": (0, 5, 0, 0), "value": 0}, True),
        ({"before": (0, 2, 1, 0), "after": (0, 0, 0, 3), "value": 0}, True),
        ({"before": (0, 0, 0, 0), "after": (0, 5, 0, 0), "value": 3}, True),
        ({"before": (0, 0, -1, 0), "after": (0, 5, 0, 0), "value": 0}, False),
    ],
)
def test_padding_is_a_border(
    kind: DType, window: str, own: int, pads: dict[str, AttrValue], views: bool
) -> None:
    """Of the value that is padded; who wants another border around it gets a copy."""
    graph = _block(pads, kind, window, own)
    program = build(graph)
    if window == "depthwise_conv2d":
        assert any("node p" in s.nodes for s in program.steps) != views
    session = Session(program)
    inputs = random_inputs(graph)
    session.set_inputs([inputs["x"]])
    want = run(graph, inputs)
    for name, got in zip(graph.outputs, session.run(), strict=True):
        np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-5)


def test_inputs_and_results_are_padded_by_a_kernel() -> None:
    pads: dict[str, AttrValue] = {"before": (0, 1), "after": (2, 0), "value": 0, "mode": "constant"}
    b = Builder(x=(3, 4))
    b.node("pad", "p", "x", **pads)
    b.node("relu", "q", "p")
    b.node("pad", "out", "q", **pads)
    graph = b.done("out", "q")
    session = Session(build(graph))
    inputs = random_inputs(graph)
    session.set_inputs([inputs["x"]])
    for name, got in zip(graph.outputs, session.run(), strict=True):
        np.testing.assert_array_equal(got, run(graph, inputs)[name])
