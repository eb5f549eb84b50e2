"""The product of two quantised tensors, in integer arithmetic alone, rounded as TensorFlow Lite does.

y = clamp(zero_point + r((a - zero_a) * (b - zero_b)), low, high)

where r multiplies by `multiplier` / 2^31 * 2^-right with two roundings, as in `core.fixed_point.scaled`; a
negative `right` shifts left first.
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
    cast,
    const,
    maximum,
    minimum,
    mul,
    sub,
)
from tilewright.loop.fixed_point import divided, high_product
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample

_NUMBERS = ("zero_a", "zero_b", "multiplier", "right", "zero_point", "low", "high")


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b = types
    assert a is not None and b is not None
    to = dtype(str(attrs["to"]))
    if a.dtype not in (I8, U8, I16) or b.dtype is not a.dtype or to not in (I8, U8, I16):
        raise ModelError(f"`rescaled_mul` of {a} and {b} to {to}: i8, u8 or i16 is wanted")
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ModelError(f"`rescaled_mul` of {a} and {b}: the shapes do not broadcast") from None
    return [TensorType(to, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    a, b = (
        np.asarray(x).astype(np.int64) - integer(attrs, f"zero_{name}")
        for name, x in zip("ab", inputs, strict=True)
    )
    y = scaled(a * b, integer(attrs, "multiplier"), -integer(attrs, "right"))
    y = np.clip(y + integer(attrs, "zero_point"), attrs["low"], attrs["high"])
    return [y.astype(dtype(str(attrs["to"])).numpy)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    parts: list[Expr] = []
    for name, reader in zip("ab", x, strict=True):
        assert reader is not None
        value = cast(reader.broadcast(index), I32)
        zero = integer(attrs, f"zero_{name}")
        parts.append(sub(value, const(zero, I32)) if zero else value)
    right = integer(attrs, "right")
    shift = 1 + max(-right, 0)
    wide = 2 * x[0].dtype.bits + shift > 31 if x[0] is not None else True
    y = high_product(mul(*parts), const(integer(attrs, "multiplier"), I32), shift, wide)
    if right > 0:
        y = divided(k, y, const(right - 1, I32), right - 1)
    y = add(y, const(integer(attrs, "zero_point"), I32))
    low, high = const(integer(attrs, "low"), I32), const(integer(attrs, "high"), I32)
    return cast(minimum(maximum(y, low), high), out.dtype)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    attrs: dict[str, AttrValue] = {
        "zero_a": -3, "zero_b": 5, "multiplier": 1_534_567_891, "right": 7, "zero_point": -7,
        "low": -128, "high": 127, "to": "i8",
    }  # fmt: skip
    for a, b in (((2, 3, 19), (2, 3, 19)), ((4, 5), (5,))):
        x, y = (rng.integers(-128, 128, s).astype(np.int8) for s in (a, b))
        for right in (7, 0, -2):
            yield Sample((x, y), {**attrs, "right": right})
    x, y = (rng.integers(0, 256, 33).astype(np.uint8) for _ in range(2))
    yield Sample((x, y), {**attrs, "zero_point": 7, "low": 7, "high": 255, "to": "u8"})
    x, y = (rng.integers(-(1 << 15), 1 << 15, 33).astype(np.int16) for _ in range(2))
    wide: dict[str, AttrValue] = {"zero_a": 0, "zero_b": 0, "right": 14, "zero_point": 0}
    yield Sample((x, y), {**attrs, **wide, "low": -(1 << 15), "high": (1 << 15) - 1, "to": "i16"})


OPERATORS = [
    Operator(
        name="rescaled_mul",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={**dict.fromkeys(_NUMBERS, int), "to": str},
        compute=_compute,
        samples=_samples,
        doc="the product of two quantised tensors, rounded as TensorFlow Lite does",
    )
]
