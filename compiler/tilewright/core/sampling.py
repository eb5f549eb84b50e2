"""Values of an image between its points, in NumPy: what `loop.sampling` computes in loop IR.

In: an image, positions in units of its points. Out: values, and the taps they are made of.
Padding decides what lies outside: `zeros`, the nearest `border` point, or the image's `reflection`.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_KEYS = -0.75  # Keys' cubic convolution, as image libraries use it


def reflected(p: Array, n: int, corners: bool) -> Array:
    """Positions mirrored into the image: at its outermost points, or half a point outside of them."""
    low, span = (0.0, n - 1.0) if corners else (-0.5, float(n))
    if span == 0:
        return np.zeros_like(p)
    u = p - low
    u = u - np.floor(u / (2 * span)) * (2 * span)
    return low + (span - np.abs(u - span))


def cubic_weights(f: Array) -> list[Array]:
    """Weights of the points at -1, 0, 1 and 2 for a position `f` between 0 and 1."""
    a = _KEYS

    def near(d: Array) -> Array:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(f + 1), near(f), near(1 - f), far(2 - f)]


def sample(x: Array, at: Array, mode: str, padding: str, corners: bool) -> Array:
    """Values of `x[c.., d..]` at positions `at[p.., d]`: result `[c.., p..]`, in float64."""
    axes = [
        _axis(at[..., d].astype(np.float64), n, mode, padding, corners)
        for d, n in enumerate(x.shape[x.ndim - at.shape[-1] :])
    ]
    total: Any = 0.0
    for combination in product(*axes):
        index: Any = (..., *(i for i, _, _ in combination))
        weight = np.prod([w for _, w, _ in combination], axis=0)
        inside = np.all([ok for _, _, ok in combination], axis=0)
        total = total + np.where(inside, x[index].astype(np.float64), 0.0) * weight
    return np.asarray(total)


def _axis(
    p: Array, n: int, mode: str, padding: str, corners: bool
) -> list[tuple[Array, Array, Array]]:
    """(index, weight, whether it is inside) of the points that positions along one axis are made of."""
    p = np.rint(p) if mode == "nearest" else p
    if padding == "border":
        p = np.clip(p, 0, n - 1)
    elif padding == "reflection":
        p = reflected(p, n, corners)
    if mode == "nearest":
        points, weights = [p], [np.ones_like(p)]
    else:
        base = np.floor(p)
        f = p - base
        cubic = mode == "cubic"
        weights = cubic_weights(f) if cubic else [1 - f, f]
        points = [base + j for j in (range(-1, 3) if cubic else range(2))]
    out: list[tuple[Array, Array, Array]] = []
    for q, w in zip(points, weights, strict=True):
        inside = (q >= 0) & (q <= n - 1) if padding == "zeros" else np.ones(q.shape, np.bool_)
        q = reflected(q, n, corners) if padding == "reflection" else q
        with np.errstate(invalid="ignore"):
            out.append((np.clip(np.nan_to_num(q), 0, n - 1).astype(np.int64), w, inside))
    return out
