"""What operator files say about themselves in integers, and the forms that several of them share.

In: `IntegerForm`, a float operator between dequantized operands and a quantised result (made by
`graph.passes.quantize`). Out: True once integer nodes are made that compute the result, False where the
operator has no integer form for these operands and stays in floats.
Invariant: the result is that of the float operator, but for one step where the exact value lies between
two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tilewright.core.dtypes import DType
from tilewright.graph.ir import Array, Attrs, Node, TensorType


@dataclass(frozen=True, slots=True)
class Scale:
    """How integers of `dtype` stand for reals: (x - zero) * step."""

    step: float
    zero: int
    dtype: DType


class IntegerForm(Protocol):
    """A float operator whose result is quantised, and the means to make it in integers."""

    node: Node
    """The float operator."""
    scale: Scale
    """How the integers of the result stand for reals."""
    low: int
    """The least integer of the result, and below, `high`, the largest: narrower than its type after
    a ReLU."""
    high: int

    @property
    def whole(self) -> bool:
        """Whether `low` and `high` are those of the type: nothing is cut."""
        ...

    def type_of(self, value: str) -> TensorType:
        """Type of any value."""
        ...

    def integers(self, value: str) -> tuple[str, Scale] | None:
        """The bytes that a float value stands for, if they have one scale: also where they were
        moved, or multiplied by a constant, since."""
        ...

    def weights(self, value: str, channel: int) -> tuple[Array, Array] | None:
        """Constant bytes less their zero point (i16 if they need it), and the step of each element of dim `channel` (f64)."""
        ...

    def floats(self, value: str) -> Array | None:
        """A constant, or one that is dequantized, in f64."""
        ...

    def constant(self, hint: str, array: Array) -> str:
        """Add a constant; returns its name."""
        ...

    def make(self, op: str, inputs: tuple[str, ...], attrs: Attrs) -> str:
        """Add a node; returns the name of its result."""
        ...

    def finish(self, op: str, inputs: tuple[str, ...], attrs: Attrs) -> bool:
        """Add the node whose result is the one wanted."""
        ...

    def quantized(self, value: str) -> str | None:
        """The float operand as bytes with the scale and the bounds of the result, if it has an integer
        form itself: for operators before which a value may be quantised as well as after."""
        ...

    def shifted(self, value: str, by: int) -> str:
        """An i32 value plus a constant."""
        ...

    def rescaled(self, value: str, scale: Scale) -> str | None:
        """Bytes of another scale with that of the result; None if the scales are too far apart."""
        ...

    def rescale(self, value: str, scale: Scale) -> bool:
        """Finish with bytes of another scale."""
        ...

    def requantize(self, total: str, factors: Array, largest: int, early: bool = False) -> bool:
        """Finish with i32 values, of magnitude up to `largest`, times real factors, rounded before or
        (`early`) after the zero point is added, which decides ties."""
        ...

    def clamped(self, low: float, high: float) -> bool:
        """Finish with operand 0 cut to these bounds: as part of what computes it."""
        ...


def contraction(q: IntegerForm, channel: int) -> bool:
    """Sums of products of bytes with constant weights, whose dim `channel` is that of the result's
    channels; what the zero point of x adds to each sum is constant and part of the bias."""
    node = q.node
    x, found = q.integers(node.inputs[0]), q.weights(node.inputs[1], channel)
    if x is None or found is None:
        return False
    (source, scale), (w, steps) = x, found
    channels, flat = w.shape[channel], channel < 0
    real: Array | None = np.zeros(())
    if len(node.inputs) > 2 and node.inputs[2]:
        real = q.floats(node.inputs[2])
    if real is None or real.size not in (1, channels) or (flat and w.ndim != 2):
        return False
    others = tuple(d for d in range(w.ndim) if d != channel % w.ndim)
    wide = w.astype(np.int64)
    if w.size == 0:
        return False
    bias = np.rint(real.reshape(-1) / (scale.step * steps)) - scale.zero * wide.sum(axis=others)
    largest = np.abs(wide).sum(axis=others) * 255 + np.abs(bias)
    if not largest.max(initial=0) < 1 << 31:
        return False
    attrs: Attrs = node.attrs if flat else {**node.attrs, "pad_value": scale.zero}
    constants = (q.constant("weights", w), q.constant("bias", bias.astype(np.int32)))
    total = q.make(node.op, (source, *constants), attrs)
    # in float32 and in this order, as other runtimes compute the factor
    factors = np.float32(scale.step) * steps.astype(np.float32) / np.float32(q.scale.step)
    factors = factors.reshape((channels, *([] if flat else [1, 1])))
    return q.requantize(total, factors, int(largest.max()))


def movement(q: IntegerForm) -> bool:
    """Operators that pass on elements of operand 0: they move its bytes, which then change scale."""
    x, rest = q.integers(q.node.inputs[0]), q.node.inputs[1:]
    if x is None:
        before = q.quantized(q.node.inputs[0])
        return before is not None and q.finish(q.node.op, (before, *rest), q.node.attrs)
    source, scale = x
    if scale == q.scale and q.whole:
        return q.finish(q.node.op, (source, *rest), q.node.attrs)
    return q.rescale(q.make(q.node.op, (source, *rest), q.node.attrs), scale)


def choice(q: IntegerForm, first: int = 0) -> bool:
    """Operators whose result is one of their operands `first`, ...: on bytes of the result's scale."""
    names: list[str] = []
    for value in q.node.inputs[first:]:
        x = q.integers(value)
        if x is None:
            name = q.quantized(value)
        else:
            name = x[0] if x[1] == q.scale and q.whole else q.rescaled(*x)
        if name is None:
            return False
        names.append(name)
    return q.finish(q.node.op, (*q.node.inputs[:first], *names), q.node.attrs)


def average(q: IntegerForm, total: str, scale: Scale, counts: Array, most: int) -> bool:
    """Finish with sums of up to `most` bytes of this scale, divided by `counts`."""
    factors = np.asarray(scale.step / (q.scale.step * counts))
    return q.requantize(total, factors, 255 * most)
