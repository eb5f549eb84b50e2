"""Sums of byte products back to bytes, in integer arithmetic alone.

y = clamp(zero_point + ((x << shift) * multiplier + 2^31) >> 32, low, high)

`multiplier` / 2^(32 - shift) is the real factor, with all products in 64 bits and one rounding, half up:
what `smmlar` does in one instruction on Armv7E-M. The factor may differ per channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, I32, I64, U8, DType, dtype
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    cast,
    const,
    maximum,
    minimum,
)
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample


def _to(attrs: Attrs) -> DType:
    to = attrs["to"]
    assert isinstance(to, str)
    return dtype(to)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, multiplier = types
    assert x is not None and multiplier is not None
    to, low, high = _to(attrs), integer(attrs, "low"), integer(attrs, "high")
    if x.dtype is not I32 or multiplier.dtype is not I32 or to not in (I8, U8):
        raise ModelError(f"`requantize` of {x} by {multiplier} to {to}: i32 to i8 or u8 is wanted")
    if np.broadcast_shapes(x.shape, multiplier.shape) != x.shape:
        raise ModelError(f"`requantize`: the multiplier {multiplier} does not broadcast to {x}")
    info = np.iinfo(str(to.numpy))
    if not info.min <= low <= high <= info.max or not 0 <= integer(attrs, "shift") < 31:
        raise ModelError(f"`requantize` to {to}: the range {low}..{high} or the shift does not fit")
    return [TensorType(to, x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, multiplier = (np.asarray(i).astype(np.int64) for i in inputs)
    scaled = ((x << integer(attrs, "shift")) * multiplier + (1 << 31)) >> 32
    y = np.clip(scaled + integer(attrs, "zero_point"), attrs["low"], attrs["high"])
    return [y.astype(_to(attrs).numpy)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None
    value = x[0].broadcast(index)
    shift = integer(attrs, "shift")
    if shift:
        value = binary("shl", value, const(shift, I32))
    product = binary("mul", cast(value, I64), cast(x[1].broadcast(index), I64))
    scaled = binary("shr", add(product, const(1 << 31, I64)), const(32, I64))
    value = cast(add(scaled, const(integer(attrs, "zero_point"), I64)), I32)
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    return cast(minimum(maximum(value, low), high), out.dtype)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, channel in (((2, 3, 4, 5), (3, 1, 1)), ((7, 19), (19,)), ((5,), ())):
        x = rng.integers(-(1 << 20), 1 << 20, shape).astype(np.int32)
        m = rng.integers(1 << 10, 1 << 20, channel).astype(np.int32)
        yield Sample((x, m), {"shift": 0, "zero_point": 3, "low": -128, "high": 127, "to": "i8"})
        attrs = {"shift": 2, "zero_point": 130, "low": 130, "high": 250, "to": "u8"}
        yield Sample((x, m), attrs)
    edges = np.array([0, 1, -1, 2**31 - 1, -(2**31)], np.int32)
    attrs = {"shift": 0, "zero_point": 0, "low": -128, "high": 127, "to": "i8"}
    for m in (2**31 - 1, 1 << 30, 1):
        yield Sample((edges, np.asarray(m, np.int32)), attrs)


OPERATORS = [
    Operator(
        name="requantize",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={"shift": int, "zero_point": int, "low": int, "high": int, "to": str},
        compute=_compute,
        samples=_samples,
        doc="i32 sums to bytes by a fixed-point factor",
    )
]
