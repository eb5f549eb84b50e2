"""Vector math: measured error of the polynomials against float64, and special values."""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tilewright.core.dtypes import F32
from tilewright.loop.ir import (
    Binary,
    Bitcast,
    Cast,
    Const,
    Expr,
    Fma,
    Ref,
    Select,
    Unary,
)  # fmt: skip
from tilewright.loop.passes import expand_math as math

Floats = npt.NDArray[np.float32]
X, Y = Ref("x", F32), Ref("y", F32)

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "lt": np.less,
    "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip
_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative, "abs": np.abs, "floor": np.floor, "sqrt": np.sqrt,
}  # fmt: skip


def evaluate(root: Expr, **values: Floats) -> Floats:
    """The expression over whole arrays in float32; fma rounds once."""
    memo: dict[int, Any] = {}

    def go(e: Expr) -> Any:
        if id(e) not in memo:
            memo[id(e)] = step(e)
        return memo[id(e)]

    def step(e: Expr) -> Any:
        match e:
            case Ref(name, _):
                return values[name]
            case Const(v, dtype):
                return dtype.numpy.type(v)
            case Unary(op, a):
                return _UNARY[op](go(a))
            case Binary(op, a, b):
                return _BINARY[op](go(a), go(b))
            case Fma(a, b, c):
                wide = np.float64(go(a)) * np.float64(go(b)) + np.float64(go(c))
                return np.asarray(wide).astype(np.float32)
            case Select(c, a, b):
                return np.where(go(c), go(a), go(b))
            case Cast(a, dtype):
                return np.asarray(go(a)).astype(dtype.numpy)
            case Bitcast(a, dtype):
                return np.asarray(go(a)).view(dtype.numpy)
        raise AssertionError(e)

    with np.errstate(all="ignore"):
        return np.asarray(go(root), np.float32)


def ulps(got: Floats, want: npt.NDArray[np.float64]) -> float:
    """Largest error in units in the last place, where the exact result is a normal float."""
    normal = np.isfinite(want) & (np.abs(want) >= 2.0**-126) & (np.abs(want) < 3.4e38)
    spacing = np.spacing(np.abs(want[normal]).astype(np.float32)).astype(np.float64)
    return float((np.abs(got[normal].astype(np.float64) - want[normal]) / spacing).max())


_erf = np.vectorize(erf, otypes=[np.float64])

CASES: dict[str, tuple[Callable[[Expr], Expr], Callable[[Any], Any], tuple[float, float]]] = {
    "exp": (math.exp_f32, np.exp, (-87.3, 88.7)),
    "log": (math.log_f32, np.log, (1e-37, 1e4)),
    "tanh": (math.tanh_f32, np.tanh, (-12, 12)),
    "erf": (math.erf_f32, _erf, (-5, 5)),
    "sigmoid": (math.sigmoid_f32, lambda x: 1 / (1 + np.exp(-x)), (-80, 80)),
}


@pytest.mark.parametrize("name", CASES)
def test_error_stays_below_the_declared_bound(name: str) -> None:
    build, exact, (lo, hi) = CASES[name]
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            np.linspace(lo, hi, 200_001),
            rng.uniform(lo, hi, 100_000),
            np.geomspace(1e-30, min(hi, 1e4), 50_000),
            -np.geomspace(1e-30, -lo, 50_000) if lo < 0 else np.geomspace(1e-37, 2, 50_000),
        ]
    ).astype(np.float32)
    error = ulps(evaluate(build(X), x=x), np.asarray(exact(x.astype(np.float64))))
    print(f"{name}: {error:.2f} ulp")
    assert error <= math.MAX_ULP[name]


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_circular_functions(name: str) -> None:
    x = np.linspace(-1000, 1000, 400_001).astype(np.float32)
    build, exact = getattr(math, f"{name}_f32"), getattr(np, name)
    want = exact(x.astype(np.float64))
    got = evaluate(build(X), x=x)
    away = np.abs(want) > 0.01
    assert ulps(got[away], want[away]) <= math.MAX_ULP[name]
    assert np.abs(got - want).max() < 2e-7


def test_pow() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.01, 50, 100_000).astype(np.float32)
    y = rng.uniform(-8, 8, 100_000).astype(np.float32)
    got = evaluate(math.pow_f32(X, Y), x=x, y=y)
    assert ulps(got, np.power(x.astype(np.float64), y.astype(np.float64))) <= math.MAX_ULP["pow"]
    base = np.array([-2, -2, -2, 0, 0, 0, 1, 5], np.float32)
    power = np.array([3, 2, 0.5, 2, -1, 0, 9, 0], np.float32)
    want = np.array([-8, 4, np.nan, 0, np.inf, 1, 1, 1], np.float32)
    got = evaluate(math.pow_f32(X, Y), x=base, y=power)
    assert np.allclose(got, want, rtol=1e-5, equal_nan=True)


def test_special_values() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    inf, nan = np.inf, np.nan
    for name, want in {
        "exp": [inf, 0, nan, 1, 1],
        "log": [inf, nan, nan, -inf, -inf],
        "tanh": [1, -1, nan, 0, -0.0],
        "erf": [1, -1, nan, 0, -0.0],
        "sigmoid": [1, 0, nan, 0.5, 0.5],
    }.items():
        got = evaluate(CASES[name][0](X), x=x)
        assert np.array_equal(got, np.array(want, np.float32), equal_nan=True), (name, got)
