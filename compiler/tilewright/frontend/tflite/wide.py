"""Products of 16-bit operands with byte weights (int16x8): sums that may need more than 32 bits.

In: i16 operands around 0, constant i8 weights, a bias of 64 (or 32) bits. Out: canonical integer nodes.
Sums are kept in 32 bits where the weights show that they fit, else in 64. With a bias of 64 bits the reference
kernels take the upper 16 bits of the multiplier (FULLY_CONNECTED: all 31) and round once, half up; else
they round as for bytes.
"""

from __future__ import annotations

import numpy as np

from tilewright.core.dtypes import I16, I32, I64
from tilewright.core.fixed_point import fixed_points
from tilewright.frontend.tflite import convolution
from tilewright.frontend.tflite.fixed import bounds, requantized
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.graph.ir import Array


def _checked(node: TfliteNode) -> tuple[Array, Array]:
    """(weights, scales of the products over that of the result)."""
    q = node.quantization(node.tensor(1))
    w = node.need_const(1, "the weights")
    step, zero = node.scale(node.tensor(0))
    out, out_zero = node.scale(node.result())
    if w.dtype != np.int8 or q.zero.any() or zero or out_zero or node.result().dtype is not I16:
        raise node.fail("16-bit operands need int8 weights and zero points of 0: convert it again")
    factors = step * q.scale.astype(np.float64) / out
    return w, factors.reshape(()) if q.per_tensor else factors


def _bias(node: TfliteNode, count: int) -> tuple[Array, bool]:
    """(bias, whether it has 64 bits); a missing one counts as 64."""
    if not node.has(2):
        return np.zeros(count, np.int64), True
    bias = node.need_const(2, "the bias").reshape(-1)
    if bias.dtype.kind != "i" or bias.size != count:
        raise node.fail(
            f"a bias of {bias.size} {bias.dtype} for {count} channels: repair the model"
        )
    return bias.astype(np.int64), bias.dtype.itemsize == 8


def _finished(node: TfliteNode, total: str, factors: Array, largest: int, long: bool) -> str:
    if not long:
        return requantized(node, node.cast(total, I32), factors, largest, node.result())
    multipliers, exponents = fixed_points(factors)
    upper = np.where(multipliers < 0x7FFF0000, (multipliers + (1 << 15)) >> 16, 0x7FFF)
    right = 15 - exponents
    if node.op.code == "FULLY_CONNECTED":
        upper, right = multipliers, 31 - exponents
    if (right < 1).any() or (right > 62).any():
        raise node.fail("the scale of its result does not fit those of its operands")
    product = node.add("mul", node.cast(total, I64), node.constant(upper, "multiplier", I64))
    half = node.add("add", product, node.constant(1 << (right - 1), "half", I64))
    steps = node.cast(node.add("shr", half, node.constant(right, "right", I64)), I32)
    for op, bound in zip(("max", "min"), bounds(node, node.result()), strict=True):
        steps = node.add(op, steps, node.like(steps, bound))
    return node.cast(steps, I16)


def _convolution(node: TfliteNode) -> str:
    w, factors = _checked(node)
    if w.ndim != 4:
        raise node.fail(f"weights of shape {list(w.shape)} are not of rank 4: repair the model")
    depthwise = node.op.code == "DEPTHWISE_CONV_2D"
    channel = 3 if depthwise else 0
    bias, long = _bias(node, w.shape[channel])
    rest = tuple(d for d in range(4) if d != channel)
    largest = _largest(w, rest, bias)
    kind = I32 if largest < 1 << 31 else I64
    make = convolution.depthwise if depthwise else convolution.conv
    image = node.cast(node.nchw(node.value(0)), kind)
    filters = node.constant(w, "weights", kind)
    total = make(node, image, filters, node.constant(bias, "bias", kind))
    shaped = factors.reshape(-1, 1, 1) if factors.ndim else factors
    return node.nhwc(_finished(node, total, shaped, largest, long))


def _fully_connected(node: TfliteNode) -> str:
    w, factors = _checked(node)
    if w.ndim != 2:
        raise node.fail(f"weights of shape {list(w.shape)} are not a matrix: repair the model")
    bias, long = _bias(node, w.shape[0])
    largest = _largest(w, (1,), bias)
    kind = I32 if largest < 1 << 31 else I64
    flat, lead = convolution.rows(node, w.shape[1])
    columns = node.constant(np.ascontiguousarray(w.T), "weights", kind)
    total = node.add("matmul", node.cast(flat, kind), columns, node.constant(bias, "bias", kind))
    return node.reshape(_finished(node, total, factors, largest, long), (*lead, w.shape[0]))


def _largest(w: Array, rest: tuple[int, ...], bias: Array) -> int:
    """The largest magnitude that a sum can have."""
    sums = np.abs(w.astype(np.int64)).sum(axis=rest) << 15
    return int((sums + np.abs(bias)).max(initial=0))


WIDE: Importers = {
    "CONV_2D": one(_convolution),
    "DEPTHWISE_CONV_2D": one(_convolution),
    "FULLY_CONNECTED": one(_fully_connected),
}
