"""Matrices of short convolutions with few multiplications (Toom-Cook, as Winograd uses them).

In: outputs m and taps r of a one-dimensional correlation y[i] = sum over k of d[i + k] g[k]. Out: B', G, A' with
y = A' ((G g) * (B' d)), m + r - 1 multiplications instead of m r.
Invariant: exact for the rational points used; rounding comes only from the size of the entries.
Winograd, "Arithmetic Complexity of Computations" (1980); Lavin & Gray, "Fast Algorithms for Convolutional
Neural Networks" (2015); for the choice of points: Barabasz et al., "Error Analysis and Improving the
Accuracy of Winograd Convolution" (2018).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

Matrix = tuple[tuple[float, ...], ...]

#: Finite points in the order in which they are used: small numbers and their negatives, then 1/2.
POINTS = tuple(Fraction(n, 2) for n in (0, 2, -2, 4, -4, 1, -1))


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """The three matrices: `data` (B'), `filter` (G), `output` (A')."""

    data: Matrix
    filter: Matrix
    output: Matrix


@cache
def short_convolution(outputs: int, taps: int) -> ShortConvolution:
    """Matrices for `outputs` results of a filter with `taps`; `ValueError` where points are missing."""
    if outputs < 1 or taps < 1 or outputs + taps - 2 > len(POINTS):
        raise ValueError(f"no points for {outputs} outputs of {taps} taps")
    points = POINTS[: outputs + taps - 2]
    data: list[list[Fraction]] = []
    weights: list[list[Fraction]] = []
    for i, p in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        sign = -1 if scale < 0 else 1  # keeps B' and G free of needless minus signs
        data.append([*(sign * c for c in _expand(others)), Fraction(0)])
        weights.append([sign * p**k / scale for k in range(taps)])
    data.append(_expand(list(points)))
    weights.append([Fraction(int(k == taps - 1)) for k in range(taps)])
    output = [[*(p**j for p in points), Fraction(int(j == outputs - 1))] for j in range(outputs)]
    return ShortConvolution(_floats(data), _floats(weights), _floats(output))


def _expand(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    out = [Fraction(1)]
    for r in roots:
        shifted = [Fraction(0), *out]
        out = [a - r * b for a, b in zip(shifted, [*out, Fraction(0)], strict=True)]
    return out


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in rows)
