"""Sums of products over quantised tensors: convolutions and matrix products in integer arithmetic.

In: i8 or u8 operands with a scale, weights that are constant (or, in matrix products, computed). Out:
canonical integer nodes. Invariant: results are those of TensorFlow Lite's reference kernels, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.core.dtypes import I8, U8
from tilewright.frontend.tflite import convolution, movement
from tilewright.frontend.tflite.fixed import requantized
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.graph.ir import Array

_F = np.float32


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


PRODUCTS: Importers = {
    "CONV_2D": one(_convolution),
    "DEPTHWISE_CONV_2D": one(_convolution),
    "TRANSPOSE_CONV": one(_transpose_conv),
    "FULLY_CONNECTED": one(_fully_connected),
    "BATCH_MATMUL": one(_batch_matmul),
}
