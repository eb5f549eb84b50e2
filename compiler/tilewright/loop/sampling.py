"""Values of an image between its points, as loop IR: `core.sampling` is the same in NumPy.

In: positions in units of the image's points. Out: the points a value is made of, with their weights.
Invariant: every index lies inside the image, whatever the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tilewright.core.index import Ix
from tilewright.loop.builder import (
    KernelBuilder,
    add,
    binary,
    const,
    fma,
    maximum,
    minimum,
    mul,
    sub,
    unary,
)
from tilewright.loop.ir import Expr

_KEYS = -0.75


@dataclass(frozen=True, slots=True)
class Tap:
    """A point of the image: its index, its weight, and (where it may lie outside) whether it counts."""

    index: tuple[Ix, ...]
    weight: Expr | None
    inside: Expr | None


def taps(
    k: KernelBuilder,
    at: Sequence[Expr],
    extents: Sequence[int],
    mode: str = "linear",
    padding: str = "zeros",
    corners: bool = True,
) -> list[Tap]:
    """The points that make the value at `at`, one coordinate per dim of `extents`."""
    axes = [_axis(k, p, n, mode, padding, corners) for p, n in zip(at, extents, strict=True)]
    return [
        Tap(
            tuple(i for t in combination for i in t.index),
            _all("mul", [t.weight for t in combination]),
            _all("and", [t.inside for t in combination]),
        )
        for combination in product(*axes)
    ]


def _all(op: str, parts: Sequence[Expr | None]) -> Expr | None:
    """`parts` joined by `and` or `mul`; None is neutral."""
    out: Expr | None = None
    for p in parts:
        if p is not None:
            out = p if out is None else binary("and" if op == "and" else "mul", out, p)
    return out


def _axis(k: KernelBuilder, p: Expr, n: int, mode: str, padding: str, corners: bool) -> list[Tap]:
    t = p.dtype
    if mode == "nearest":
        p = unary("round", p)
    if padding == "border":
        p = minimum(maximum(p, const(0.0, t)), const(n - 1.0, t))
    elif padding == "reflection":
        p = _reflected(p, n, corners)
    p = k.let("p", p)
    if mode == "nearest":
        return [_tap(k, p, None, n, padding, corners)]
    base = k.let("base", unary("floor", p))
    f = k.let("f", sub(p, base))
    weights = _cubic(f) if mode == "cubic" else [sub(const(1.0, t), f), f]
    first = -1 if mode == "cubic" else 0
    return [
        _tap(k, add(base, const(float(first + j), t)), k.let("w", w), n, padding, corners)
        for j, w in enumerate(weights)
    ]


def _tap(
    k: KernelBuilder, q: Expr, weight: Expr | None, n: int, padding: str, corners: bool
) -> Tap:
    inside: Expr | None = None
    if padding == "zeros":
        low, high = const(0.0, q.dtype), const(n - 1.0, q.dtype)
        inside = k.let("in", binary("and", binary("ge", q, low), binary("le", q, high)))
    elif padding == "reflection":
        q = _reflected(q, n, corners)
    return Tap((k.index(q, n, wrap=False),), weight, inside)


def _reflected(p: Expr, n: int, corners: bool) -> Expr:
    """See `core.sampling.reflected`."""
    t = p.dtype
    low, span = (0.0, n - 1.0) if corners else (-0.5, float(n))
    if span == 0:
        return const(0.0, t)
    u = sub(p, const(low, t))
    turns = unary("floor", mul(u, const(1 / (2 * span), t)))
    u = sub(u, mul(turns, const(2 * span, t)))
    away = unary("abs", sub(u, const(span, t)))
    return add(const(low, t), sub(const(span, t), away))


def _cubic(f: Expr) -> list[Expr]:
    """See `core.sampling.cubic_weights`."""
    t, a = f.dtype, _KEYS

    def near(d: Expr) -> Expr:
        inner = fma(const(a + 2, t), d, const(-(a + 3), t))
        return fma(mul(inner, d), d, const(1.0, t))

    def far(d: Expr) -> Expr:
        inner = fma(const(a, t), d, const(-5 * a, t))
        return fma(fma(inner, d, const(8 * a, t)), d, const(-4 * a, t))

    one, two = const(1.0, t), const(2.0, t)
    return [far(add(f, one)), near(f), near(sub(one, f)), far(sub(two, f))]
