"""Geometry of resampling along one dim: where output positions lie in the source, and with what weights.

In: numbers of a resize node. Out: exact coordinates, or a table of weights over all source elements.
Invariant: coordinates are fractions: rounding at a tie does not depend on float arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, gcd
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Line:
    """The source coordinate (a*o + b) / q of output position o."""

    a: int
    b: int
    q: int


def inverse(scale: float, n_in: int, n_out: int) -> Fraction:
    """1 / scale as the fraction that was meant: the ratio of sizes, or the simplest within a float32."""
    if abs(scale * n_in - n_out) <= 1e-6 * n_out:
        return Fraction(n_in, n_out)
    best = Fraction(scale).limit_denominator(16)
    for limit in (256, 4096, 65536, 1 << 20):
        if best > 0 and abs(float(best) - scale) <= 6e-8 * scale:
            break
        best = Fraction(scale).limit_denominator(limit)
    return 1 / max(best, Fraction(1, 1 << 20))


def coordinate(
    coord: str, n_in: int, n_out: int, scale: float, roi: tuple[float, float] = (0.0, 1.0)
) -> tuple[Fraction, Fraction]:
    """Slope and offset of the source coordinate as ONNX defines it.

    The length that `align_corners` and `tf_crop_and_resize` divide by is scale * n_in, which need not be whole.
    """
    r, half = inverse(scale, n_in, n_out), Fraction(1, 2)
    length = n_in / r
    match coord:
        case "asymmetric":
            return r, Fraction(0)
        case "align_corners":
            return (Fraction(0) if length == 1 else (n_in - 1) / (length - 1)), Fraction(0)
        case "tf_crop_and_resize":
            start, end = (Fraction(v).limit_denominator(1 << 20) for v in roi)
            if length <= 1:
                return Fraction(0), half * (start + end) * (n_in - 1)
            return (end - start) * (n_in - 1) / (length - 1), start * (n_in - 1)
        case "tf_half_pixel_for_nn":
            return r, r * half
        case "pytorch_half_pixel" if n_out == 1:
            return Fraction(0), Fraction(0)
        case "half_pixel_symmetric":
            return r, (n_in - n_out * r) * half + (r - 1) * half
        case _:
            return r, (r - 1) * half


def over_common(slope: Fraction, offset: Fraction) -> Line:
    """A line of fractions with one denominator."""
    q = int(np.lcm(slope.denominator, offset.denominator))
    return Line(int(slope * q), int(offset * q), q)


def line_rounded(slope: Fraction, offset: Fraction, rounding: str) -> Line:
    """A line whose floor is the coordinate rounded to an integer."""
    if rounding.startswith("round"):
        offset += Fraction(1, 2)
    line = over_common(slope, offset)
    b = line.b
    if rounding == "ceil":
        b += line.q - 1
    elif rounding == "round_prefer_floor":  # ceil(c - 1/2) == floor(c + 1/2 - 1/q)
        b -= 1
    g = gcd(line.a, line.q)  # only the floor counts, so b may round down: 2*o // 4 == o // 2
    return Line(line.a // g, b // g, line.q // g)


def rounded(at: Fraction, rounding: str) -> int:
    """A coordinate as an index, by ONNX's `nearest_mode`."""
    match rounding:
        case "floor":
            return floor(at)
        case "ceil":
            return ceil(at)
        case "round_prefer_ceil":
            return floor(at + Fraction(1, 2))
        case _:
            return ceil(at - Fraction(1, 2))


def weights(
    places: list[Fraction], n_in: int, mode: str, stretch: float, cubic_a: float, exclude: bool
) -> Array:
    """Table [outputs, n_in] of float64: each row the weights of the source for one coordinate.

    `stretch` <= 1 widens the filter by its inverse (antialias). Neighbours outside count for the edge, or,
    with `exclude`, not at all. Rows sum to 1.
    """
    support = (1 if mode == "linear" else 2) / stretch
    table = np.zeros((len(places), n_in))
    for row, at in zip(table, places, strict=True):
        first, last = ceil(at - Fraction(support)), floor(at + Fraction(support))
        for i in range(first, last + 1):
            weight = _filter(abs(float(i - at)) * stretch, mode, cubic_a)
            if 0 <= i < n_in or not exclude:
                row[min(max(i, 0), n_in - 1)] += weight
        row /= row.sum()
    return table


def _filter(x: float, mode: str, a: float) -> float:
    """The kernel of linear or cubic (Keys 1981, coefficient a) interpolation at distance x."""
    if mode == "linear":
        return max(1.0 - x, 0.0)
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0
