"""Real factors as integers, and products with them, rounded as gemmlowp and TensorFlow Lite do.

In: real factors, integers. Out: integers. A factor is `multiplier` / 2^31 * 2^`exponent` with a multiplier
of 31 bits. Its product with x is rounded twice: half up to (x * 2^left * multiplier) / 2^31, then, where the
exponent is negative, half away from zero to that over 2^-exponent.
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018), section 2.2; TensorFlow Lite 8-bit quantization specification.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def fixed_point(factor: float) -> tuple[int, int]:
    """(multiplier, exponent) of a factor >= 0; 0 for what is below 2^-32."""
    if factor == 0:
        return 0, 0
    fraction, exponent = math.frexp(factor)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, exponent = multiplier // 2, exponent + 1
    return (0, 0) if exponent < -31 else (multiplier, exponent)


def fixed_points(factors: Array) -> tuple[Array, Array]:
    """Multipliers and exponents (int64, of the shape of `factors`)."""
    pairs = np.array([fixed_point(float(f)) for f in factors.reshape(-1)], np.int64).reshape(-1, 2)
    return pairs[:, 0].reshape(factors.shape), pairs[:, 1].reshape(factors.shape)


def high_product(x: Array, multiplier: Array | int) -> Array:
    """x * multiplier / 2^31, half up (int64)."""
    return np.asarray((x.astype(np.int64) * multiplier + (1 << 30)) >> 31)


def divided(x: Array, bits: Array | int) -> Array:
    """x / 2^bits, half away from zero (int64)."""
    x, n = np.broadcast_arrays(x.astype(np.int64), np.asarray(bits, np.int64))
    half = np.where(n > 0, (1 << np.maximum(n, 1)) >> 1, 0)
    return np.asarray((x + half - ((x < 0) & (n > 0))) >> n)


def scaled(x: Array, multiplier: Array | int, exponent: Array | int) -> Array:
    """x times a factor, rounded twice (int64)."""
    left = np.maximum(exponent, 0)
    right = np.maximum(np.negative(exponent), 0)
    return divided(high_product(x.astype(np.int64) << left, multiplier), right)
