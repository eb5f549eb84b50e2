"""The sum of two quantised tensors, in integer arithmetic alone.

y = clamp(zero_point + ((a - zero_a) * factor_a + (b - zero_b) * factor_b + 2^(bits - 1)) >> bits, low, high)

factor / 2^bits is the ratio of an operand's scale to the result's. The factors are chosen so that nothing
exceeds 32 bits.

`rescaled_add` rounds as TensorFlow Lite does, each operand for itself and then the sum:

y = clamp(zero_point + r(r((a - zero_a) << left) + r((b - zero_b) << left)), low, high)

where each r multiplies by its own multiplier / 2^31 and divides by its own 2^right, as in
`core.fixed_point.scaled`; `minus` takes the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, I16, I32, U8, dtype
from tilewright.core.fixed_point import scaled
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
    mul,
    sub,
)
from tilewright.loop.fixed_point import divided, high_product
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample

_NUMBERS = (
    "factor_a", "factor_b", "zero_a", "zero_b", "bits", "zero_point", "low", "high"
)  # fmt: skip


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b = types
    assert a is not None and b is not None
    to = dtype(str(attrs["to"]))
    if any(t.dtype not in (I8, U8) for t in (a, b)) or to not in (I8, U8):
        raise ModelError(f"`quantized_add` of {a} and {b} to {to}: bytes are wanted")
    factors = abs(integer(attrs, "factor_a")) + abs(integer(attrs, "factor_b"))
    if not 1 <= integer(attrs, "bits") < 31 or factors * 255 >= 1 << 30:
        raise ModelError("`quantized_add`: the factors overflow 32 bits")
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ModelError(f"`quantized_add` of {a} and {b}: the shapes do not broadcast") from None
    return [TensorType(to, shape)]


def _offset(attrs: Attrs) -> int:
    """All constants of the sum as one: the zero points of the operands, half of the last bit, and the
    `nudge` that decides ties."""
    zeros = sum(integer(attrs, f"zero_{i}") * integer(attrs, f"factor_{i}") for i in "ab")
    nudge = integer(attrs, "nudge") if "nudge" in attrs else 0
    return (1 << (integer(attrs, "bits") - 1)) - zeros + nudge


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    a, b = (np.asarray(i).astype(np.int64) for i in inputs)
    total = a * integer(attrs, "factor_a") + b * integer(attrs, "factor_b") + _offset(attrs)
    y = (total >> integer(attrs, "bits")) + integer(attrs, "zero_point")
    return [np.clip(y, attrs["low"], attrs["high"]).astype(dtype(str(attrs["to"])).numpy)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None
    a, b = cast(x[0].broadcast(index), I32), cast(x[1].broadcast(index), I32)
    total = add(mul(a, const(integer(attrs, "factor_a"), I32)), const(_offset(attrs), I32))
    total = fma(b, const(integer(attrs, "factor_b"), I32), total)
    steps = binary("shr", total, const(integer(attrs, "bits"), I32))
    steps = add(steps, const(integer(attrs, "zero_point"), I32))
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    return cast(minimum(maximum(steps, low), high), out.dtype)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    attrs: dict[str, AttrValue] = {
        "factor_a": 700_001, "factor_b": 400_003, "zero_a": -3, "zero_b": 5, "bits": 20,
        "zero_point": -128, "low": -128, "high": 127, "to": "i8",
    }  # fmt: skip
    for a, b in (((2, 3, 19), (2, 3, 19)), ((4, 5), (5,))):
        attrs = {**attrs, "nudge": -12_345 * (len(a) - 2)}
        yield Sample(
            (
                rng.integers(-128, 128, a).astype(np.int8),
                rng.integers(-128, 128, b).astype(np.int8),
            ),
            attrs,
        )
    x, y = (rng.integers(0, 256, 33).astype(np.uint8) for _ in range(2))
    yield Sample((x, y), {**attrs, "zero_point": 7, "low": 7, "high": 255, "to": "u8"})


# ---------------------------------------------------------------- two roundings

_RESCALED = (
    "left", "zero_a", "multiplier_a", "right_a", "zero_b", "multiplier_b", "right_b", "multiplier", "right",
    "zero_point", "low", "high",
)  # fmt: skip


def _rescaled_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b = types
    assert a is not None and b is not None
    to = dtype(str(attrs["to"]))
    if a.dtype not in (I8, U8, I16) or b.dtype is not a.dtype or to is not a.dtype:
        raise ModelError(f"`rescaled_add` of {a} and {b} to {to}: i8, u8 or i16 is wanted")
    if not 0 <= integer(attrs, "left") <= (15 if a.dtype is I16 else 20):
        raise ModelError(f"`rescaled_add`: the shift {attrs['left']} does not fit {a.dtype}")
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ModelError(f"`rescaled_add` of {a} and {b}: the shapes do not broadcast") from None
    return [TensorType(to, shape)]


def _rescaled_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    parts: list[Array] = []
    for name, x in zip("ab", inputs, strict=True):
        wide = (np.asarray(x).astype(np.int64) - integer(attrs, f"zero_{name}")) << integer(
            attrs, "left"
        )
        factor = integer(attrs, f"multiplier_{name}"), -integer(attrs, f"right_{name}")
        parts.append(scaled(wide, *factor))
    total = parts[0] - parts[1] if attrs["minus"] else parts[0] + parts[1]
    y = scaled(total, integer(attrs, "multiplier"), -integer(attrs, "right"))
    y = np.clip(y + integer(attrs, "zero_point"), attrs["low"], attrs["high"])
    return [y.astype(dtype(str(attrs["to"])).numpy)]


def _rescaled_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None

    def scale(value: Expr, shift: int, name: str) -> Expr:
        """`shift` is one more than the value's: a product has its high half taken, of 31 bits."""
        factor = const(integer(attrs, f"multiplier{name}"), I32)
        value = high_product(value, factor, shift, wide=out.dtype is I16)
        right = integer(attrs, f"right{name}")
        return divided(k, value, const(right - 1, I32), right - 1) if right else value

    parts: list[Expr] = []
    for name, reader in zip(("_a", "_b"), x, strict=True):
        assert reader is not None
        value = cast(reader.broadcast(index), I32)
        if integer(attrs, f"zero{name}"):
            value = sub(value, const(integer(attrs, f"zero{name}"), I32))
        parts.append(scale(value, integer(attrs, "left") + 1, name))
    total = sub(*parts) if attrs["minus"] else add(*parts)
    y = add(scale(total, 1, ""), const(integer(attrs, "zero_point"), I32))
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    return cast(minimum(maximum(y, low), high), out.dtype)


def _rescaled_samples(rng: np.random.Generator) -> Iterator[Sample]:
    attrs: dict[str, AttrValue] = {
        "left": 20, "zero_a": -3, "multiplier_a": 1 << 30, "right_a": 0, "zero_b": 5,
        "multiplier_b": 1_534_567_891, "right_b": 2, "multiplier": 1_987_654_321, "right": 19,
        "zero_point": -7, "low": -128, "high": 127, "to": "i8", "minus": False,
    }  # fmt: skip
    for a, b in (((2, 3, 19), (2, 3, 19)), ((4, 5), (5,))):
        x, y = (rng.integers(-128, 128, s).astype(np.int8) for s in (a, b))
        yield Sample((x, y), attrs)
        yield Sample((x, y), {**attrs, "minus": True})
    x, y = (rng.integers(0, 256, 33).astype(np.uint8) for _ in range(2))
    yield Sample((x, y), {**attrs, "zero_point": 7, "low": 7, "high": 255, "to": "u8"})
    x, y = (rng.integers(-(1 << 15), 1 << 15, 33).astype(np.int16) for _ in range(2))
    wide: dict[str, AttrValue] = {
        "left": 15,
        "zero_a": 0,
        "zero_b": 0,
        "right": 14,
        "zero_point": 0,
    }
    yield Sample((x, y), {**attrs, **wide, "low": -(1 << 15), "high": (1 << 15) - 1, "to": "i16"})


OPERATORS = [
    Operator(
        name="quantized_add",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={**dict.fromkeys(_NUMBERS, int), "to": str},
        optional_attrs={"nudge": int},
        compute=_compute,
        samples=_samples,
        doc="the sum of two quantised tensors",
    ),
    Operator(
        name="rescaled_add",
        trait="elementwise",
        infer=_rescaled_infer,
        reference=_rescaled_reference,
        attrs={**dict.fromkeys(_RESCALED, int), "to": str, "minus": bool},
        compute=_rescaled_compute,
        samples=_rescaled_samples,
        doc="the sum or difference of two quantised tensors, rounded as TensorFlow Lite does",
    ),
]
