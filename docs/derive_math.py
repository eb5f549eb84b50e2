"""Derives the coefficients of compiler/tilewright/loop/passes/expand_math.py.

Method: minimax fits of the relative error by Lawson's iteratively reweighted least squares on
Chebyshev nodes, in float64. Rational fits solve P - f Q = 0 with each row divided by the previous Q
(Sanathanan & Koerner, 1963). Run `python docs/derive_math.py`: it prints each table, rounded to
float32, and the largest relative error of the rounded table in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf, log, pi, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Fn = Callable[[Floats], Floats]
LN2 = log(2)
NODES = 3000
TANH_DEGREES = (2, 3)
ERF_DEGREES = (4, 3)


def _nodes(lo: float, hi: float) -> Floats:
    t = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
    return np.asarray((hi - lo) / 2 * t + (hi + lo) / 2)


def polynomial(
    f: Fn, lo: float, hi: float, degree: int, weight: Fn, start: tuple[float, ...] = ()
) -> tuple[Floats, float]:
    """Coefficients (constant first) that minimise max |p - f| * weight on [lo, hi].

    They are exact float32: each is rounded in turn, from the constant up, and those that are left
    are fitted again, so that they make up for the rounding. `start` holds coefficients given before.
    """
    x = _nodes(lo, hi)
    powers = np.vander(x, degree + 1, increasing=True)
    y, w = f(x), weight(x)
    fixed = list(start)
    while len(fixed) <= degree:
        rest = y - powers[:, : len(fixed)] @ np.array(fixed)
        fixed.append(float(np.float32(_lawson(powers[:, len(fixed) :], rest, w)[0])))
    c = np.array(fixed)
    return c, float((np.abs(powers @ c - y) * w).max())


def _lawson(a: Floats, y: Floats, w: Floats) -> Floats:
    lawson = np.ones(NODES)
    best, best_error = np.zeros(a.shape[1]), np.inf
    for _ in range(300):
        rows = np.sqrt(lawson) * w
        m = a * rows[:, None]
        size = np.linalg.norm(m, axis=0)
        c = np.linalg.lstsq(m / size, y * rows, rcond=1e-16)[0] / size
        error = np.abs(a @ c - y) * w
        if error.max() < best_error:
            best, best_error = c, float(error.max())
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.max()
    return best


def rational(f: Fn, hi: float, p: int, q: int, scale: float = 1.0) -> tuple[Floats, Floats, float]:
    """2 t(x) = x P(x^2) / Q(x^2) with 2 t / (1 + t^2) = f(x) for 0 < x <= hi; Q(0) = scale.

    P of degree `p`, Q of degree `q`. Weighted by what an error of t does to the result, relatively:
    (1 - t^2) / (1 + t^2), nothing where f is 1. Q is rounded to float32 first, then P fitted again;
    `scale` is free: it decides how well the coefficients, above all P(0) / Q(0), round.
    """

    def half(z: Floats) -> tuple[Floats, Floats]:
        y = f(np.sqrt(z))
        t = y / (1 + np.sqrt(1 - y * y))
        return t / np.sqrt(z), (1 - t * t) / (1 + t * t) + 1e-4

    x = _nodes(1e-9, hi) ** 2
    s, (y, weight) = x / hi**2, half(x)
    a, b = np.vander(s, p + 1, increasing=True), np.vander(s, q + 1, increasing=True)
    lawson, denominator = np.ones(NODES), np.ones(NODES)
    best, best_error = np.zeros(p + q + 1), np.inf
    for _ in range(400):
        rows = np.sqrt(lawson) * weight / (y * denominator)
        m = np.hstack([a, -b[:, 1:] * y[:, None]]) * rows[:, None]
        size = np.linalg.norm(m, axis=0)
        c = np.linalg.lstsq(m / size, y * rows, rcond=1e-16)[0] / size
        denominator = 1 + b[:, 1:] @ c[p + 1 :]
        error = np.abs(a @ c[: p + 1] / denominator / y - 1) * weight
        if error.max() < best_error:
            best, best_error = c, float(error.max())
        lawson *= np.sqrt(error / error.max()) + 1e-3
        lawson /= lawson.max()
    bottom = scale * np.r_[1, best[p + 1 :]] / hi ** (2 * np.arange(q + 1.0))
    bottom = bottom.astype(np.float32).astype(np.float64)

    def product(z: Floats) -> Floats:
        return np.asarray(half(z)[0] * (np.vander(z, q + 1, increasing=True) @ bottom))

    top, worst = polynomial(product, 1e-9, hi**2, p, lambda z: half(z)[1] / product(z))
    return 2 * top, bottom, worst


def show(name: str, coefficients: Floats, error: float) -> None:
    print(f"# max relative error {error:.1e}")
    print(f"_{name} = ({', '.join(str(np.float32(c)) for c in coefficients)})")


def main() -> None:
    # e^r = 1 + r * P(r), |r| <= ln 2 / 2
    show("EXP", *polynomial(
        lambda r: np.expm1(r) / r, -LN2 / 2 * 1.001, LN2 / 2 * 1.001, 4, lambda r: np.abs(r) / np.exp(r)
    ))  # fmt: skip
    # log(1 + f) = f - f^2/2 + f^3 * P(f), sqrt(1/2) <= 1 + f <= sqrt(2)
    lo, hi = sqrt(0.5) - 1, sqrt(2) - 1
    for name, degree in (("LOG", 7), ("LOG_LONG", 9)):
        show(name, *polynomial(
            lambda f: (np.log1p(f) - f + f * f / 2) / f**3, lo, hi, degree,
            lambda f: np.abs(f**3 / np.log1p(f)),
        ))  # fmt: skip
    # tanh(x) = 2 t / (1 + t^2), 2 t = x P(x^2) / Q(x^2), |x| <= 9.02
    p, q, error = rational(np.tanh, 9.02, *TANH_DEGREES, scale=1.8235)
    show("TANH_P", p, error)
    show("TANH_Q", q, error)
    # erf(x) likewise, |x| <= 3.93
    p, q, error = rational(np.vectorize(erf, otypes=[np.float64]), 3.93, *ERF_DEGREES, scale=1.625)
    show("ERF_P", p, error)
    show("ERF_Q", q, error)
    # sin(r) = r + r^3 * P(r^2), |r| <= pi / 2
    show("SIN", *polynomial(
        lambda z: (np.sin(np.sqrt(z)) / np.sqrt(z) - 1) / z, 1e-6, (pi / 2) ** 2 * 1.001, 4,
        lambda z: z * np.sqrt(z) / np.sin(np.sqrt(z)),
    ))  # fmt: skip


if __name__ == "__main__":
    main()
