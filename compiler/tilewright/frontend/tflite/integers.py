"""Operators over quantised tensors, in integer arithmetic, with the results of the reference kernels.

In: operators whose operands are i8, u8 or i16 with a scale. Out: canonical integer nodes.
Invariant: where the specification fixes the arithmetic (sums of products, additions, products, means,
pools, tables), results are those of TensorFlow Lite's reference kernels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.dtypes import F32, I8, I16, I32, U8
from tilewright.core.fixed_point import fixed_point, scaled
from tilewright.frontend.tflite import convolution, movement, reduction
from tilewright.frontend.tflite.elementwise import quantized
from tilewright.frontend.tflite.fixed import (
    bounds,
    centred,
    every,
    float_table,
    limits_of,
    looked_up,
    multiplied,
    multiplied_by,
    nearest,
    requantized,
    to_table,
)
from tilewright.frontend.tflite.hard_swish import hard_swish_table
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.graph.ir import Array

_F = np.float32

# ---------------------------------------------------------------- sums of products


def weights(node: TfliteNode, i: int) -> Array:
    """Constant weights less their zero points, in the least type that holds them."""
    q = node.quantization(node.tensor(i))
    values = node.need_const(i, "the weights").astype(np.int64)
    shape = () if q.per_tensor else (-1, *[1] * (values.ndim - 1 - q.axis))
    values = values - q.zero.reshape(shape)
    for kind in (np.int8, np.uint8, np.int16):
        if np.array_equal(values, values.astype(kind)):
            return values.astype(kind)
    raise node.fail("the weights less their zero points need more than 16 bits: convert them again")


def _bias(node: TfliteNode, i: int, count: int) -> Array:
    if not node.has(i):
        return np.zeros(count, np.int64)
    bias = node.need_const(i, "the bias").reshape(-1)
    if bias.dtype.kind != "i" or bias.size != count:
        raise node.fail(
            f"a bias of {bias.size} {bias.dtype} for {count} channels: repair the model"
        )
    return bias.astype(np.int64)


def _factors(node: TfliteNode, x: int, w: int, exact: bool) -> Array:
    """Scale of the products over that of the result: one, or one per channel.

    The reference kernels multiply the two scales in float32 where there is one for all (`exact` says
    that this kernel does not).
    """
    step = node.scale(node.tensor(x))[0]
    out = node.scale(node.result())[0]
    q = node.quantization(node.tensor(w))
    if q.per_tensor and not exact:
        return np.asarray(float(_F(step) * q.scale[0]) / out)
    product = step * q.scale.astype(np.float64) / out
    return product.reshape(()) if q.per_tensor else product


def _summed(node: TfliteNode, w: Array, channel: int, bias: Array, zero: int) -> tuple[str, int]:
    """(bias with what the zero point of x adds to each sum, the largest magnitude of a sum).

    Sums wrap like those of the reference kernels: converters cut a bias off at 32 bits.
    """
    rest = tuple(d for d in range(w.ndim) if d != channel)
    wide = w.astype(np.int64)
    total = bias - zero * wide.sum(axis=rest)
    largest = np.abs(wide).sum(axis=rest) * 255 + np.abs(total)
    wrapped = total.astype(np.uint32).view(np.int32)
    return node.constant(wrapped, "bias"), min(int(largest.max(initial=0)), 1 << 31)


def _convolution(node: TfliteNode) -> str:
    t = node.tensor(0)
    zero = node.scale(t)[1]
    w = weights(node, 1)
    if w.ndim != 4:
        raise node.fail(f"weights of shape {list(w.shape)} are not of rank 4: repair the model")
    per_channel = node.op.code == "DEPTHWISE_CONV_2D"
    channel = 3 if per_channel else 0
    bias, largest = _summed(node, w, channel, _bias(node, 2, w.shape[channel]), zero)
    make = convolution.depthwise if per_channel else convolution.conv
    image = node.nchw(node.value(0))
    total = make(node, image, node.constant(w, "weights"), bias, pad_value=zero)
    factors = _factors(node, 0, 1, exact=t.dtype is not U8)
    factors = factors.reshape(-1, 1, 1) if factors.ndim else factors
    return node.nhwc(requantized(node, total, factors, largest, node.result()))


def _fully_connected(node: TfliteNode) -> str:
    zero = node.scale(node.tensor(0))[1]
    if node.const(1) is None:
        return _product(node, node.value(0), node.value(1), turned=True)
    w = weights(node, 1)
    if w.ndim != 2 or int(node.option("WeightsFormat", 0)):
        raise node.fail(
            "weights that are no plain matrix are not supported: convert the model again"
        )
    flat, lead = convolution.rows(node, w.shape[1])
    bias, largest = _summed(node, w, 0, _bias(node, 2, w.shape[0]), zero)
    columns = node.constant(np.ascontiguousarray(w.T), "weights")
    total = node.add("matmul", flat, columns, bias)
    factors = _factors(node, 0, 1, exact=False)
    y = requantized(node, total, factors, largest, node.result(), single=node.type(0).dtype is I8)
    return node.reshape(y, (*lead, w.shape[0]))


def _product(node: TfliteNode, a: str, b: str, turned: bool = False) -> str:
    """(a - zero_a) (b - zero_b), both computed: the sums of rows and columns are taken off."""
    if turned:
        b = node.add("transpose", b, perm=(1, 0))
        a, lead = convolution.rows(node, node.type_of(b).shape[0])
    zeros = [node.scale(node.tensor(i))[1] for i in (0, 1)]
    depth = node.type_of(a).shape[-1]
    total = node.add("matmul", a, b)
    for source, zero, axis in ((b, zeros[0], -2), (a, zeros[1], -1)):
        if zero:
            axes = (node.type_of(source).rank + axis,)
            sums = node.add("reduce_sum", source, axes=axes, keepdims=True, to="i32")
            total = node.add("sub", total, node.add("mul", sums, node.like(sums, zero)))
    both = zeros[0] * zeros[1] * depth
    if both:
        total = node.add("add", total, node.like(total, both))
    if turned and node.has(2):
        total = node.add("add", total, node.value(2))
    factors = _factors(node, 0, 1, exact=False)
    y = requantized(node, total, factors, depth * 255 * 255, node.result(), None if turned else "")
    return node.reshape(y, (*lead, node.type_of(b).shape[-1])) if turned else y


def _batch_matmul(node: TfliteNode) -> str:
    a = convolution.swapped(node, node.value(0), bool(node.option("AdjX", False)))
    b = convolution.swapped(node, node.value(1), bool(node.option("AdjY", False)))
    return _product(node, a, b)


def _transpose_conv(node: TfliteNode) -> str:
    """As a convolution of the image with zeros between its pixels, and the weights turned around."""
    w = weights(node, 1)
    if w.ndim != 4:
        raise node.fail(f"weights of shape {list(w.shape)} are not of rank 4: repair the model")
    attrs, _ = convolution.transposed_window(node, w.shape)
    step, zero = node.scale(node.tensor(2))
    x = node.nchw(node.value(2))
    n, c, height, width = node.type_of(x).shape
    (sh, sw), (top, left, bottom, right) = attrs["strides"], attrs["pads"]
    if sh > 1 or sw > 1:  # zeros go behind each pixel, then the last ones are cut off
        x = node.reshape(x, (n, c, height, 1, width, 1))
        after = (0, 0, 0, sh - 1, 0, sw - 1)
        x = node.add("pad", x, before=(0,) * 6, after=after, mode="constant", value=zero)
        x = node.reshape(x, (n, c, height * sh, width * sw))
        x = movement.part(node, x, 2, 0, (height - 1) * sh + 1)
        x = movement.part(node, x, 3, 0, (width - 1) * sw + 1)
    kh, kw = w.shape[1:3]
    extra = attrs["output_padding"]
    pads = (kh - 1 - top, kw - 1 - left, kh - 1 - bottom + extra[0], kw - 1 - right + extra[1])
    if min(pads) < 0:
        raise node.fail("a border wider than the weights is not supported: convert the model again")
    filters = node.constant(
        np.ascontiguousarray(w[:, ::-1, ::-1, :].transpose(0, 3, 1, 2)), "weights"
    )
    bias, largest = _summed(node, w, 0, _bias(node, 3, w.shape[0]), zero)
    more: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "group": 1, "pad_value": zero}
    total = node.add("conv2d", x, filters, bias, pads=pads, **more)
    q = node.quantization(node.tensor(1))
    factors = step * q.scale.astype(np.float64) / node.scale(node.result())[0]
    shaped = factors.reshape(()) if q.per_tensor else factors.reshape(-1, 1, 1)
    return node.nhwc(requantized(node, total, shaped, largest, node.result()))


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
    return _finished(node, chosen, zero, *limits_of(y))


def _finished(node: TfliteNode, total: str, zero: int, low: int, high: int) -> str:
    """i32 steps plus the zero point, cut to bounds, in the type of the result."""
    if zero:
        total = node.add("add", total, node.like(total, zero))
    total = node.add("max", total, node.like(total, low))
    total = node.add("min", total, node.like(total, high))
    to = node.result().dtype
    assert to is not None
    return node.cast(total, to)


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


def _cut(node: TfliteNode, x: str, low: int, high: int) -> str:
    """Bytes cut to bounds."""
    least, most = limits_of(node.result())
    x = node.add("max", x, node.like(x, low)) if low > least else x
    return node.add("min", x, node.like(x, high)) if high < most else x


def _relu(kind: str) -> Callable[[TfliteNode], str]:
    """Rescaled, then cut."""

    def importer(node: TfliteNode) -> str:
        x, y = node.tensor(0), node.result()
        (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
        low, high = bounds(node, y, kind)
        if (step, zero) == (out, out_zero):
            return _cut(node, node.value(0), low, high)
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
    return _finished(node, node.cast(steps, I32), zero, *limits_of(y))


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


# ---------------------------------------------------------------- windows and reductions


def _average_pool(node: TfliteNode) -> str:
    """Sums of bytes divided by their number, half away from zero; both tensors have one scale."""
    attrs = convolution.pool_window(node)
    x, y = node.value(0), node.result()
    low, high = bounds(node, y)
    _, height, width, channels = node.type(0).shape
    kh, kw = attrs["kernel"]
    if (kh, kw) == (height, width) and not any(attrs["pads"]):
        total = node.add("reduce_sum", x, axes=(1, 2), keepdims=True, to="i32")
        return _divided(node, total, np.asarray(kh * kw), low, high)
    ones = node.constant(np.ones((channels, 1, kh, kw), np.int8), "ones")
    window = {k: attrs[k] for k in ("strides", "pads", "dilations")}
    total = node.add("depthwise_conv2d", node.nchw(x), ones, **window, pad_value=0)
    counts = np.asarray(kh * kw)
    if any(attrs["pads"]):
        inside = np.pad(
            np.ones((height, width), np.int64), [attrs["pads"][::2], attrs["pads"][1::2]]
        )
        views = np.lib.stride_tricks.sliding_window_view(inside, (kh, kw))
        counts = views[:: attrs["strides"][0], :: attrs["strides"][1]].sum(axis=(2, 3))
    return node.nhwc(_divided(node, total, counts, low, high))


def _divided(node: TfliteNode, total: str, counts: Array, low: int, high: int) -> str:
    half = node.constant(counts // 2, "half", I32)
    positive = node.add("gt", total, node.like(total, 0))
    up, down = node.add("add", total, half), node.add("sub", total, half)
    rounded = node.add("where", positive, up, down)
    mean = node.add("div", rounded, node.constant(counts, "counts", I32))
    return _finished(node, mean, 0, low, high)


def _max_pool(node: TfliteNode) -> str:
    low, high = bounds(node, node.result())
    return _cut(node, convolution.max_pool(node), low, high)


def _mean_or_sum(mean: bool) -> Callable[[TfliteNode], str]:
    """Sums less the zero points, times one factor that holds the division."""

    def importer(node: TfliteNode) -> str:
        x, y = node.tensor(0), node.result()
        (step, zero), (out, out_zero) = node.scale(x), node.scale(y)
        shape = node.type(0).shape
        count = int(np.prod([shape[a] for a in reduction.axes(node)], dtype=np.int64))
        keep = bool(node.option("KeepDims", False))
        total = node.add(
            "reduce_sum", node.value(0), axes=reduction.axes(node), keepdims=keep, to="i32"
        )
        if zero:
            total = node.add("sub", total, node.like(total, zero * count))
        multiplier, exponent = fixed_point(step / out)
        if mean:
            shift = min(max(count, 1).bit_length() - 1, 32, 31 + exponent)
            multiplier = (multiplier << shift) // max(count, 1)
            exponent -= shift
        low, high = limits_of(y)
        assert y.dtype is not None
        largest = count * (255 if x.dtype in (I8, U8) else 1 << 16)
        if largest >= 1 << 31:
            raise node.fail(f"sums of {count} elements need more than 32 bits: split the reduction")
        factor = np.asarray(multiplier), np.asarray(exponent)
        return multiplied_by(node, total, *factor, largest, out_zero, low, high, y.dtype.name)

    return importer


def _resize_bilinear(node: TfliteNode) -> str:
    """Signed bytes by coordinates in steps of 1/1024, unsigned ones by floats; rounded once."""
    y = _in_steps(node) if node.type(0).dtype is I8 else convolution.resize("linear", "f32")(node)
    one_step, none = node.constant(np.ones((), np.float32)), np.zeros((), node.type(0).dtype.numpy)
    return node.add("quantize", y, one_step, node.constant(none), away=True)


def _in_steps(node: TfliteNode) -> str:
    size = node.need_ints(1, "the size of the result")
    x = node.nchw(node.value(0))
    shape = node.type_of(x).shape
    if len(size) != 2 or min(size) < 1 or min(shape[2:]) < 1:
        raise node.fail(f"resizing {node.type(0)} to {size} is not possible: repair the model")
    corners = bool(node.option("AlignCorners", False))
    lines = [1, 0, 1, 1, 0, 1]
    for n, wanted in zip(shape[2:], size, strict=True):
        inner, outer = (n - 1, wanted - 1) if corners and wanted > 1 else (n, wanted)
        step = ((inner << 10) + outer // 2) // outer
        start = step // 2 - 512 if node.option("HalfPixelCenters", False) else 0
        lines += [step, start, 1024]
    attrs = {
        "sizes": (*shape[:2], *size), "scales": (1.0, 1.0, size[0] / shape[2], size[1] / shape[3]),
        "mode": "linear", "coord": "asymmetric", "nearest_mode": "floor", "cubic_a": -0.75,
        "exclude_outside": False, "lines": tuple(lines), "to": "f32",
    }  # fmt: skip
    return node.nhwc(node.add("resize", x, **attrs))


def _reduce(op: str) -> Callable[[TfliteNode], str]:
    return lambda node: reduction.reduced(node, op, node.value(0))


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
    "CONV_2D": one(_convolution),
    "DEPTHWISE_CONV_2D": one(_convolution),
    "TRANSPOSE_CONV": one(_transpose_conv),
    "FULLY_CONNECTED": one(_fully_connected),
    "BATCH_MATMUL": one(_batch_matmul),
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
    "AVERAGE_POOL_2D": one(_average_pool),
    "MAX_POOL_2D": one(_max_pool),
    "MEAN": one(_mean_or_sum(True)),
    "SUM": one(_mean_or_sum(False)),
    "REDUCE_MAX": one(_reduce("reduce_max")),
    "REDUCE_MIN": one(_reduce("reduce_min")),
    "DEPTH_TO_SPACE": one(convolution.depth_to_space),
    "SPACE_TO_DEPTH": one(convolution.space_to_depth),
    "RESIZE_BILINEAR": one(_resize_bilinear),
    "RESIZE_NEAREST_NEIGHBOR": convolution.FLOAT["RESIZE_NEAREST_NEIGHBOR"],
    "ARG_MAX": reduction.FLOAT["ARG_MAX"],
    "ARG_MIN": reduction.FLOAT["ARG_MIN"],
    "CAST": one(lambda n: n.cast(n.value(0), n.result().dtype or F32)),
}
