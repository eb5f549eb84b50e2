"""Vector math in f64: exp, log, tanh, erf, sigmoid, rsqrt and pow as polynomials in the loop IR.

In: operands of f64. Out: expressions of operations with an instruction of their own.
Invariant: the error stays below `MAX_ULP` units in the last place against higher precision (for pow times
1 + |y ln x|); infinities and NaN come out as in IEEE 754. `sin` and `cos` are left to the C library.

Methods: range reduction as in Cody & Waite, "Software Manual for the Elementary Functions" (1980), which also
gives the rational function of tanh; log by the series of atanh in the form of Sun's fdlibm (1993); erf by the
rational functions of Cody, "Rational Chebyshev approximations for the error function" (1969).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import factorial, inf, nan

from tilewright.core.dtypes import F64, I64
from tilewright.loop.ir import Binary, BinaryOp, Bitcast, Cast, Const, Expr, Fma, Select, Unary

#: Largest error in units in the last place, where the result is a normal number.
MAX_ULP = {
    "exp": 2.0,
    "log": 2.0,
    "tanh": 4.0,
    "erf": 4.0,
    "sigmoid": 4.0,
    "rsqrt": 2.0,
    "pow": 4.0,
}

#: 1.5 * 2^52: adding it leaves the nearest integer in the low bits.
_MAGIC = 6755399441055744.0
_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has 32 significant bits, so that its product with an exponent is exact
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10

_TANH_P = (-1613.4119023996228, -99.22592967223608, -0.9643749277722547)
_TANH_Q = (4840.23570719886887, 2233.7720718962313, 112.74474380534949, 1.0)
# erf(x) = x P(x^2) / Q(x^2) for |x| <= 0.46875, erfc(y) = e^(-y^2) P(y) / Q(y) above
_ERF_P = (
    3209.377589138469,
    377.485237685302,
    113.86415415105016,
    3.1611237438705656,
    0.18577770618460315,
)
_ERF_Q = (2844.2368334391706, 1282.6165260773723, 244.02463793444417, 23.601290952344122, 1.0)
_ERFC_P = (
    1230.3393547979972, 2051.0783778260716, 1712.0476126340707, 881.9522212417691, 298.6351381974001,
    66.11919063714163, 8.883149794388375, 0.5641884969886701, 2.1531153547440383e-08,
)  # fmt: skip
_ERFC_Q = (
    1230.3393548037495, 3439.3676741437216, 4362.619090143247, 3290.7992357334597, 1621.3895745666903,
    537.1811018620099, 117.6939508913125, 15.744926110709835, 1.0,
)  # fmt: skip


def _c(v: float) -> Const:
    return Const(v, F64)


def _i(v: int) -> Const:
    return Const(v, I64)


def _bin(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    return Binary(op, a, b)


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    p: Expr = _c(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = Fma(p, x, _c(c))
    return p


def _signed(size: Expr, x: Expr) -> Expr:
    """`size` >= 0 with the sign of x."""
    sign = _bin("and", Bitcast(x, I64), _i(-(1 << 63)))
    return Bitcast(_bin("or", Bitcast(size, I64), sign), F64)


def exp_f64(x: Expr, low: Expr | None = None) -> Expr:
    """e^(x + low): x = n ln 2 + r, a polynomial in r times 2^n; below 2^-1021.5 it flushes to 0."""
    x = _bin("min", _bin("max", x, _c(-708.7)), _c(710.0))
    bias = _c(_MAGIC + 1022)
    shifted = Fma(x, _c(_LOG2_E), bias)
    n = _bin("sub", shifted, bias)
    r: Expr = Fma(n, _c(-_LN2_LOW), Fma(n, _c(-_LN2_HIGH), x))
    if low is not None:
        r = _bin("add", r, low)
    p = _horner([2 / factorial(k) for k in range(14)], r)
    return _bin("mul", p, Bitcast(_bin("shl", Bitcast(shifted, I64), _i(52)), F64))


def log_f64(x: Expr) -> Expr:
    """ln x = e ln 2 + ln(1 + f), sqrt(1/2) <= 1 + f < sqrt(2)."""
    tiny = _bin("lt", x, _c(2.0**-1022))
    bits = Bitcast(Select(tiny, _bin("mul", x, _c(2.0**54)), x), I64)
    e = _bin("shr", _bin("sub", bits, _i(0x3FE6A09E667F3BCD)), _i(52))  # the bits of sqrt(1/2)
    m = Bitcast(_bin("sub", bits, _bin("shl", e, _i(52))), F64)
    n = _bin("sub", Cast(e, F64), Select(tiny, _c(54.0), _c(0.0)))
    f = _bin("sub", m, _c(1.0))
    s = _bin("div", f, _bin("add", f, _c(2.0)))
    w = _bin("mul", s, s)
    half = _bin("mul", _bin("mul", f, f), _c(0.5))
    series = _bin("mul", w, _horner([2 / (2 * k + 3) for k in range(11)], w))
    tail = Fma(s, _bin("add", half, series), _bin("mul", n, _c(_LN2_LOW)))
    y = _bin("sub", half, tail)
    y = Fma(n, _c(_LN2_HIGH), _bin("sub", f, y))
    y = Select(_bin("lt", x, _c(inf)), y, x)  # infinity and NaN are their own logarithms
    return Select(_bin("gt", x, _c(0.0)), y, Select(_bin("eq", x, _c(0.0)), _c(-inf), _c(nan)))


def sigmoid_f64(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return _bin("div", _c(1.0), _bin("add", exp_f64(Unary("neg", x)), _c(1.0)))


def tanh_f64(x: Expr) -> Expr:
    """A rational function for |x| < 0.55, 1 - 2 / (e^2|x| + 1) above."""
    z = _bin("mul", x, x)
    ratio = _bin("div", _horner(_TANH_P, z), _horner(_TANH_Q, z))
    size = Unary("abs", x)
    small = _signed(Fma(_bin("mul", size, z), ratio, size), x)
    grown = _bin("add", exp_f64(_bin("add", size, size)), _c(1.0))
    large = _signed(_bin("sub", _c(1.0), _bin("div", _c(2.0), grown)), x)
    return Select(
        _bin("lt", size, _c(0.55)), small, Select(_bin("lt", size, _c(30.0)), large, _past(x))
    )


def _past(x: Expr) -> Expr:
    """+-1, NaN for NaN."""
    return Select(Unary("isnan", x), x, _signed(_c(1.0), x))


def erf_f64(x: Expr) -> Expr:
    """Near 0 by its own rational function, above as 1 - erfc."""
    z = _bin("mul", x, x)
    small = _bin("mul", x, _bin("div", _horner(_ERF_P, z), _horner(_ERF_Q, z)))
    size = Unary("abs", x)
    y = _bin("min", size, _c(6.5))
    tail = _bin("div", _horner(_ERFC_P, y), _horner(_ERFC_Q, y))
    tail = _bin("mul", tail, exp_f64(Unary("neg", _bin("mul", y, y))))
    large = _signed(_bin("sub", _c(1.0), tail), x)
    return Select(
        _bin("le", size, _c(0.46875)), small, Select(_bin("lt", size, _c(6.5)), large, _past(x))
    )


def rsqrt_f64(x: Expr) -> Expr:
    """1 / sqrt(x), two correctly rounded steps."""
    return _bin("div", _c(1.0), Unary("sqrt", x))


_SIMPLE: dict[float, Callable[[Expr], Expr]] = {
    -1.0: lambda x: _bin("div", _c(1.0), x),
    0.5: lambda x: Select(_bin("eq", x, _c(-inf)), _c(inf), Unary("sqrt", _bin("add", x, _c(0.0)))),
    1.0: lambda x: x,
    2.0: lambda x: _bin("mul", x, x),
    3.0: lambda x: _bin("mul", _bin("mul", x, x), x),
}


def pow_f64(x: Expr, y: Expr) -> Expr:
    """x^y = e^(y ln |x|) with the special cases of IEEE 754; literal exponents -1, 0.5, 1, 2, 3 are direct."""
    if isinstance(y, Const) and y.value in _SIMPLE:
        return _SIMPLE[float(y.value)](x)
    size = Unary("abs", x)
    logarithm = log_f64(size)
    product = _bin("mul", y, logarithm)
    rest: Expr = Fma(y, logarithm, Unary("neg", product))
    rest = Select(_bin("lt", Unary("abs", product), _c(1024.0)), rest, _c(0.0))
    power = Select(_bin("eq", size, _c(1.0)), _c(1.0), exp_f64(product, rest))
    whole = _bin("eq", Unary("floor", y), y)
    half = _bin("mul", y, _c(0.5))
    odd = _bin("and", whole, _bin("ne", Unary("floor", half), half))
    out = Select(odd, _signed(power, x), power)
    negative = _bin("and", _bin("lt", x, _c(0.0)), _bin("gt", x, _c(-inf)))
    fraction = _bin("ne", Unary("floor", y), y)
    out = Select(_bin("and", negative, fraction), _c(nan), out)
    return Select(_bin("eq", y, _c(0.0)), _c(1.0), out)


UNARY: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp_f64, "log": log_f64, "tanh": tanh_f64, "erf": erf_f64, "sigmoid": sigmoid_f64,
    "rsqrt": rsqrt_f64,
}  # fmt: skip
