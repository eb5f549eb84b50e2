"""Integer arithmetic where a model says so with pairs of quantize and dequantize (QDQ).

    quantize(relu(conv2d(dequantize(x), dequantize(w), b)))
      ->   requantize(conv2d(x, w, b'))          all integers; b' holds b and x's zero point

Convolutions, products, sums of two tensors, means and data movement become integer operators; what has no
integer form stays in floats between its pair. Not bit-equal to the float form: a result may be one step
away where the exact value lies between two steps, as every integer runtime's may.
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.dtypes import I32, DType
from tilewright.graph.ir import Array, Attrs, Graph, Node, TensorType
from tilewright.registry import operator

#: contraction -> dim of the weights that its output channels run along
_CHANNEL = {"conv2d": 0, "depthwise_conv2d": 0, "matmul": -1}
#: Data movement: the same on integers; and a maximum, which keeps their order.
_MOVEMENT = frozenset({
    "reshape", "transpose", "slice", "expand", "tile", "depth_to_space", "space_to_depth", "copy",
    "max_pool2d",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scale:
    """How integers of `dtype` stand for reals: (x - zero) * step."""

    step: float
    zero: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class _Result:
    """What a quantised result must be: its steps, and the bounds of its integers."""

    scale: _Scale
    low: int
    high: int


def quantize(graph: Graph) -> Graph:
    """Replace what lies between pairs by integer nodes, wherever there is an integer form."""
    g = graph.clone()
    if not any(n.op == "quantize" for n in g.nodes):
        return g
    made = g.producers()
    nodes: list[Node] = []
    for node in g.nodes:
        if node.op == "quantize":
            nodes += _Rewriter(g, made, node).run() or [node]
        else:
            nodes.append(node)
    g.nodes = nodes
    return g


class _Rewriter:
    """The integer nodes for one `quantize` node."""

    def __init__(self, g: Graph, made: Mapping[str, Node], node: Node) -> None:
        self.g, self.made, self.node = g, made, node
        self.nodes: list[Node] = []

    def run(self) -> list[Node] | None:
        scale = self.scale(self.node)
        if scale is None or scale.dtype.bits != 8:
            return None
        source, low, high = self.bounds(self.node.inputs[0])
        producer = self.made.get(source)
        if producer is None:
            return None
        info = np.iinfo(str(scale.dtype.numpy))
        lowest, highest = (
            int(np.clip(np.rint(b / scale.step) + scale.zero, info.min, info.max))
            for b in (low, high)
        )
        want = _Result(scale, lowest, highest)
        if producer.op in _CHANNEL:
            done = self.contraction(producer, want)
        elif producer.op == "add":
            done = self.addition(producer, want)
        elif producer.op == "reduce_mean":
            done = self.mean(producer, want)
        elif producer.op == "concat":
            done = self.concatenation(producer, want)
        else:
            done = self.movement(producer, want)
        return self.nodes if done else None

    # ---- reading the graph

    def scale(self, node: Node) -> _Scale | None:
        """Steps of a quantize or dequantize node with one scale for all."""
        step, zero = (self.g.constants.get(i) for i in node.inputs[1:3])
        if step is None or zero is None or step.size != 1 or not step.reshape(-1)[0] > 0:
            return None
        number = self.g.types[node.inputs[2]].dtype
        return _Scale(float(step.reshape(-1)[0]), int(zero.reshape(-1)[0]), number)

    def bounds(self, name: str) -> tuple[str, float, float]:
        """Look through relu and clip: (what they cut, lower bound, upper bound)."""
        low, high = -inf, inf
        while (node := self.made.get(name)) is not None and node.op in ("relu", "clip"):
            a, b = (0.0, inf) if node.op == "relu" else (node.attrs["min"], node.attrs["max"])
            assert isinstance(a, int | float) and isinstance(b, int | float)
            low, high = min(max(low, a), b), max(min(high, b), a)
            name = node.inputs[0]
        return name, low, high

    def integers(self, name: str) -> tuple[str, _Scale] | None:
        """The integers that a float value stands for, if it is a dequantized tensor of bytes."""
        node = self.made.get(name)
        scale = self.scale(node) if node is not None and node.op == "dequantize" else None
        if node is None or scale is None or scale.dtype.bits != 8:
            return None
        return node.inputs[0], scale

    def weights(self, name: str, channel: int) -> tuple[Array, Array] | None:
        """Constant weights as signed bytes and the step of each channel (float64)."""
        found = self._constant(name)
        if found is None:
            return None
        values, steps, zeros = found
        centred = values.astype(np.int64) - zeros
        rows = np.moveaxis(steps, channel, 0).reshape(steps.shape[channel], -1)
        if np.abs(centred).max(initial=0) > 128 or centred.max(initial=0) > 127:
            return None
        if (rows != rows[:, :1]).any():
            return None
        return centred.astype(np.int8), rows[:, 0].astype(np.float64)

    def _constant(self, name: str) -> tuple[Array, Array, Array] | None:
        """(integers, steps, zero points), all of one shape, through views of a constant."""
        node = self.made.get(name)
        if node is None:
            return None
        if node.op == "dequantize":
            parts = [self.g.constants.get(i) for i in node.inputs]
            if any(p is None for p in parts):
                return None
            values, steps, zeros = (np.broadcast_to(p, self.g.types[name].shape) for p in parts)  # type: ignore[arg-type]
            return values, steps, zeros
        if node.op in ("transpose", "reshape") and (inner := self._constant(node.inputs[0])):
            a, b, c = (operator(node.op).reference([p], node.attrs)[0] for p in inner)
            return a, b, c
        return None

    def floats(self, name: str) -> Array | None:
        """A constant, or one that is dequantized, in float64."""
        value = self.g.constants.get(name)
        if value is not None:
            return value.astype(np.float64)
        found = self._constant(name)
        if found is None:
            return None
        values, steps, zeros = found
        return (values.astype(np.float64) - zeros) * steps

    # ---- integer forms

    def contraction(self, node: Node, want: _Result) -> bool:
        x = self.integers(node.inputs[0])
        found = self.weights(node.inputs[1], _CHANNEL[node.op])
        if x is None or found is None:
            return False
        source, steps = x
        w, w_steps = found
        real: Array | None = np.zeros(())
        if len(node.inputs) > 2 and node.inputs[2]:
            real = self.floats(node.inputs[2])
        if real is None:
            return False
        channels = w.shape[_CHANNEL[node.op]]
        real = real.reshape(-1) if real.size in (1, channels) else None
        if real is None or (node.op == "matmul" and w.ndim != 2):
            return False
        others = tuple(d for d in range(w.ndim) if d != _CHANNEL[node.op] % w.ndim)
        sums = w.astype(np.int64).sum(axis=others)
        bias = np.rint(real / (steps.step * w_steps)).astype(np.int64) - steps.zero * sums
        largest = np.abs(w.astype(np.int64)).sum(axis=others) * 255 + np.abs(bias)
        if largest.max() >= 1 << 31:
            return False
        attrs: Attrs = (
            node.attrs if node.op == "matmul" else {**node.attrs, "pad_value": steps.zero}
        )
        inputs = (
            source,
            self.g.add_constant(f"{node.name}.w", w),
            self.g.add_constant(f"{node.name}.b", bias.astype(np.int32)),
        )
        total = self.make(node.name, node.op, inputs, attrs)
        shape = (channels,) if node.op == "matmul" else (channels, 1, 1)
        factors = (steps.step * w_steps / want.scale.step).reshape(shape)
        return self.requantize(total, factors, int(largest.max()), want)

    def addition(self, node: Node, want: _Result) -> bool:
        a, b = (self.integers(i) for i in node.inputs)
        if a is None or b is None:
            return False
        ratios = [s.step / want.scale.step for _, s in (a, b)]
        # the sum of two products of 9-bit numbers, and its rounding, must fit 31 bits
        bits = min(int(np.floor(np.log2((1 << 21) / max(ratios)))), 24)
        if bits < 8:
            return False
        factors = [round(r * 2**bits) for r in ratios]
        attrs: Attrs = {
            "factor_a": factors[0], "factor_b": factors[1], "zero_a": a[1].zero, "zero_b": b[1].zero,
            "bits": bits, "zero_point": want.scale.zero, "low": want.low, "high": want.high,
            "to": want.scale.dtype.name,
        }  # fmt: skip
        self.finish("quantized_add", (a[0], b[0]), attrs)
        return True

    def mean(self, node: Node, want: _Result) -> bool:
        x = self.integers(node.inputs[0])
        if x is None:
            return False
        source, steps = x
        count = prod(self.g.types[node.inputs[0]].shape[a] for a in ints(node.attrs, "axes"))
        total = self.make(node.name, "reduce_sum", (source,), {**node.attrs, "to": "i32"})
        total = self.shifted(total, -steps.zero * count)
        factor = np.asarray(steps.step / (want.scale.step * count))
        return self.requantize(total, factor, 255 * count, want)

    def concatenation(self, node: Node, want: _Result) -> bool:
        parts = [self.integers(i) for i in node.inputs]
        info = np.iinfo(str(want.scale.dtype.numpy))
        if None in parts or (want.low, want.high) != (info.min, info.max):
            return False
        names: list[str] = []
        for part in parts:
            assert part is not None
            source, steps = part
            if steps == want.scale:
                names.append(source)
                continue
            rescaled = self.rescale(source, steps, want, None)
            if rescaled is None:
                return False
            names.append(rescaled)
        self.finish("concat", tuple(names), node.attrs)
        return True

    def movement(self, node: Node, want: _Result) -> bool:
        """Move the integers, then change their steps where the result has others."""
        moves = node.op in _MOVEMENT
        x = self.integers(node.inputs[0] if moves else node.outputs[0])
        if x is None:
            return False
        source, steps = x
        info = np.iinfo(str(want.scale.dtype.numpy))
        same = steps == want.scale and (want.low, want.high) == (info.min, info.max)
        if same and moves:
            self.finish(node.op, (source,), node.attrs)
            return True
        if same:
            self.finish("copy", (source,), {})
            return True
        if moves:
            source = self.make(node.name, node.op, (source,), node.attrs)
        return self.rescale(source, steps, want, self.node.outputs[0]) is not None

    # ---- making nodes

    def make(self, name: str, op: str, inputs: tuple[str, ...], attrs: Attrs) -> str:
        """Add a node; returns the name of its result."""
        out = self.g.fresh(f"{self.node.outputs[0]}.{op}")
        (self.g.types[out],) = operator(op).infer([self.g.types[i] for i in inputs], attrs)
        self.nodes.append(Node(name, op, inputs, (out,), attrs))
        return out

    def finish(self, op: str, inputs: tuple[str, ...], attrs: Attrs) -> None:
        """Add the node that computes the quantised result."""
        self.nodes.append(Node(self.node.name, op, inputs, self.node.outputs, attrs))

    def shifted(self, name: str, by: int) -> str:
        """An i32 value plus a constant."""
        if not by:
            return name
        constant = self.g.add_constant(f"{name}.offset", np.asarray(by, np.int32))
        return self.make(self.node.name, "add", (name, constant), {})

    def rescale(self, name: str, steps: _Scale, want: _Result, out: str | None) -> str | None:
        """Bytes with one scale as bytes with another; `out` names the result if it has a name."""
        wide = self.make(self.node.name, "cast", (name,), {"to": "i32"})
        wide = self.shifted(wide, -steps.zero)
        return self.rounded(wide, np.asarray(steps.step / want.scale.step), 255, want, out)

    def requantize(self, total: str, factors: Array, largest: int, want: _Result) -> bool:
        return self.rounded(total, factors, largest, want, self.node.outputs[0]) is not None

    def rounded(
        self, total: str, factors: Array, largest: int, want: _Result, out: str | None
    ) -> str | None:
        """`requantize` by real factors; None if they are too large for 32 bits."""
        shift = 0
        while factors.max() * 2.0 ** (32 - shift) >= (1 << 31) - 1:
            shift += 1
        if largest << shift >= 1 << 31:
            return None
        multiplier = np.rint(factors * 2.0 ** (32 - shift)).astype(np.int32)
        constant = self.g.add_constant(f"{total}.factor", multiplier)
        attrs: Attrs = {
            "shift": shift, "zero_point": want.scale.zero, "low": want.low, "high": want.high,
            "to": want.scale.dtype.name,
        }  # fmt: skip
        if out is None:
            return self.make(self.node.name, "requantize", (total, constant), attrs)
        assert self.g.types[total].dtype is I32
        self.g.types[out] = TensorType(want.scale.dtype, self.g.types[total].shape)
        self.finish("requantize", (total, constant), attrs)
        return out
