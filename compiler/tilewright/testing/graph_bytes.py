"""Quantised pieces of random graphs, whose results are the same bit for bit however they are computed.

In: a `Maker` with values of bytes or i32 sums. Out: further nodes.
Invariant: steps are powers of two, so dequantized values, their sums (below 2**24 steps) and the factors of
requantisation are exact: floats between quantize and dequantize, integers that `graph.passes.quantize` makes of
them, and the references give the same bytes, ties included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilewright.core.dtypes import I8, I32, U8, DType
from tilewright.testing.graph_maker import Maker, is_byte, is_sum

#: Products in a sum, at most: 480 * 255 * 127, with a bias, stays below 2**24.
MOST_PRODUCTS = 480
_CHANNELS = (1, 2, 3, 4, 5, 8, 16, 17, 33)


def _limits(dtype: DType) -> tuple[int, int]:
    return (-128, 127) if dtype is I8 else (0, 255)


def _byte(m: Maker) -> str | None:
    """A value of bytes, if there is one."""
    found = [v for v in m.most if is_byte(m.dtype(v))]
    return str(m.pick(found)) if found else None


def _scale(m: Maker, v: str) -> tuple[int, int]:
    """How the bytes of a value stand for reals; drawn once for those that nobody quantised here."""
    if v not in m.steps:
        low, high = _limits(m.dtype(v))
        m.steps[v] = m.draw(st.integers(-6, 0)), m.draw(st.integers(low, high))
    return m.steps[v]


def _pair(m: Maker, exponent: int, zero: int, dtype: DType) -> tuple[str, str]:
    """Constants: a step and a zero point."""
    step = m.graph.add_constant("step", np.asarray(2.0**exponent, np.float32))
    return step, m.graph.add_constant("zero", np.asarray(zero, dtype.numpy))


def _dequantized(m: Maker, v: str) -> str | None:
    exponent, zero = _scale(m, v)
    return m.hidden("dequantize", [v, *_pair(m, exponent, zero, m.dtype(v))])


def _quantized(m: Maker, real: str | None, exponent: int) -> None:
    """Bytes of a float, which later pieces may read."""
    if real is None:
        return
    dtype = m.pick((I8, U8))
    low, high = _limits(dtype)
    if m.draw(st.booleans()):
        real = m.hidden("relu", [real]) or real
    zero = m.draw(st.integers(low, high))
    name = m.add("quantize", [real, *_pair(m, exponent, zero, dtype)], 255)
    if name is not None:
        m.steps[name] = exponent, zero


def _product(m: Maker) -> None:
    """A product or convolution between dequantize and quantize, its weights' steps per channel."""
    x = _byte(m)
    if x is None or len(m.shape(x)) < 2:
        return
    shape, exponent = m.shape(x), _scale(m, x)[0]
    image, count = len(shape) == 4 and m.draw(st.booleans()), m.pick(_CHANNELS)
    size = m.pick((1, 3)) if image else 1
    dims = (count, shape[1], size, size) if image else (shape[-1], count)
    products = prod(dims) // count
    real = _dequantized(m, x)
    if real is None or products > MOST_PRODUCTS:
        return
    rng = np.random.default_rng(m.draw(st.integers(0, 1000)))
    powers = rng.integers(-8, -4, count) if m.draw(st.booleans()) else np.full(count, -7)
    steps = (2.0**powers).astype(np.float32)
    along = (count, 1, 1, 1) if image else (count,)
    w = m.hidden(
        "dequantize",
        [
            m.constant(dims, -127, 127, I8),
            m.graph.add_constant("steps", steps.reshape(along)),
            m.graph.add_constant("zeros", np.zeros(along, np.int8)),
        ],
    )
    inputs = [real, str(w)]
    if m.draw(st.booleans()):
        bias = rng.integers(-999, 1000, count) * steps * np.float32(2.0**exponent)
        inputs.append(m.graph.add_constant("bias", bias.astype(np.float32)))
    if image:
        stride, pad = m.pick((1, 2)), m.pick((0, 1))
        y = m.hidden(
            "conv2d", inputs, strides=(stride, stride), pads=(pad,) * 4, dilations=(1, 1), group=1
        )
    else:
        y = m.hidden("matmul", inputs)
    _quantized(m, y, exponent - 7 + m.draw(st.integers(3, 11)))


def _pairwise(m: Maker) -> None:
    """Two tensors of bytes, each with its own steps."""
    a = _byte(m)
    if a is None:
        return
    b = m.pick([v for v in m.most if is_byte(m.dtype(v)) and m.shape(v) == m.shape(a)])
    op = m.pick(("add", "sub", "mul", "max", "min"))
    left, right = _dequantized(m, a), _dequantized(m, b)
    if left is None or right is None:
        return
    first, second = _scale(m, a)[0], _scale(m, b)[0]
    base = first + second + 7 if op == "mul" else max(first, second)
    _quantized(m, m.hidden(op, [left, right]), base + m.draw(st.integers(-2, 3)))


def _moved(m: Maker) -> None:
    """Elementwise functions, pooling and movement of bytes between their pairs."""
    x = _byte(m)
    if x is None:
        return
    shape, exponent = m.shape(x), _scale(m, x)[0]
    window: dict[str, Any] = {
        "kernel": (2, 2),
        "strides": (2, 2),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
    }
    last = len(shape) - 1
    ways: list[Callable[[str], str | None]] = [
        lambda r: r,
        partial(_with, m, "neg"),
        partial(_with, m, "abs"),
        partial(_with, m, "transpose", perm=tuple(range(len(shape)))[::-1]),
        partial(_with, m, "reshape", shape=(prod(shape),)),
    ]
    if shape:
        ways.append(partial(_with, m, "reduce_max", axes=(last,), keepdims=True))
        ways.append(partial(_with, m, "reduce_sum", axes=(last,), keepdims=True))
    if len(shape) == 4:
        ways.append(partial(_with, m, "max_pool2d", **window))
        ways.append(partial(_with, m, "avg_pool2d", **window, count_include_pad=True))
    real = _dequantized(m, x)
    if real is not None:
        _quantized(m, m.pick(ways)(real), exponent + m.draw(st.integers(-1, 2)))


def _with(m: Maker, op: str, x: str, **attrs: Any) -> str | None:
    return m.hidden(op, [x], **attrs)


def _from_sums(m: Maker) -> None:
    """i32 sums to bytes: by a float factor as ONNX says, or in integers as TensorFlow Lite does."""
    sums = [v for v in m.most if is_sum(m.dtype(v)) and m.shape(v)]
    if not sums:
        return
    x = m.pick(sums)
    dtype = m.pick((I8, U8))
    low, high = _limits(dtype)
    attrs = {
        "zero_point": m.draw(st.integers(low, high)), "low": low, "high": high, "to": dtype.name
    }  # fmt: skip
    rng = np.random.default_rng(m.draw(st.integers(0, 1000)))
    channels = m.shape(x)[-1:] if m.draw(st.booleans()) else ()
    if m.draw(st.booleans()):
        factor = np.asarray(rng.random(channels) * 2.0 ** -m.draw(st.integers(0, 12)), np.float32)
        m.add("rescale", [x, m.graph.add_constant("factor", factor)], 255, **attrs, bounded=False)
        return
    multiplier = np.asarray(rng.integers(1 << 16, 1 << 30, channels), np.int32)
    m.add("requantize", [x, m.graph.add_constant("factor", multiplier)], 255, **attrs, shift=0)


def _sums(m: Maker) -> None:
    """An integer product or convolution with a bias, around which lies any byte."""
    x = _byte(m)
    if x is None or len(m.shape(x)) != 4:
        return
    shape, count, size = m.shape(x), m.pick(_CHANNELS), m.pick((1, 3))
    low, high = _limits(m.dtype(x))
    w = m.constant((count, shape[1], size, size), -128, 127, I8)
    bias = m.constant((count,), -999, 999, I32)
    m.add(
        "conv2d", [x, w, bias], 255 * 128 * shape[1] * size * size + 999,
        strides=(1, 1), pads=(m.pick((0, 1)),) * 4, dilations=(1, 1), group=1,
        pad_value=m.draw(st.integers(low, high)),
    )  # fmt: skip


def _rescaled_sum(m: Maker) -> None:
    """Two tensors of bytes as one, by float factors that are no powers of two."""
    a = _byte(m)
    if a is None:
        return
    b = m.pick([v for v in m.most if is_byte(m.dtype(v)) and m.shape(v) == m.shape(a)])
    dtype = m.pick((I8, U8))
    low, high = _limits(dtype)
    factor = st.sampled_from([0.25, 0.55, -0.35, 1.7])
    m.add(
        "rescaled_sum", [a, b], 255, factor_a=m.draw(factor), factor_b=m.draw(factor),
        offset=m.draw(st.sampled_from([0.0, 30.5, -7.0])), low=low, high=high, to=dtype.name,
        bounded=m.draw(st.booleans()),
    )  # fmt: skip


BYTE_KINDS = (_product, _pairwise, _moved, _sums, _from_sums, _rescaled_sum)
