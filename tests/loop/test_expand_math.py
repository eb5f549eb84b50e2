"""Vector math: measured error of the polynomials against float64, and special values."""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from tilewright.core.dtypes import F16, F32, F64, I8, I32, U32, DType
from tilewright.core.index import Ix
from tilewright.loop.interp import run
from tilewright.loop.ir import (
    Binary,
    Bitcast,
    Cast,
    Const,
    Expr,
    Fma,
    Kernel,
    Load,
    Param,
    Ref,
    Select,
    Store,
    Unary,
    UnaryOp,
    dense,
)
from tilewright.loop.passes import expand_math as math
from tilewright.loop.passes.double_math import UNARY
from tilewright.loop.rewrite import children
from tilewright.loop.verify import verify

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


def ulps(got: Floats, want: npt.NDArray[np.float64], smallest: float = 2.0**-126) -> float:
    """Largest error in units in the last place, where the exact result is at least `smallest`.

    A result that is not finite although the exact one is counts as infinitely wrong.
    """
    normal = (np.abs(want) >= smallest) & (np.abs(want) < 3.4028e38)
    spacing = np.spacing(np.abs(want[normal]).astype(np.float32)).astype(np.float64)
    error = np.abs(got[normal].astype(np.float64) - want[normal]) / spacing
    return float(np.where(np.isfinite(error), error, np.inf).max())


def every(step: int, lo: float = 0.0, hi: float = 3.4e38) -> Floats:
    """Every `step`-th float32 from `lo` to `hi`, denormals among them, with both signs."""
    first, last = (int(np.float32(v).view(np.int32)) for v in (lo, hi))
    x = np.arange(first, last, step, dtype=np.int32).view(np.float32)
    return np.concatenate([x, -x])


_erf = np.vectorize(erf, otypes=[np.float64])


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _log(x: Any) -> Any:
    return np.log(np.abs(x))


CASES: dict[str, tuple[Callable[[Expr], Expr], Callable[[Any], Any], Floats]] = {
    "exp": (math.exp_f32, np.exp, np.linspace(-86.98, 88.7228, 1_500_001).astype(np.float32)),
    "log": (lambda x: math.log_f32(Unary("abs", x)), _log, every(3989)),
    "tanh": (math.tanh_f32, np.tanh, np.concatenate([every(3989), every(53, 0.25, 10)])),
    "erf": (math.erf_f32, _erf, np.concatenate([every(9973), every(397, 0.01, 5)])),
    "sigmoid": (math.sigmoid_f32, _sigmoid, np.linspace(-86.9, 90, 1_500_001).astype(np.float32)),
}


@pytest.mark.parametrize("name", CASES)
def test_error_stays_below_the_declared_bound(name: str) -> None:
    build, exact, x = CASES[name]
    with np.errstate(all="ignore"):
        want = np.asarray(exact(x.astype(np.float64)))
    error = ulps(evaluate(build(X), x=x), want, max(math.SMALLEST, 2.0**-126))
    print(f"{name}: {error:.2f} ulp")
    assert error <= math.MAX_ULP[name]


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid"])
def test_bounded_functions_never_exceed_one(name: str) -> None:
    assert np.abs(evaluate(CASES[name][0](X), x=every(997))).max() == 1


@pytest.mark.parametrize("name", ["tanh", "erf"])
def test_odd_functions_are_exactly_odd(name: str) -> None:
    x = every(3989)
    got = evaluate(CASES[name][0](X), x=x)
    assert np.array_equal(got[: x.size // 2], -got[x.size // 2 :])


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_circular_functions(name: str) -> None:
    x = np.linspace(-10000, 10000, 1_000_001).astype(np.float32)
    build, exact = getattr(math, f"{name}_f32"), getattr(np, name)
    want = exact(x.astype(np.float64))
    got = evaluate(build(X), x=x)
    assert np.abs(got - want).max() <= math.MAX_ABS
    near = (np.abs(want) > 0.01) & (np.abs(x) <= 1000)
    assert ulps(got[near], want[near]) <= math.MAX_ULP[name]
    huge = evaluate(build(X), x=np.array([1e6, 1e9, 1e30, 3e38], np.float32))
    assert np.abs(huge).max() <= 1
    assert np.isnan(evaluate(build(X), x=np.array([np.inf, -np.inf, np.nan], np.float32))).all()


@pytest.mark.parametrize(("lo", "hi"), [(0.5, 2), (1e-3, 1e3), (1e-44, 1e38)])
def test_pow(lo: float, hi: float) -> None:
    """Exponents up to those whose result is the largest or smallest float."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log(lo), np.log(hi), 1_000_000)).astype(np.float32)
    with np.errstate(all="ignore"):
        y = (rng.uniform(-86.9, 88.7, x.size) / np.log(x.astype(np.float64))).astype(np.float32)
        want = np.power(x.astype(np.float64), y.astype(np.float64))
    error = ulps(evaluate(math.pow_f32(X, Y), x=x, y=y), want, math.SMALLEST)
    print(f"pow: {error:.2f} ulp")
    assert error <= math.MAX_ULP["pow"]


_BASES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    np.inf,
    -np.inf,
    np.nan,
    2.0,
    -2.0,
    0.5,
    -0.5,
    -8.0,
    1e-40,
    3e38,
    -3e38,
)
_POWERS = (
    0.0, -0.0, 1.0, -1.0, 2.0, 3.0, -3.0, 7.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e10, -1e10, 3e38,
)  # fmt: skip


@pytest.mark.parametrize("constant", [False, True], ids=["any", "literal"])
def test_pow_special_cases(constant: bool) -> None:
    x = np.array(_BASES, np.float32)
    for power in _POWERS:
        y = np.full_like(x, power)
        exponent = Const(power, F32) if constant else Y
        got = evaluate(math.pow_f32(X, exponent), x=x, y=y)
        with np.errstate(all="ignore"):
            want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
        flushed = (got == 0) & (np.abs(want) < math.SMALLEST)
        close = np.isclose(got, want, rtol=2e-6, atol=0, equal_nan=True)
        same_sign = (np.signbit(got) == np.signbit(want)) | np.isnan(want)
        assert ((flushed | close) & same_sign).all(), (power, x, got, want)


def test_special_values() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)
    inf, nan = np.inf, np.nan
    for name, (build, want) in {
        "exp": (math.exp_f32, [inf, 0, nan, 1, 1]),
        "log": (math.log_f32, [inf, nan, nan, -inf, -inf]),
        "tanh": (math.tanh_f32, [1, -1, nan, 0, -0.0]),
        "erf": (math.erf_f32, [1, -1, nan, 0, -0.0]),
        "sigmoid": (math.sigmoid_f32, [1, 0, nan, 0.5, 0.5]),
    }.items():
        got = evaluate(build(X), x=x)
        assert np.array_equal(got, np.array(want, np.float32), equal_nan=True), (name, got)
        zeros = np.array(want) == 0
        assert np.array_equal(np.signbit(got[zeros]), np.signbit(np.array(want)[zeros])), name


def test_exp_at_both_ends() -> None:
    x = np.array([88.72283, 88.72284, 100, 3e38, -87.1, -104, -3e38, 1e-45], np.float32)
    got = evaluate(math.exp_f32(X), x=x)
    assert np.isfinite(got[0])
    assert np.array_equal(got[1:], np.array([np.inf, np.inf, np.inf, 0, 0, 0, 1], np.float32))


@pytest.mark.parametrize(
    ("name", "most"),
    [("exp", 13), ("sigmoid", 15), ("tanh", 16), ("erf", 18), ("log", 31), ("sin", 17)],
)
def test_instruction_count(name: str, most: int) -> None:
    """These run inside fused epilogues: a longer sequence is a regression."""
    assert len(_instructions(getattr(math, f"{name}_f32")(X))) <= most


def _instructions(root: Expr) -> list[Expr]:
    seen: dict[int, Expr] = {}
    stack = [root]
    while stack:
        e = stack.pop()
        if id(e) not in seen:
            seen[id(e)] = e
            stack.extend(children(e))
    return [e for e in seen.values() if not isinstance(e, Const | Ref | Bitcast)]


def _one(value: Expr, dtype: DType, operands: int = 1) -> Kernel:
    params = [Param(dense(n, dtype, (1,)), "in") for n in ("x", "y")[:operands]]
    body = (Store("out", (Ix(0),), value),)
    return Kernel("k", (*params, Param(dense("out", dtype, (1,)), "out")), body)


@pytest.mark.parametrize("dtype", [F16, F32, F64], ids=str)
@pytest.mark.parametrize("op", get_args(UnaryOp))
def test_every_operation_in_a_kernel(op: UnaryOp, dtype: DType) -> None:
    """The expanded kernel means what the interpreter says; sine and cosine of f64 are left as they are."""
    value: Expr = Unary(op, Load("x", (Ix(0),), dtype))
    if op == "not":
        value = Unary("not", Binary("gt", Load("x", (Ix(0),), dtype), Const(0.0, dtype)))
    kernel = _one(value if value.dtype is dtype else Cast(value, dtype), dtype)
    expanded = math.expand_math(kernel)
    assert dtype is not F64 or (expanded == kernel) == (op not in UNARY)
    verify(expanded)
    x = np.array([0.7], dtype.numpy)
    results = []
    for k in (kernel, expanded):
        out = np.zeros(1, dtype.numpy)
        run(k, {"x": x, "out": out})
        results.append(out)
    assert np.allclose(*results, rtol={16: 1e-3, 32: 1e-6, 64: 1e-15}[dtype.bits])


@pytest.mark.parametrize("dtype", [I8, I32, U32], ids=str)
def test_integer_pow(dtype: DType) -> None:
    loads = [Load(n, (Ix(0),), dtype) for n in ("x", "y")]
    expanded = math.expand_math(_one(Binary("pow", loads[0], loads[1]), dtype, 2))
    verify(expanded)
    for x, y in ((2, 5), (3, 0), (0, 0), (1, 40), (5, 2)):
        out = np.zeros(1, dtype.numpy)
        run(
            expanded, {"x": np.array([x], dtype.numpy), "y": np.array([y], dtype.numpy), "out": out}
        )
        assert out[0] == x**y
