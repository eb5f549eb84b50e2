"""Sums of byte products back to bytes, in integer arithmetic alone.

y = clamp(zero_point + ((x << shift) * multiplier + 2^31) >> 32, low, high)

`multiplier` / 2^(32 - shift) is the real factor, with all products in 64 bits and one rounding, half up:
what `smmlar` does in one instruction on Armv7E-M. The factor may differ per channel.

With a third operand `places` that product is then divided by 2^(places + 1), half away from zero: the two
roundings of TensorFlow Lite. Where places is -1 nothing is divided, and below that x is first multiplied by
2^(-1 - places); the attribute `least` says how far down it goes (0 if it is missing). With the attribute
`single` there is one rounding, half up: y = ((h >> places) + 1) >> 1 for h = (x << shift) * multiplier >> 32.
`wide` says that x << shift may need more than 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, I16, I32, U8, DType, dtype
from tilewright.core.fixed_point import divided as divided_by
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    cast,
    const,
    maximum,
    minimum,
)
from tilewright.loop.fixed_point import divided, half_up, high_product, plus, raised
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample


def _to(attrs: Attrs) -> DType:
    to = attrs["to"]
    assert isinstance(to, str)
    return dtype(to)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, multiplier, places = (*types, None)[:3]
    assert x is not None and multiplier is not None
    to, low, high = _to(attrs), integer(attrs, "low"), integer(attrs, "high")
    if x.dtype is not I32 or multiplier.dtype is not I32 or to not in (I8, U8, I16, I32):
        raise ModelError(
            f"`requantize` of {x} by {multiplier} to {to}: i32 to i8, u8, i16 is wanted"
        )
    if attrs.get("single", False) and (places is None or _least(attrs) < 0):
        raise ModelError("`requantize`: a single rounding needs places of at least 0")
    if places is not None and places != multiplier:
        raise ModelError(
            f"`requantize`: the places {places} are not like the multiplier {multiplier}"
        )
    if np.broadcast_shapes(x.shape, multiplier.shape) != x.shape:
        raise ModelError(f"`requantize`: the multiplier {multiplier} does not broadcast to {x}")
    info = np.iinfo(str(to.numpy))
    if not info.min <= low <= high <= info.max or not 0 <= integer(attrs, "shift") < 31:
        raise ModelError(f"`requantize` to {to}: the range {low}..{high} or the shift does not fit")
    return [TensorType(to, x.shape)]


def _least(attrs: Attrs) -> int:
    return integer(attrs, "least") if "least" in attrs else 0


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, multiplier = (np.asarray(i).astype(np.int64) for i in inputs[:2])
    places = inputs[2].astype(np.int64) if len(inputs) > 2 else None
    if places is not None:
        x = x << np.maximum(-1 - places, 0)
    half = 0 if attrs.get("single", False) else 1 << 31
    scaled = ((x << integer(attrs, "shift")) * multiplier + half) >> 32
    if places is not None and not half:
        scaled = ((scaled >> places) + 1) >> 1
    elif places is not None:
        scaled = divided_by(scaled, np.maximum(places + 1, 0))
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
    value, multiplier = x[0].broadcast(index), x[1].broadcast(index)
    reader = x[2] if len(x) > 2 else None
    places = reader.broadcast(index) if reader is not None else None
    if places is not None and _least(attrs) < -1:
        value = raised(value, places)
    shift, wide = integer(attrs, "shift"), bool(attrs.get("wide", False))
    if attrs.get("single", False) and places is not None:
        value = half_up(high_product(value, multiplier, shift, wide, rounded=False), places)
    elif places is not None:
        value = divided(k, high_product(value, multiplier, shift, wide), places, _least(attrs))
    if places is None:  # added before the product is cut to 32 bits, it is part of `smmlar`
        value = high_product(value, multiplier, shift, wide, plus=integer(attrs, "zero_point"))
    elif integer(attrs, "zero_point"):
        value = plus(value, integer(attrs, "zero_point"))
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    if out.dtype is I32:
        return value
    return cast(minimum(maximum(value, low), high), out.dtype)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, channel in (((2, 3, 4, 5), (3, 1, 1)), ((7, 19), (19,)), ((5,), ())):
        x = rng.integers(-(1 << 20), 1 << 20, shape).astype(np.int32)
        m = rng.integers(1 << 10, 1 << 20, channel).astype(np.int32)
        yield Sample((x, m), {"shift": 0, "zero_point": 3, "low": -128, "high": 127, "to": "i8"})
        yield Sample((x, m), {"shift": 2, "zero_point": 130, "low": 130, "high": 250, "to": "u8"})
    edges = np.array([0, 1, -1, 2**31 - 1, -(2**31)], np.int32)
    attrs: dict[str, AttrValue] = {
        "shift": 0, "zero_point": 0, "low": -128, "high": 127, "to": "i8"
    }  # fmt: skip
    for m in (2**31 - 1, 1 << 30, 1):
        yield Sample((edges, np.asarray(m, np.int32)), attrs)
    x = rng.integers(-(1 << 20), 1 << 20, (2, 6, 19)).astype(np.int32)
    x[0, 0, :6] = [0, 1, -1, 96, -96, 32]  # ties, both ways
    m = rng.integers(1 << 30, 1 << 31, (6, 1)).astype(np.int32)
    m[0] = 1 << 30
    once: dict[str, AttrValue] = {**attrs, "single": True}
    right = np.array([5, 6, 7, 8, 0, 13], np.int32).reshape(6, 1)
    for shift in (0, 1, 2):
        yield Sample((x, m, right), {**once, "shift": shift, "wide": shift > 1})
    for least, places in (
        (0, [5, 6, 7, 8, 0, 13]),
        (-1, [-1, 5, 0, 12, 9, 3]),
        (-3, [-3, 0, -1, 9, -2, 4]),
    ):
        twice: dict[str, AttrValue] = {**attrs, "shift": 1, "zero_point": -3, "least": least}
        right = np.asarray(places, np.int32).reshape(6, 1)
        yield Sample((x, m, right), twice)
        yield Sample(
            (x, m, right), {**twice, "wide": True, "low": -(2**15), "high": 2**15 - 1, "to": "i16"}
        )


OPERATORS = [
    Operator(
        name="requantize",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={"shift": int, "zero_point": int, "low": int, "high": int, "to": str},
        optional_attrs={"least": int, "wide": bool, "single": bool},
        compute=_compute,
        samples=_samples,
        doc="i32 sums to bytes by a fixed-point factor",
    )
]
