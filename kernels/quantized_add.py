"""The sum of two quantised tensors, in integer arithmetic alone.

y = clamp(zero_point + ((a - zero_a) * factor_a + (b - zero_b) * factor_b + 2^(bits - 1)) >> bits, low, high)

factor / 2^bits is the ratio of an operand's scale to the result's. The factors are chosen so that nothing
exceeds 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, I32, U8, dtype
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
)
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
    """All constants of the sum as one: the zero points of the operands, and half of the last bit."""
    zeros = sum(integer(attrs, f"zero_{i}") * integer(attrs, f"factor_{i}") for i in "ab")
    return (1 << (integer(attrs, "bits") - 1)) - zeros


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
        yield Sample(
            (
                rng.integers(-128, 128, a).astype(np.int8),
                rng.integers(-128, 128, b).astype(np.int8),
            ),
            attrs,
        )
    x, y = (rng.integers(0, 256, 33).astype(np.uint8) for _ in range(2))
    yield Sample((x, y), {**attrs, "zero_point": 7, "low": 7, "high": 255, "to": "u8"})


OPERATORS = [
    Operator(
        name="quantized_add",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={**dict.fromkeys(_NUMBERS, int), "to": str},
        compute=_compute,
        samples=_samples,
        doc="the sum of two quantised tensors",
    )
]
