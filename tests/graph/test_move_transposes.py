"""Transposes between channels last and first meet and vanish, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.graph import interp
from tilewright.graph.ir import Graph, Node, type_of
from tilewright.graph.passes import optimize
from tilewright.graph.passes.move_transposes import move_transposes
from tilewright.graph.verify import verify
from tilewright.registry import operator

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
RNG = np.random.default_rng(2)


class Net:
    """A graph under construction; `add` infers types."""

    def __init__(self, *shape: int) -> None:
        self.g = Graph("net", ["x"], [])
        self.g.types["x"] = type_of(np.zeros(shape, np.float32))

    def const(self, *shape: int) -> str:
        return self.g.add_constant("c", RNG.standard_normal(shape).astype(np.float32))

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        out = self.g.fresh(op)
        (self.g.types[out],) = operator(op).infer([self.g.types[i] for i in inputs], attrs)
        self.g.nodes.append(Node(f"n{len(self.g.nodes)}", op, inputs, (out,), attrs))
        return out

    def conv(self, x: str, channels: int) -> str:
        """A convolution of an image that lies channels last."""
        w = self.const(channels, self.g.types[x].shape[3], 3, 3)
        attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
        y = self.add("conv2d", self.add("transpose", x, perm=FIRST), w, **attrs)
        return self.add("transpose", y, perm=LAST)

    def done(self, *outputs: str) -> Graph:
        self.g.outputs = list(outputs)
        verify(self.g)
        return self.g


def transposes(g: Graph) -> int:
    return sum(n.op == "transpose" for n in g.nodes)


def same(g: Graph) -> Graph:
    """The graph after all passes, which computes the same as before and after this one alone."""
    x = RNG.standard_normal(g.types["x"].shape).astype(np.float32)
    before = interp.run(g, {"x": x})
    alone, made = move_transposes(g), optimize(g)
    for other in (alone, made):
        verify(other)
        after = interp.run(other, {"x": x})
        for a, b in zip(g.outputs, other.outputs, strict=True):
            np.testing.assert_allclose(before[a], after[b], rtol=1e-5, atol=1e-5)
    return made


def test_a_residual_network_keeps_the_transposes_at_its_ends() -> None:
    net = Net(1, 6, 7, 3)
    x = net.add("relu", net.add("add", net.conv("x", 4), net.const(4)))
    y = net.add("clip", net.conv(x, 4), min=0.0, max=6.0)
    z = net.add("relu", net.add("add", x, net.add("prelu", y, net.const(1, 1, 4))))
    pad: dict[str, Any] = {
        "before": (0, 1, 0, 0),
        "after": (0, 0, 1, 2),
        "mode": "constant",
        "value": 0.0,
    }
    w = net.conv(net.add("pad", z, **pad), 5)
    mean = net.add("reduce_mean", net.add("concat", w, w, axis=3), axes=(1, 2), keepdims=False)
    made = same(net.done(mean, z))
    assert transposes(made) == 2  # of the input, and of the second output


def test_a_gate_of_one_vector_goes_along() -> None:
    """Squeeze and excitation: a mean, two products, back onto the image."""
    net = Net(1, 6, 7, 3)
    x = net.conv("x", 4)
    mean = net.add("reshape", net.add("reduce_mean", x, axes=(1, 2), keepdims=True), shape=(1, 4))
    gate = net.add("sigmoid", net.add("matmul", mean, net.const(4, 4)))
    scaled = net.add("mul", x, net.add("reshape", gate, shape=(1, 1, 1, 4)))
    made = same(net.done(net.add("reduce_max", net.conv(scaled, 2), axes=(1, 2), keepdims=False)))
    assert transposes(made) == 1


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_axes_follow(op: str) -> None:
    net = Net(2, 3, 4, 5)
    cut = net.add(
        "slice", net.conv("x", 6), starts=(0, 1, 0, 2), ends=(2, 3, 4, 6), steps=(1, 1, 2, 1)
    )
    y = net.conv(net.add(op, cut, axis=3), 2)
    z = net.add(
        "argmax", net.add("tile", y, repeats=(1, 2, 1, 1)), axis=3, keepdims=True, select_last=False
    )
    made = same(net.done(z))
    assert transposes(made) <= 2


def test_what_precedes_a_convolution_is_raised() -> None:
    """Elementwise work on the input then writes the convolution's border itself."""
    net = Net(1, 6, 7, 3)
    scaled = net.add("mul", net.add("sub", "x", net.const(3)), net.const(1, 1, 1, 3))
    made = same(net.done(net.add("reduce_mean", net.conv(scaled, 2), axes=(1, 2), keepdims=False)))
    assert [n.op for n in made.nodes[:2]] == ["transpose", "sub"]


def test_other_permutations_stay() -> None:
    net = Net(2, 3, 4, 5)
    y = net.add("relu", net.add("transpose", "x", perm=(0, 2, 1, 3)))
    assert transposes(same(net.done(y))) == 1


def test_an_image_that_others_read_untransposed() -> None:
    net = Net(1, 4, 5, 3)
    x = net.conv("x", 4)
    flat = net.add("reshape", x, shape=(1, 80))
    y = net.conv(net.add("relu", x), 2)
    made = same(net.done(net.add("matmul", flat, net.const(80, 3)), net.add("relu", y)))
    assert transposes(made) == 3
