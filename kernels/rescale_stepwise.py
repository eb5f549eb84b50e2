"""Sums of byte products back to bytes by one fused multiply-add:

y = clamp(zero_point + round(fma(f32(x), factor, offset)) + number of exceptions that x is, low, high)

rounded once, then to a whole number, ties to even; |fma(...)| must stay below 2^22. With `mirrored` the offset
changes its sign where x is negative. Factor, offset and exceptions may differ per channel.

This is a function that rises in steps, so it can be made to agree with any other one of that kind that is almost
straight, such as the two roundings of TensorFlow Lite (`graph.passes.merge_requantize`): the offset moves all steps,
and an exception is a sum whose step would come one too late.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import F32, I8, I32, U8, DType, dtype
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    cast,
    const,
    fma,
    maximum,
    minimum,
    select,
)
from tilewright.loop.ir import Bitcast, Expr
from tilewright.loop.rounding import whole
from tilewright.registry import Operator, Sample


def _to(attrs: Attrs) -> DType:
    return dtype(str(attrs["to"]))


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, factor, offset, *exceptions = types
    assert x is not None and factor is not None and offset is not None
    to, low, high = _to(attrs), integer(attrs, "low"), integer(attrs, "high")
    if x.dtype is not I32 or factor.dtype is not F32 or to not in (I8, U8):
        raise ModelError(f"`rescale_stepwise` of {x} by {factor} to {to}: i32 to i8, u8 is wanted")
    alike = all(e == TensorType(I32, factor.shape) for e in exceptions)
    if offset != factor or not alike or np.broadcast_shapes(x.shape, factor.shape) != x.shape:
        raise ModelError(f"`rescale_stepwise`: {factor}, the offset and exceptions do not fit {x}")
    info = np.iinfo(str(to.numpy))
    if not info.min <= low <= high <= info.max:
        raise ModelError(f"`rescale_stepwise` to {to}: the range {low}..{high} does not fit")
    return [TensorType(to, x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, factor, offset, *exceptions = (np.asarray(i) for i in inputs)
    if attrs["mirrored"]:
        offset = np.where(x < 0, -offset, offset)
    exact = x.astype(np.float32).astype(np.float64) * factor + offset
    y = np.rint(exact.astype(np.float32)).astype(np.int64) + integer(attrs, "zero_point")
    for e in exceptions:
        y = y + (x == e)
    return [np.clip(y, attrs["low"], attrs["high"]).astype(_to(attrs).numpy)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    operands = [r.broadcast(index) for r in x if r is not None]
    total, factor, offset, *exceptions = operands
    if attrs["mirrored"] or exceptions:
        total = k.let("t", total)
    if attrs["mirrored"]:
        sign = binary("and", total, const(-(1 << 31), I32))
        offset = Bitcast(binary("xor", sign, Bitcast(offset, I32)), F32)
    y = whole(fma(cast(total, F32), factor, offset), integer(attrs, "zero_point"))
    for e in exceptions:
        y = add(y, select(binary("eq", total, e), const(1, I32), const(0, I32)))
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    return cast(minimum(maximum(y, low), high), out.dtype)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, channel in (((2, 3, 4, 5), (3, 1, 1)), ((7, 19), (19,)), ((5,), ())):
        x = rng.integers(-(1 << 18), 1 << 18, shape).astype(np.int32)
        factor = np.asarray(rng.random(channel) * 1e-3, np.float32)
        offset = np.asarray(rng.standard_normal(channel) * 2, np.float32)
        last = np.broadcast_to(x.reshape(-1)[-1], channel).astype(np.int32)
        attrs: dict[str, AttrValue] = {
            "zero_point": 3, "low": -128, "high": 127, "to": "i8", "mirrored": False
        }  # fmt: skip
        yield Sample((x, factor, offset), attrs)
        yield Sample((x, factor, offset, last), {**attrs, "mirrored": True})
        bytes_: Attrs = {**attrs, "to": "u8", "low": 130, "high": 250, "zero_point": 140}
        yield Sample((x, factor, -offset, last, last + 1), bytes_)
    ties = np.array([0, 1, -1, 3, 5, -3, -5, 1 << 20, -(1 << 20)], np.int32)
    half, none = np.asarray(0.5, np.float32), np.asarray(0.0, np.float32)
    for shift in (none, half):
        yield Sample((ties, half, shift), {**attrs, "zero_point": 0, "mirrored": True})


OPERATORS = [
    Operator(
        name="rescale_stepwise", trait="elementwise", infer=_infer, reference=_reference,
        attrs={"zero_point": int, "low": int, "high": int, "to": str, "mirrored": bool},
        compute=_compute, samples=_samples,
        doc="i32 sums to bytes by one fused multiply-add, whose steps can be moved",
    )
]  # fmt: skip
