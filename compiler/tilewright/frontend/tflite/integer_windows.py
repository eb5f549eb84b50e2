"""Windows, reductions and resampling over quantised tensors, in integer arithmetic.

In: i8, u8 or i16 operands with a scale. Out: canonical integer nodes.
Invariant: results are those of TensorFlow Lite's reference kernels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.core.dtypes import I8, I32, U8
from tilewright.core.fixed_point import fixed_point
from tilewright.frontend import limits
from tilewright.frontend.tflite import convolution, reduction
from tilewright.frontend.tflite.fixed import bounds, cut, finished, limits_of, multiplied_by
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.graph.ir import Array


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
    limits.check_constant((channels, 1, kh, kw), f"node `{node.name}`")
    ones = node.constant(np.ones((channels, 1, kh, kw), np.int8), "ones")
    window = {k: attrs[k] for k in ("strides", "pads", "dilations")}
    total = node.add("depthwise_conv2d", node.nchw(x), ones, **window, pad_value=0)
    counts = np.asarray(kh * kw)
    if any(attrs["pads"]):
        sides = zip((height, width), (kh, kw), attrs["strides"], attrs["pads"], strict=False)
        shape = node.type_of(total).shape[2:]
        limits.check_constant(shape, f"node `{node.name}`")
        inside = [_inside(o, *side) for o, side in zip(shape, sides, strict=True)]
        counts = np.outer(*inside)
    return node.nhwc(_divided(node, total, counts, low, high))


def _inside(outputs: int, size: int, window: int, stride: int, pad: int) -> Array:
    """How many elements of a window lie inside of a dim, at each of its places."""
    start = np.arange(outputs) * stride - pad
    return np.minimum(start + window, size) - np.maximum(start, 0)


def _divided(node: TfliteNode, total: str, counts: Array, low: int, high: int) -> str:
    half = node.constant(counts // 2, "half", I32)
    positive = node.add("gt", total, node.like(total, 0))
    up, down = node.add("add", total, half), node.add("sub", total, half)
    rounded = node.add("where", positive, up, down)
    mean = node.add("div", rounded, node.constant(counts, "counts", I32))
    return finished(node, mean, 0, low, high)


def _max_pool(node: TfliteNode) -> str:
    low, high = bounds(node, node.result())
    return cut(node, convolution.max_pool(node), low, high)


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


WINDOWS: Importers = {
    "AVERAGE_POOL_2D": one(_average_pool),
    "MAX_POOL_2D": one(_max_pool),
    "MEAN": one(_mean_or_sum(True)),
    "SUM": one(_mean_or_sum(False)),
    "REDUCE_MAX": one(_reduce("reduce_max")),
    "REDUCE_MIN": one(_reduce("reduce_min")),
    "RESIZE_BILINEAR": one(_resize_bilinear),
}
