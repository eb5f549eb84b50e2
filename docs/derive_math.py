"""Derives the polynomial coefficients of compiler/tilewright/loop/passes/expand_math.py.

Method: minimax fit by Lawson's iteratively reweighted least squares on Chebyshev nodes, in float64,
relative error. Run `python docs/derive_math.py`; it prints each table and its maximum relative error.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erfc

import numpy as np

Fn = Callable[[np.ndarray], np.ndarray]


def fit(f: Fn, lo: float, hi: float, degree: int, weight: Fn) -> tuple[np.ndarray, float]:
    """Coefficients (constant first) that minimise max |p - f| * weight on [lo, hi]."""
    nodes = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    x = (hi - lo) / 2 * nodes + (hi + lo) / 2
    a = np.vander(x, degree + 1, increasing=True)
    y, w = f(x), weight(x)
    lawson = np.ones_like(x)
    best, best_error = np.zeros(degree + 1), np.inf
    for _ in range(200):
        s = np.sqrt(lawson) * w
        c, *_ = np.linalg.lstsq(a * s[:, None], y * s, rcond=None)
        error = np.abs(a @ c - y) * w
        if error.max() < best_error:
            best, best_error = c, float(error.max())
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.max()
    return best, best_error


def show(name: str, result: tuple[np.ndarray, float]) -> None:
    print(f"{name} = (  # max relative error {result[1]:.1e}")
    for c in result[0]:
        print(f"    {np.float32(c)!r},")
    print(")")


def main() -> None:
    ln2 = np.log(2)
    # exp(r) = 1 + r + r^2 * P(r)
    show("EXP", fit(lambda r: (np.expm1(r) - r) / r**2, -ln2 / 2 * 1.001, ln2 / 2 * 1.001, 4, lambda r: r**2 / np.exp(r)))
    # log(1 + f) = f - f^2/2 + f^3 * P(f)
    show("LOG", fit(lambda f: (np.log1p(f) - f + f * f / 2) / f**3, np.sqrt(0.5) - 1, np.sqrt(2) - 1, 7, lambda f: np.abs(f**3 / np.log1p(f))))
    # tanh(x) = x + x^3 * P(x^2) for |x| <= 0.65
    show("TANH", fit(lambda z: (np.tanh(np.sqrt(z)) / np.sqrt(z) - 1) / z, 1e-6, 0.65**2, 4, lambda z: z))
    # erf(x) = x * P(x^2) for |x| <= 1
    ve = np.vectorize(erfc)
    show("ERF", fit(lambda z: (1 - ve(np.sqrt(z))) / np.sqrt(z), 1e-6, 1.0, 6, lambda z: np.sqrt(z) / (1 - ve(np.sqrt(z)))))
    # erfc(x) = exp(-Q(x)) for 1 <= x <= 4
    show("ERFC", fit(lambda x: -np.log(ve(x)), 1.0, 4.0, 7, lambda x: ve(x) / (1 - ve(x))))
    # sin(r) = r + r^3 * P(r^2) for |r| <= pi/2
    show("SIN", fit(lambda z: (np.sin(np.sqrt(z)) / np.sqrt(z) - 1) / z, 1e-6, (np.pi / 2) ** 2 * 1.001, 4, lambda z: z * np.sqrt(z) / np.sin(np.sqrt(z))))


if __name__ == "__main__":
    main()
