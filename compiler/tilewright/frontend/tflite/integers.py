"""Operators over quantised tensors, in integer arithmetic, with the results of the reference kernels.

In: operators whose operands are i8, u8 or i16 with a scale. Out: canonical integer nodes.
Invariant: where the specification fixes the arithmetic (sums of products, additions, products, means,
pools, tables), results are those of TensorFlow Lite's reference kernels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.core.dtypes import F32, I8, I16, I32, U8
from tilewright.core.fixed_point import fixed_point, scaled
from tilewright.frontend.tflite import convolution, movement, reduction
from tilewright.frontend.tflite.elementwise import quantized
from tilewright.frontend.tflite.fixed import (
    bounds,
    centred,
    cut,
    every,
    finished,
    float_table,
    limits_of,
    looked_up,
    multiplied,
    nearest,
    requantized,
    to_table,
)
from tilewright.frontend.tflite.hard_swish import hard_swish_table
from tilewright.frontend.tflite.integer_windows import WINDOWS
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.frontend.tflite.products import PRODUCTS
from tilewright.graph.ir import Array

_F = np.float32

# ---------------------------------------------------------------- two operands


def _sum(minus: bool) -> Callable[[TfliteNode], str]:
    """Both operands on twice the larger scale, with 20 more bits (15 for i16), then on the result's."""

    def importer(node: TfliteNode) -> str:
        a, b, y = node.tensor(0), node.tensor(1), node.result()
        (left, za), (right, zb), (out, zero) = node.scale(a), node.scale(b), node.scale(y)
        bits = 15 if y.dtype is I16 else 20
        twice = 2 * max(left, right)
        factors = [left / twice, right / twice, twice / ((1 << bits) * out)]
        fixed = [fixed_point(f) for f in factors]
        if any(e > 0 for _, e in fixed):
            raise node.fail("the scale of its result is too small for those of its operands")
        low, high = bounds(node, y)
        assert y.dtype is not None
        attrs = {
            "left": bits, "zero_a": za, "multiplier_a": fixed[0][0], "right_a": -fixed[0][1], "zero_b": zb,
            "multiplier_b": fixed[1][0], "right_b": -fixed[1][1], "multiplier": fixed[2][0],
            "right": -fixed[2][1], "zero_point": zero, "low": low, "high": high, "to": y.dtype.name,
            "minus": minus,
        }  # fmt: skip
        return node.add("rescaled_add", node.value(0), node.value(1), **attrs)

    return importer


def _mul(node: TfliteNode) -> str:
    (left, za), (right, zb) = node.scale(node.tensor(0)), node.scale(node.tensor(1))
    y = node.result()
    out, zero = node.scale(y)
    multiplier, exponent = fixed_point(float(_F(left) * _F(right) / _F(out)))
    low, high = bounds(node, y)
    assert y.dtype is not None
    attrs = {
        "zero_a": za, "zero_b": zb, "multiplier": multiplier, "right": -exponent, "zero_point": zero,
        "low": low, "high": high, "to": y.dtype.name,
    }  # fmt: skip
    return node.add("rescaled_mul", node.value(0), node.value(1), **attrs)


def _prelu(node: TfliteNode) -> str:
    """Two factors: one for what is not negative, one for products with the slopes."""
    x, slope, y = node.tensor(0), node.tensor(1), node.result()
    (step, zx), (by, za), (out, zero) = node.scale(x), node.scale(slope), node.scale(y)
    value = centred(node, node.value(0), zx)
    slopes = centred(node, node.value(1), za)
    positive = multiplied(node, value, np.asarray(float(_F(step) / _F(out))), 255)
    factor = float(_F(step) * _F(by) / _F(out))
    product = node.add("mul", value, slopes)
    negative = multiplied(node, product, np.asarray(factor), 255 * 255)
    chosen = node.add("where", node.add("ge", value, node.like(value, 0)), positive, negative)
    return finished(node, chosen, zero, *limits_of(y))


def _choice(op: str) -> Callable[[TfliteNode], str]:
    return lambda node: node.add(op, _same(node, 0), _same(node, 1))


def _same(node: TfliteNode, i: int) -> str:
    """Input `i` with the scale of the result."""
    x, y = node.tensor(i), node.result()
    if node.scale(x) == node.scale(y) and x.dtype is y.dtype:
        return node.value(i)
    (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
    if x.dtype not in (I8, U8):
        value = centred(node, node.value(i), zero)
        return requantized(node, value, np.asarray(step / out), 1 << 16, y, "")
    steps = nearest((every(x).astype(np.float64) - zero) * _F(step) / _F(out))
    return looked_up(node, node.value(i), to_table(y, steps, out_zero))


def _concatenation(node: TfliteNode) -> str:
    axis = node.axis(int(node.option("Axis", 0)), node.type(0).rank)
    return movement.joined(node, [_same(node, i) for i in range(len(node.inputs))], axis)


# ---------------------------------------------------------------- one operand


def _relu(kind: str) -> Callable[[TfliteNode], str]:
    """Rescaled, then cut."""

    def importer(node: TfliteNode) -> str:
        x, y = node.tensor(0), node.result()
        (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
        low, high = bounds(node, y, kind)
        if (step, zero) == (out, out_zero):
            return cut(node, node.value(0), low, high)
        factor = fixed_point(float(_F(step) / _F(out)))
        if x.dtype in (I8, U8):
            steps = scaled(every(x).astype(np.int64) - zero, *factor)
            return looked_up(node, node.value(0), to_table(y, steps, out_zero).clip(low, high))
        value = centred(node, node.value(0), zero)
        return requantized(node, value, np.asarray(float(_F(step) / _F(out))), 1 << 16, y, kind)

    return importer


def _leaky_relu(node: TfliteNode) -> str:
    x, y = node.tensor(0), node.result()
    (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
    alpha = _F(node.option("Alpha", 0.0))
    value = every(x).astype(np.int64) - zero
    slope = float(_F(step) * alpha / _F(out))
    negative = scaled(value, *fixed_point(abs(slope))) * (-1 if slope < 0 else 1)
    positive = scaled(value, *fixed_point(float(_F(step) / _F(out))))
    steps = np.where(value >= 0, positive, negative)
    return looked_up(node, node.value(0), to_table(y, steps, out_zero))


def _table(function: Callable[[Array], Array]) -> Callable[[TfliteNode], str]:
    return lambda node: looked_up(node, node.value(0), float_table(node, function))


def _hard_swish(node: TfliteNode) -> str:
    x, y = node.tensor(0), node.result()
    (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
    steps = hard_swish_table(every(x).astype(np.int64) - zero, step, out)
    return looked_up(node, node.value(0), to_table(y, steps, out_zero))


def _softmax(node: TfliteNode) -> str:
    """exp(scale * beta * (x - max)) from a table of floats, over their sum."""
    t, y = node.tensor(0), node.result()
    step, x = node.scale(t)[0], node.value(0)
    out, zero = node.scale(y)
    last = max(node.type(0).rank - 1, 0)
    beta = _F(node.option("Beta", 1.0))
    table = np.exp(-(_F(step) * beta) * np.arange(256).astype(np.float32)).astype(np.float32)
    top = node.add("reduce_max", x, axes=(last,), keepdims=True)
    # bytes wrap, so that the difference is that of the integers modulo 256
    powers = node.add("table", node.add("sub", top, x), node.constant(table, "exp"))
    total = node.add("reduce_sum", powers, axes=(last,), keepdims=True)
    share = node.add("reciprocal", node.add("mul", total, node.like(total, out)))
    steps = node.add("add", node.add("mul", powers, share), node.like(powers, 0.5))
    return finished(node, node.cast(steps, I32), zero, *limits_of(y))


def requantize_bytes(node: TfliteNode) -> str:
    """QUANTIZE: floats to integers, or integers of one scale to another."""
    if node.type(0).dtype.is_float:
        return quantized(node, node.value(0))
    x, y = node.tensor(0), node.result()
    (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
    if x.dtype in (I8, U8) and y.dtype in (I8, U8):
        if (step, zero, x.dtype) == (out, out_zero, y.dtype):
            return node.value(0)
        steps = scaled(every(x).astype(np.int64) - zero, *fixed_point(step / out))
        return looked_up(node, node.value(0), to_table(y, steps, out_zero))
    if node.type(0).dtype in (I8, U8, I16, I32) and y.dtype in (I8, U8, I16):
        value = centred(node, node.value(0), zero)
        largest = 1 << (31 if x.dtype is I32 else 16)
        return requantized(node, value, np.asarray(step / out), largest, y, "")
    raise node.fail(f"{x.kind} to {y.kind} is not supported: convert the model again")


def _sigmoid(x: Array) -> Array:
    return _F(1) / (_F(1) + np.exp(-x))


def _erf_gelu(x: Array) -> Array:
    from math import erf

    shape = np.vectorize(erf, otypes=[np.float64])(x.astype(np.float64) / np.sqrt(2))
    return np.asarray(0.5 * x * (1 + shape))


def _gelu(node: TfliteNode) -> str:
    def tanh_gelu(x: Array) -> Array:
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))

    approximate = bool(node.option("Approximate", False))
    return _table(tanh_gelu if approximate else _erf_gelu)(node)


#: Functions of one operand, by builtin.
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "LOGISTIC": _sigmoid,
    "TANH": np.tanh,
    "ELU": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RSQRT": lambda x: 1 / np.sqrt(x),
    "SQUARE": lambda x: x * x,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "FLOOR": np.floor,
    "CEIL": np.ceil,
    "ROUND": np.rint,
    "SIGN": np.sign,
}

#: Over bytes and, where it says so, over i16.
INTEGER: Importers = {
    **PRODUCTS,
    **WINDOWS,
    "ADD": one(_sum(False)),
    "SUB": one(_sum(True)),
    "MUL": one(_mul),
    "MAXIMUM": one(_choice("max")),
    "MINIMUM": one(_choice("min")),
    "CONCATENATION": one(_concatenation),
    "PRELU": one(_prelu),
    "RELU": one(_relu("RELU")),
    "RELU6": one(_relu("RELU6")),
    "RELU_N1_TO_1": one(_relu("RELU_N1_TO_1")),
    "RELU_0_TO_1": one(_relu("RELU_0_TO_1")),
    "LEAKY_RELU": one(_leaky_relu),
    "HARD_SWISH": one(_hard_swish),
    "GELU": one(_gelu),
    **{code: one(_table(f)) for code, f in _FUNCTIONS.items()},
    "SOFTMAX": one(_softmax),
    "QUANTIZE": one(requantize_bytes),
    "DEPTH_TO_SPACE": one(convolution.depth_to_space),
    "SPACE_TO_DEPTH": one(convolution.space_to_depth),
    "RESIZE_NEAREST_NEIGHBOR": convolution.FLOAT["RESIZE_NEAREST_NEIGHBOR"],
    "ARG_MAX": reduction.FLOAT["ARG_MAX"],
    "ARG_MIN": reduction.FLOAT["ARG_MIN"],
    "CAST": one(lambda n: n.cast(n.value(0), n.result().dtype or F32)),
}
