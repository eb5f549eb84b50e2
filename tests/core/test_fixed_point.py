"""Fixed-point factors against exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest

from tilewright.core.fixed_point import divided, fixed_point, fixed_points, high_product, scaled

RNG = np.random.default_rng(0)


def away(x: Fraction) -> int:
    """To the nearest integer, ties away from zero."""
    return floor(abs(x) + Fraction(1, 2)) * (1 if x >= 0 else -1)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.75, 1e-3, 3.7, 2**-31, 0.9999999999, 123456.7])
def test_factors_are_near(factor: float) -> None:
    multiplier, exponent = fixed_point(factor)
    assert 1 << 30 <= multiplier < 1 << 31
    assert abs(multiplier / 2**31 * 2.0**exponent - factor) <= factor * 2**-31


def test_what_is_too_small_is_zero() -> None:
    assert fixed_point(0.0) == (0, 0)
    assert fixed_point(2.0**-40) == (0, 0)
    multipliers, exponents = fixed_points(np.array([[0.5, 0.0], [3.0, 1e-3]]))
    assert multipliers.shape == exponents.shape == (2, 2)


def test_rounding() -> None:
    x = np.concatenate([RNG.integers(-(2**31), 2**31, 200), np.arange(-40, 41)]).astype(np.int32)
    for multiplier in (1 << 30, 1_534_567_891, (1 << 31) - 1):
        wanted = [floor(Fraction(int(v) * multiplier, 1 << 31) + Fraction(1, 2)) for v in x]
        assert high_product(x, multiplier).tolist() == wanted
    for bits in (0, 1, 3, 20):
        assert divided(x, bits).tolist() == [away(Fraction(int(v), 1 << bits)) for v in x]


def test_scaled_is_both() -> None:
    x = RNG.integers(-(2**20), 2**20, 100).astype(np.int32)
    for exponent in (-9, 0, 3):
        left, right = max(exponent, 0), max(-exponent, 0)
        wanted = divided(high_product(x.astype(np.int64) << left, 1_234_567_890), right)
        assert scaled(x, 1_234_567_890, exponent).tolist() == wanted.tolist()
