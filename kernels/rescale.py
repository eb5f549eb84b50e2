"""Sums of byte products back to bytes, and sums of two tensors of bytes, rounded as ONNX says and ONNX
Runtime does:

rescale       y = clamp(zero_point + round(f32(x) * factor), low, high)
rescaled_sum  y = clamp(round((a * factor_a + offset) + b * factor_b), low, high)

in float32, every operation rounded, ties to even; with `early` the zero point is added before the rounding. The factor may differ per channel. Rounding adds a number so large that only whole
numbers are left in its last bits, which is one addition on every target; `bounded` says that |x * factor|
stays below 2^22, where that is exact, so that the cut can come afterwards, in integers.
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
    cast,
    const,
    maximum,
    minimum,
    mul,
)
from tilewright.loop.ir import Expr
from tilewright.loop.rounding import whole
from tilewright.registry import Operator, Sample


def _to(attrs: Attrs) -> DType:
    return dtype(str(attrs["to"]))


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, factor = types
    assert x is not None and factor is not None
    to, low, high = _to(attrs), integer(attrs, "low"), integer(attrs, "high")
    if x.dtype is not I32 or factor.dtype is not F32 or to not in (I8, U8):
        raise ModelError(f"`rescale` of {x} by {factor} to {to}: i32 to i8 or u8 is wanted")
    if np.broadcast_shapes(x.shape, factor.shape) != x.shape:
        raise ModelError(f"`rescale`: the factor {factor} does not broadcast to {x}")
    info = np.iinfo(str(to.numpy))
    if not info.min <= low <= high <= info.max:
        raise ModelError(f"`rescale` to {to}: the range {low}..{high} does not fit")
    return [TensorType(to, x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, factor = inputs
    real, zero = (
        np.asarray(x).astype(np.float32) * np.asarray(factor, np.float32),
        integer(attrs, "zero_point"),
    )
    if attrs.get("early", False):
        real, zero = real + np.float32(zero), 0
    y = np.rint(real).astype(np.float64) + zero
    return [np.clip(y, attrs["low"], attrs["high"]).astype(_to(attrs).numpy)]  # type: ignore[arg-type]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None
    real = mul(cast(x[0].broadcast(index), F32), x[1].broadcast(index))
    if attrs.get("early", False):
        real = add(real, const(float(integer(attrs, "zero_point")), F32))
        attrs = {**attrs, "zero_point": 0}
    return _whole(real, attrs, out.dtype)


def _whole(value: Expr, attrs: Attrs, to: DType) -> Expr:
    """A float32 rounded, moved by the zero point and cut."""
    low, high, zero = (integer(attrs, a) for a in ("low", "high", "zero_point"))
    if not attrs["bounded"]:
        value = maximum(value, const(float(low - zero), F32))
        value = minimum(value, const(float(high - zero), F32))
    number = whole(value, zero)
    if attrs["bounded"]:
        number = minimum(maximum(number, const(low, I32)), const(high, I32))
    return cast(number, to)


# ---------------------------------------------------------------- rescaled_sum


def _number(attrs: Attrs, name: str) -> float:
    value = attrs[name]
    assert isinstance(value, int | float)
    return float(value)


def _sum_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b = types
    assert a is not None and b is not None
    to = _to(attrs)
    if not {a.dtype, b.dtype, to} <= {I8, U8}:
        raise ModelError(f"`rescaled_sum` of {a} and {b} to {to}: bytes are wanted")
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ModelError(f"`rescaled_sum` of {a} and {b}: they do not broadcast") from None
    return [TensorType(to, tuple(int(n) for n in shape))]


def _sum_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    a, b = (np.asarray(x).astype(np.float32) for x in inputs)
    first, second, offset = (
        np.float32(_number(attrs, n)) for n in ("factor_a", "factor_b", "offset")
    )
    y = np.rint((a * first + offset) + b * second).astype(np.float64)
    y = np.clip(y, integer(attrs, "low"), integer(attrs, "high"))
    return [y.astype(_to(attrs).numpy)]


def _sum_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None
    a, b = (cast(cast(r.broadcast(index), I32), F32) for r in (x[0], x[1]))
    left = add(mul(a, const(_number(attrs, "factor_a"), F32)), const(_number(attrs, "offset"), F32))
    total = add(left, mul(b, const(_number(attrs, "factor_b"), F32)))
    return _whole(total, {**attrs, "zero_point": 0}, out.dtype)


def _sum_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for first, second in (((3, 19), (3, 19)), ((2, 5, 7), (5, 1))):
        for kind, low in ((np.int8, -128), (np.uint8, 0)):
            a, b = (rng.integers(low, low + 256, s).astype(kind) for s in (first, second))
            attrs: dict[str, AttrValue] = {
                "factor_a": 0.55, "factor_b": -0.35, "offset": low + 30.5, "low": low,
                "high": low + 255, "to": str(np.dtype(kind))[:1] + "8", "bounded": True,
            }  # fmt: skip
            yield Sample((a, b), attrs)
            yield Sample((a, b), {**attrs, "factor_a": 1e9, "bounded": False})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, channel in (((2, 3, 4, 5), (3, 1, 1)), ((7, 19), (19,)), ((5,), ())):
        x = rng.integers(-(1 << 18), 1 << 18, shape).astype(np.int32)
        factor = np.asarray(rng.random(channel) * 1e-3, np.float32)
        for bounded in (False, True):
            first: Attrs = {
                "zero_point": 3,
                "low": -128,
                "high": 127,
                "to": "i8",
                "bounded": bounded,
            }
            yield Sample((x, factor), first)
            second: Attrs = {
                "zero_point": 130,
                "low": 130,
                "high": 250,
                "to": "u8",
                "bounded": bounded,
            }
            yield Sample((x, factor), second)
    edges = np.array([0, 1, -1, 3, 5, -3, -5, 2**31 - 1, -(2**31)], np.int32)
    ties: Attrs = {"zero_point": 0, "low": -128, "high": 127, "to": "i8", "bounded": False}
    for factor in (0.5, 1.0, 1e-9):
        yield Sample((edges, np.asarray(factor, np.float32)), ties)
        yield Sample(
            (edges, np.asarray(factor, np.float32)), {**ties, "zero_point": 3, "early": True}
        )


OPERATORS = [
    Operator(
        name="rescale", trait="elementwise", infer=_infer, reference=_reference,
        attrs={"zero_point": int, "low": int, "high": int, "to": str, "bounded": bool},
        optional_attrs={"early": bool}, compute=_compute, samples=_samples,
        doc="i32 sums to bytes by a float factor, ties to even",
    ),
    Operator(
        name="rescaled_sum", trait="elementwise", infer=_sum_infer, reference=_sum_reference,
        attrs={
            **dict.fromkeys(("factor_a", "factor_b", "offset"), (int, float)), "low": int, "high": int,
            "to": str, "bounded": bool,
        },
        compute=_sum_compute, samples=_sum_samples, doc="the sum of two quantised tensors, ties to even",
    ),
]  # fmt: skip
