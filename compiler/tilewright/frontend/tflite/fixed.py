"""What integer importers share: bounds, factors, tables.

In: real scales of the file. Out: nodes in integer arithmetic that round as TensorFlow Lite's reference
kernels do (TensorFlow Lite 8-bit quantization specification; `core.fixed_point`).
Invariant: factors are computed in the precision that those kernels use, float32 or float64, since a
difference in the last bit would show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.dtypes import I32
from tilewright.core.fixed_point import fixed_points
from tilewright.frontend.tflite.model import Tensor
from tilewright.frontend.tflite.node import TfliteNode
from tilewright.graph.ir import Array


def limits_of(t: Tensor) -> tuple[int, int]:
    """Least and largest integer of a tensor's type."""
    assert t.dtype is not None
    info = np.iinfo(str(t.dtype.numpy))
    return int(info.min), int(info.max)


def nearest(x: Any) -> Any:
    """Rounded to integers, ties away from zero, in the precision of `x`."""
    return np.trunc(x + np.copysign(0.5, x))


def bounds(node: TfliteNode, t: Tensor, kind: str | None = None) -> tuple[int, int]:
    """Least and largest integer of a result after the activation function `kind` (default: the fused one)."""
    low, high = limits_of(t)
    scale, zero = node.scale(t)
    kind = node.activation if kind is None else kind
    reals = {
        "": (-np.inf, np.inf), "RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0),
        "RELU_0_TO_1": (0.0, 1.0),
    }  # fmt: skip
    if kind not in reals:
        raise node.fail(f"the fused activation {kind} has no integer form: convert the model again")
    below, above = reals[kind]
    if np.isfinite(below):
        low = max(low, zero + int(nearest(np.float32(below) / np.float32(scale))))
    if np.isfinite(above):
        high = min(high, zero + int(nearest(np.float32(above) / np.float32(scale))))
    return min(low, high), high


def requantized(
    node: TfliteNode,
    total: str,
    factors: Array,
    largest: int,
    t: Tensor,
    kind: str | None = None,
    single: bool = False,
) -> str:
    """i32 values of magnitude up to `largest`, times real factors, as integers of tensor `t`; rounded
    twice, or a `single` time."""
    low, high = bounds(node, t, kind)
    zero = node.scale(t)[1]
    assert t.dtype is not None
    make = multiplied_once if single else multiplied
    return make(node, total, factors, largest, zero, low, high, t.dtype.name)


def multiplied(
    node: TfliteNode,
    total: str,
    factors: Array,
    largest: int,
    zero: int = 0,
    low: int = -(1 << 31),
    high: int = (1 << 31) - 1,
    to: str = "i32",
) -> str:
    """i32 values times real factors, rounded twice; i32 if nothing else is said."""
    multipliers, exponents = fixed_points(np.asarray(factors, np.float64))
    return multiplied_by(node, total, multipliers, exponents, largest, zero, low, high, to)


def multiplied_by(
    node: TfliteNode,
    total: str,
    multipliers: Array,
    exponents: Array,
    largest: int,
    zero: int = 0,
    low: int = -(1 << 31),
    high: int = (1 << 31) - 1,
    to: str = "i32",
) -> str:
    """Like `multiplied`, with factors multiplier / 2^31 * 2^exponent."""
    if node.type_of(total).dtype is not I32:
        raise node.fail(f"{node.type_of(total)} is not a sum of 32 bits: convert the model again")
    least, most = int(exponents.min(initial=0)), int(exponents.max(initial=0))
    # the high half of a product of 32 bits loses the one bit that multipliers of 31 bits leave
    shift = 1
    if exponents.size and least == most and most > 0:
        shift, exponents = 1 + most, exponents - most
    reach = shift + max(int(exponents.max(initial=0)), 0)
    attrs: dict[str, Any] = {
        "shift": shift, "zero_point": zero, "low": low, "high": high, "to": to,
        "wide": largest << reach >= 1 << 31,
    }  # fmt: skip
    inputs = [total, node.constant(multipliers, "multiplier", I32)]
    if exponents.any():
        inputs.append(node.constant(-1 - exponents, "places", I32))
        attrs["least"] = int((-1 - exponents).min(initial=0))
    return node.add("requantize", *inputs, **attrs)


def multiplied_once(
    node: TfliteNode,
    total: str,
    factors: Array,
    largest: int,
    zero: int,
    low: int,
    high: int,
    to: str,
) -> str:
    """i32 values times real factors, rounded once, half up."""
    multipliers, exponents = fixed_points(np.asarray(factors, np.float64))
    # as few bits to the left as leave the last place of every quotient to the right of the high half
    shift = max(2 + int(exponents.max(initial=-2)), 0)
    attrs: dict[str, Any] = {
        "shift": shift, "zero_point": zero, "low": low, "high": high, "to": to, "single": True,
        "wide": largest << shift >= 1 << 31,
    }  # fmt: skip
    places = node.constant(shift - 2 - exponents, "places", I32)
    return node.add(
        "requantize", total, node.constant(multipliers, "multiplier", I32), places, **attrs
    )


def centred(node: TfliteNode, x: str, zero: int) -> str:
    """Integers less their zero point, as i32."""
    wide = node.cast(x, I32)
    return node.add("sub", wide, node.like(wide, zero, "zero")) if zero else wide


def every(t: Tensor) -> Array:
    """All 256 values of a byte tensor, in the order of its bits."""
    assert t.dtype is not None
    return np.arange(256).astype(np.uint8).view(t.dtype.numpy)


def looked_up(node: TfliteNode, x: str, values: Array) -> str:
    """What 256 values give for a byte tensor."""
    return node.add("table", x, node.constant(values, "table"))


def to_table(t: Tensor, steps: Array, zero: int) -> Array:
    """Integers of tensor `t`: steps from its zero point, cut to the range of its type."""
    assert t.dtype is not None
    return np.asarray(np.clip(steps.astype(np.int64) + zero, *limits_of(t)), t.dtype.numpy)


def float_table(node: TfliteNode, function: Callable[[Array], Array]) -> Array:
    """The table of a function over float32: dequantize, apply, multiply by the inverse scale, round."""
    x, y = node.tensor(0), node.result()
    (step, zero), (out_step, out_zero) = node.scale(x), node.scale(y)
    with np.errstate(all="ignore"):
        reals = np.float32(step) * (every(x).astype(np.int64) - zero).astype(np.float32)
        inverse = np.float32(1) / np.float32(out_step)
        steps = nearest(np.asarray(function(reals), np.float32) * inverse)
        steps = np.clip(np.nan_to_num(steps, nan=0.0), -(1 << 30), 1 << 30)
    return to_table(y, steps, out_zero)


def finished(node: TfliteNode, total: str, zero: int, low: int, high: int) -> str:
    """i32 steps plus the zero point, cut to bounds, in the type of the result."""
    if zero:
        total = node.add("add", total, node.like(total, zero))
    total = node.add("max", total, node.like(total, low))
    total = node.add("min", total, node.like(total, high))
    to = node.result().dtype
    assert to is not None
    return node.cast(total, to)


def cut(node: TfliteNode, x: str, low: int, high: int) -> str:
    """Bytes cut to bounds."""
    least, most = limits_of(node.result())
    x = node.add("max", x, node.like(x, low)) if low > least else x
    return node.add("min", x, node.like(x, high)) if high < most else x
