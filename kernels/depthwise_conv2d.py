"""Depthwise convolution: every channel has its own filter.

y[n, c, oh, ow] = bias[c] + sum over kh, kw of
    x[n, c, oh*sh + kh*dh - top, ow*sw + kw*dw - left] * w[c, 0, kh, kw]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import sum_of_products
from tilewright.core.window import window_of
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import contraction
from tilewright.loop.builder import KernelBuilder, add, cast, const, fma
from tilewright.loop.ir import Kernel
from tilewright.registry import LayoutWish, Operator, Rows, Sample, window_rows
from tilewright.schedule.target import Target
from tilewright.schedule.templates import depthwise, depthwise_space
from tilewright.schedule.trace import Trace


def _pad_value(attrs: Attrs) -> int:
    """What lies around the image: 0, or the zero point of integers."""
    return integer(attrs, "pad_value") if "pad_value" in attrs else 0


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, bias = (*types, None)[:3]
    assert x is not None and w is not None
    total = sum_of_products(x.dtype, w.dtype)
    fits = x.rank == 4 and w.rank == 4
    if total is None or not fits or w.shape[:2] != (x.shape[1], 1):
        raise ModelError(f"`depthwise_conv2d` of {x} with weights {w}: they do not fit")
    if bias is not None and bias != TensorType(total, (w.shape[0],)):
        raise ModelError(f"`depthwise_conv2d`: bias {bias} is not {total}[{w.shape[0]}]")
    try:
        oh, ow = window_of(attrs, w.shape[2:]).output(x.shape[2:])
    except ValueError as err:
        raise ModelError(f"`depthwise_conv2d` of {x} with weights {w}: {err}") from None
    if oh < 1 or ow < 1:
        raise ModelError(f"`depthwise_conv2d` of {x} with weights {w}: the output is empty")
    return [TensorType(total, (x.shape[0], x.shape[1], oh, ow))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    """Tap by tap: a strided slice of the padded image times the tap's weight per channel."""
    x, w, bias = (*inputs, None)[:3]
    window = window_of(attrs, w.shape[2:])
    (sh, sw), (dh, dw), p = window.strides, window.dilations, window.pads
    oh, ow = window.output(x.shape[2:])
    around = ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3]))
    padded = np.pad(x.astype(np.float64), around, constant_values=_pad_value(attrs))
    y = np.zeros((x.shape[0], x.shape[1], oh, ow))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            y += padded[:, :, rows, cols] * w[:, 0, i, j].reshape(1, -1, 1, 1)
    total = x.dtype if x.dtype.itemsize > 1 else np.dtype(np.int32)  # bytes: exact in float64
    return [(y if bias is None else y + bias.reshape(1, -1, 1, 1)).astype(total)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, bias = (*k.inputs, None)[:3]
    assert x is not None and w is not None
    window = window_of(attrs, w.shape[2:])
    (sh, sw), (dh, dw), (top, left) = window.strides, window.dilations, window.pads[:2]
    batch, channels, height, width = k.out_shape
    with (
        k.loop("n", batch) as n,
        k.loop("oh", height) as oh,
        k.loop("ow", width) as ow,
        k.loop("c", channels) as c,
    ):
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(0, k.out_dtype))
        with k.loop("kh", w.shape[2]) as kh, k.loop("kw", w.shape[3]) as kw:
            pixel = x(n, c, oh * sh + kh * dh - top, ow * sw + kw * dw - left)
            weight = w(c, 0, kh, kw)
            k.set(acc, fma(cast(pixel, k.out_dtype), cast(weight, k.out_dtype), acc()))
        k.emit((n, c, oh, ow), acc() if bias is None else add(acc(), bias(c)))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return depthwise(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Channels last, and a border as wide as the taps reach over the edge."""
    x, w = types[0], types[1]
    assert x is not None and w is not None
    border = window_of(attrs, w.shape[2:]).border(x.shape[2:])
    halo = ((0, 0), (0, 0), *border)
    return LayoutWish(
        orders={0: (0, 2, 3, 1)}, halos={0: halo}, fill=_pad_value(attrs), out_order=(0, 2, 3, 1)
    )


def _rows(types: Sequence[TensorType | None], attrs: Attrs, first: int, end: int) -> Rows:
    x, w = types[:2]
    assert x is not None and w is not None
    return window_rows(window_of(attrs, w.shape[2:]), x.shape[2], attrs, first, end)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return 2 * _infer(types, attrs)[0].size * _depth(types, attrs)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    w = types[1]
    assert w is not None
    return w.shape[2] * w.shape[3]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    cases = (
        (1, 17, 8, 9, 3, 3, 1, (1, 1, 1, 1), 1), (1, 40, 7, 7, 3, 3, 2, (0, 0, 1, 1), 1),
        (2, 5, 9, 11, 5, 5, 1, (2, 2, 2, 2), 1), (1, 16, 10, 1, 3, 1, 1, (2, 0, 2, 0), 2),
        (1, 3, 12, 12, 7, 7, 3, (3, 3, 3, 3), 1),
    )  # fmt: skip
    for n, c, h, w, kh, kw, s, pads, d in cases:
        attrs = {"strides": (s, s), "pads": pads, "dilations": (d, d)}
        yield Sample((f(n, c, h, w), f(c, 1, kh, kw), f(c)), attrs)
    x = rng.integers(-128, 128, (1, 6, 8, 7)).astype(np.int8)
    w = rng.integers(-128, 128, (6, 1, 3, 3)).astype(np.int8)
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "pad_value": -5}
    yield Sample((x, w, rng.integers(-999, 999, 6).astype(np.int32)), attrs)
    yield Sample((x, 2 * w.astype(np.int16)), attrs)


OPERATORS = [
    Operator(
        name="depthwise_conv2d",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        attrs={"strides": tuple, "pads": tuple, "dilations": tuple},
        optional_attrs={"pad_value": int},
        lower=_lower,
        schedule=_schedule,
        space=depthwise_space,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        quantized=partial(contraction, channel=0),
        rows=_rows,
        doc="convolution of every channel with its own filter (imported from Conv)",
    )
]
