"""HARD_SWISH over quantised tensors: x * min(max(x + 3, 0), 6) / 6 in 16-bit fixed point.

In: integers less their zero point, the scales of operand and result. Out: steps of the result, with the
roundings of the reference kernel (the format says no more than that kernel does).
"""

from __future__ import annotations

import numpy as np

from tilewright.core.fixed_point import divided, fixed_point
from tilewright.graph.ir import Array

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1


def _short(factor: np.float32) -> tuple[int, int]:
    """(multiplier of 15 bits, exponent)."""
    multiplier, exponent = fixed_point(float(factor))
    return (
        _HIGH if multiplier >= (1 << 31) - 1 - (1 << 15) else (multiplier + (1 << 15)) >> 16
    ), exponent


def _rounded_product(x: Array, multiplier: int) -> Array:
    """x * multiplier / 2^15, half up."""
    return np.asarray((x * multiplier + (1 << 14)) >> 15)


def _cut(x: Array) -> Array:
    return np.asarray(np.clip(x, _LOW, _HIGH))


def hard_swish_table(values: Array, step: float, out: float) -> Array:
    """Steps of the result for `values` (int64)."""
    fine = np.float32(1 / 128) * np.float32(step)
    by_out, out_exponent = _short(np.float32(fine / np.float32(out)))
    by_three, exponent = _short(np.float32(fine / np.float32(3 / 32768)))
    x = values << 7
    plain = _rounded_product(x, by_out)
    # x / 3 in [-1, 1), saturated on the way up
    gate = _cut(x << (exponent - 1)) if exponent > 0 else x
    gate = _rounded_product(gate, by_three)
    gate = _cut(gate << 1) if exponent > 0 else divided(gate, -exponent)
    gate = (gate + (1 << 15)) >> 1
    product = gate * plain
    product = np.where(product < 0, -(-product >> 15), product >> 15)  # towards zero
    return divided(product, max(-out_exponent, 0))
