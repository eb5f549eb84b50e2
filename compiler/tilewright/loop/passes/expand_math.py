"""Vector math: transcendental functions become polynomials in the loop IR itself.

In: a kernel that uses exp, log, tanh, erf, sigmoid, rsqrt, sin, cos or pow on f32 or f16. Out: one
that uses only operations with an instruction of their own. Sub-expressions used twice are one shared
object, which the code generator computes once. f64 is the matter of `double_math`, remainders of floats are
that of `float_mod`.
Invariant: the error stays below `MAX_ULP` (units in the last place, against float64) and `MAX_ABS`,
measured by `tests/loop/test_expand_math.py`; infinities and NaN come out as in IEEE 754.

Methods: Cody & Waite, "Software Manual for the Elementary Functions" (1980), for range reduction;
error-free sums and products (Dekker, 1971) for pow; coefficients from `docs/derive_math.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, nan, pi

from tilewright.core.dtypes import F16, F32, F64, I32
from tilewright.loop.ir import (
    Binary,
    BinaryOp,
    Bitcast,
    Cast,
    Const,
    Expr,
    Fma,
    Kernel,
    Select,
    Unary,
)
from tilewright.loop.passes import double_math, float_mod
from tilewright.loop.rewrite import map_block, map_children

#: Largest error in units in the last place where the result is at least `SMALLEST`. `sin` and `cos`:
#: |x| <= 1000 and |result| >= 0.01, otherwise `MAX_ABS` holds.
MAX_ULP: dict[str, float] = {
    "exp": 2.0, "log": 1.0, "tanh": 4.0, "erf": 4.0, "sigmoid": 4.0, "sin": 4.0, "cos": 4.0,
    "pow": 16.0,
}  # fmt: skip

#: Largest absolute error of `sin` and `cos` for |x| <= 10000. Beyond, the reduction loses accuracy;
#: the result always stays within [-1, 1].
MAX_ABS = 2e-7

#: exp, sigmoid and pow flush results below this to zero: 2^-125.5, just above the smallest normal.
SMALLEST = 1.6624e-38

# e^r = 1 + r * P(r), |r| <= ln 2 / 2
_EXP = (0.9999997, 0.49999148, 0.16667648, 0.041898247, 0.00828982)
# log(1 + f) = f - f^2 / 2 + f^3 * P(f), sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG = (
    0.3333333,
    -0.2500082,
    0.20001242,
    -0.16623409,
    0.1420158,
    -0.1315961,
    0.12762216,
    -0.07636435,
)
_LOG_LONG = (
    0.3333333,
    -0.24999973,
    0.20000155,
    -0.16669145,
    0.14283456,
    -0.12427476,
    0.110559195,
    -0.10816296,
    0.10544322,
    -0.058933076,
)
# tanh(x) = 2 t / (1 + t^2), 2 t = x * P(x^2) / Q(x^2), |x| <= 9.02
_TANH_P = (1.8235, 0.05425391, 0.00020752437)
_TANH_Q = (1.8235, 0.20621216, 0.0021961206, 2.2242134e-06)
# erf(x) likewise, |x| <= 3.93
_ERF_P = (1.8336161, 0.25860634, 0.032262933, 0.0010009597, -1.0605422e-05)
_ERF_Q = (1.625, 0.2535966, 0.057861343, 0.003610411)
# sin(r) = r + r^3 * P(r^2), |r| <= pi / 2
_SIN = (-0.16666667, 0.0083333505, -0.00019843093, 2.7627057e-06, -2.550291e-08)

#: Adding this to a small float leaves its nearest integer in the low bits (round to nearest even).
_MAGIC = 12582912.0  # 1.5 * 2^23
_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has 15 significant bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6


def _c(v: float) -> Const:
    return Const(v, F32)


def _i(v: int) -> Const:
    return Const(v, I32)


def _bin(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    return Binary(op, a, b)


def _add(a: Expr, b: Expr) -> Expr:
    return Binary("add", a, b)


def _sub(a: Expr, b: Expr) -> Expr:
    return Binary("sub", a, b)


def _mul(a: Expr, b: Expr) -> Expr:
    return Binary("mul", a, b)


def _div(a: Expr, b: Expr) -> Expr:
    return Binary("div", a, b)


def _clamp(x: Expr, lo: float, hi: float) -> Expr:
    """NaN stays NaN: with a literal operand this is one instruction a side."""
    return _bin("min", _bin("max", x, _c(lo)), _c(hi))


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """c0 + x * (c1 + x * (c2 + ...))."""
    p: Expr = _c(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = Fma(p, x, _c(c))
    return p


# ---------------------------------------------------------------- exp and sigmoid


def _exp(x: Expr, sign: int, low: Expr | None = None) -> Expr:
    """e^(sign * x + low): sign * x = n ln 2 + r, a polynomial in r times 2^n.

    The polynomial yields 2 e^r, so that the factor is 2^(n - 1): results up to the largest float
    stay finite, larger ones overflow to infinity by themselves, and at n = -126 the factor is 0.
    Rounding to n leaves the factor's exponent field, n + 126, in the low bits of `shifted`.
    """
    x = _clamp(x, -87.5, 89.5) if sign > 0 else _clamp(x, -89.5, 87.5)
    bias = _c(_MAGIC + 126)
    shifted = Fma(x, _c(sign * _LOG2_E), bias)
    n = _sub(shifted, bias)
    # sign * r: with sign = -1 the coefficients alternate, which saves negating x
    r: Expr = Fma(n, _c(-sign * _LN2_LOW), Fma(n, _c(-sign * _LN2_HIGH), x))
    if low is not None:
        r = _add(r, low)
    twice = [2.0, *(2 * c for c in _EXP)]
    p = _horner([c * sign**k for k, c in enumerate(twice)], r)
    return _mul(p, Bitcast(_bin("shl", Bitcast(shifted, I32), _i(23)), F32))


def exp_f32(x: Expr) -> Expr:
    """e^x in 13 instructions; results below `SMALLEST` flush to zero."""
    return _exp(x, 1)


def sigmoid_f32(x: Expr) -> Expr:
    """1 / (1 + e^-x); e^-x overflows to infinity where the result underflows to 0."""
    return _div(_c(1.0), _add(_exp(x, -1), _c(1.0)))


# ---------------------------------------------------------------- log


def _split_exponent(x: Expr) -> tuple[Expr, Expr]:
    """(e, f) with x = 2^e (1 + f) and sqrt(1/2) <= 1 + f < sqrt(2), for finite x > 0."""
    tiny = _bin("lt", x, _c(2.0**-126))
    normal = Select(tiny, _mul(x, _c(2.0**23)), x)
    bits = Bitcast(normal, I32)
    e = _bin("shr", _sub(bits, _i(0x3F3504F3)), _i(23))  # the bits of sqrt(1/2)
    m = Bitcast(_sub(bits, _bin("shl", e, _i(23))), F32)
    return _sub(Cast(e, F32), Select(tiny, _c(23.0), _c(0.0))), _sub(m, _c(1.0))


def log_f32(x: Expr) -> Expr:
    """ln x = e ln 2 + ln(1 + f), the second by a polynomial."""
    e, f = _split_exponent(x)
    f2 = _mul(f, f)
    low = Fma(e, _c(_LN2_LOW), _mul(_mul(f2, f), _horner(_LOG, f)))
    y: Expr = Fma(e, _c(_LN2_HIGH), _add(f, Fma(f2, _c(-0.5), low)))
    y = Select(_bin("lt", x, _c(inf)), y, x)  # infinity and NaN are their own logarithms
    return Select(_bin("gt", x, _c(0.0)), y, Select(_bin("eq", x, _c(0.0)), _c(-inf), _c(nan)))


def _log_pair(x: Expr) -> tuple[Expr, Expr]:
    """ln x for finite x > 0 as an unevaluated sum, relative error below 2^-27.

    The large parts (e ln 2 high, f, -f^2 / 2) are summed without error; only the cubic tail, at most
    1/14 of the result, is rounded.
    """
    e, f = _split_exponent(x)
    f2 = _mul(f, f)
    f2_low = Fma(f, f, Unary("neg", f2))
    f3 = _mul(f2, f)
    f3_low = Fma(f2_low, f, Fma(f2, f, Unary("neg", f3)))
    p = _horner(_LOG_LONG, f)
    s = Fma(f2, _c(-0.5), f)
    s_low = Fma(f2, _c(-0.5), _sub(f, s))
    big = _mul(e, _c(_LN2_HIGH))
    total = _add(big, s)
    total_low = _sub(s, _sub(total, big))  # exact: big is 0 or larger than s
    small = _add(total_low, Fma(f2_low, _c(-0.5), s_low))
    small = Fma(f3, p, Fma(f3_low, p, Fma(e, _c(_LN2_LOW), small)))
    high = _add(total, small)
    return high, _sub(small, _sub(high, total))


# ---------------------------------------------------------------- tanh and erf


def _doubled(x: Expr, p: Sequence[float], q: Sequence[float]) -> Expr:
    """2 t / (1 + t^2) for 2 t = x P(x^2) / Q(x^2), with one division.

    The slope is 0 at t = 1: where the result saturates, rounding errors of P and Q do not show.
    """
    z = _mul(x, x)
    n, d = _mul(x, _horner(p, z)), _horner(q, z)
    y = _div(_mul(n, d), Fma(d, d, _mul(_mul(n, n), _c(0.25))))
    return _clamp(y, -1.0, 1.0)


def tanh_f32(x: Expr) -> Expr:
    """tanh x = 2 t / (1 + t^2) with t = tanh(x / 2), a rational function; 1 from |x| = 9.018 on."""
    # a point where the rounded evaluation is exactly 1, as it must be at infinity
    return _doubled(_clamp(x, -9.018, 9.018), _TANH_P, _TANH_Q)


def erf_f32(x: Expr) -> Expr:
    """erf x = 2 t / (1 + t^2) with t a rational function like that of tanh; 1 from |x| = 3.93 on."""
    # a point where the rounded evaluation is exactly 1, as it must be at infinity
    return _doubled(_clamp(x, -3.93, 3.93), _ERF_P, _ERF_Q)


# ---------------------------------------------------------------- sin and cos


def _sine(x: Expr, quarter: float) -> Expr:
    """sin(x + quarter * pi): x reduced by a multiple of pi in three parts."""
    shifted = _add(Fma(x, _c(1 / pi), _c(quarter)), _c(_MAGIC))
    n = _sub(shifted, _c(_MAGIC))
    k = _sub(n, _c(quarter)) if quarter else n
    r: Expr = Fma(k, _c(-3.140625), x)
    r = Fma(k, _c(-9.67502593994140625e-4), r)
    r = Fma(k, _c(-1.509957990978376432e-7), r)
    r = _clamp(r, -1.6, 1.6)  # only for |x| too large to reduce: keep the result bounded
    z = _mul(r, r)
    s = Fma(_mul(z, r), _horner(_SIN, z), r)
    odd = _bin("shl", Bitcast(shifted, I32), _i(31))
    return Bitcast(_bin("xor", Bitcast(s, I32), odd), F32)


def sin_f32(x: Expr) -> Expr:
    """Sine."""
    return _sine(x, 0.0)


def cos_f32(x: Expr) -> Expr:
    """Cosine as sin(x + pi / 2)."""
    return _sine(x, 0.5)


# ---------------------------------------------------------------- pow and rsqrt


def pow_f32(x: Expr, y: Expr) -> Expr:
    """x^y with the special cases of IEEE 754; literal exponents -1, 0.5, 1, 2 and 3 are direct."""
    if isinstance(y, Const) and y.value in _SIMPLE_POWERS:
        return _SIMPLE_POWERS[float(y.value)](x)
    size = Unary("abs", x)
    whole = _bin("eq", Unary("floor", y), y)
    half = _mul(y, _c(0.5))
    odd = _bin("and", whole, _bin("ne", Unary("floor", half), half))
    sign = Select(odd, _bin("and", Bitcast(x, I32), _i(-0x80000000)), _i(0))
    signed = Bitcast(_bin("or", Bitcast(_magnitude(size, y), I32), sign), F32)
    # a finite negative base has no fractional power
    finite = _bin("and", _bin("lt", x, _c(0.0)), _bin("gt", x, _c(-inf)))
    fraction = _bin("ne", Unary("floor", y), y)
    out = Select(_bin("and", finite, fraction), _c(nan), signed)
    return Select(_bin("eq", y, _c(0.0)), _c(1.0), out)


def _magnitude(size: Expr, y: Expr) -> Expr:
    """size^y = e^(y ln size) for size >= 0; the product is carried in two floats."""
    high, low = _log_pair(size)
    zero = _bin("eq", size, _c(0.0))
    proper = _bin("and", _bin("gt", size, _c(0.0)), _bin("lt", size, _c(inf)))
    high = Select(proper, high, Select(zero, _c(-inf), size))
    product = _mul(y, high)
    rest: Expr = Fma(y, low, Fma(y, high, Unary("neg", product)))
    # where the result over- or underflows anyway, the rest may be infinity - infinity
    rest = Select(_bin("lt", Unary("abs", product), _c(128.0)), rest, _c(0.0))
    return Select(_bin("eq", size, _c(1.0)), _c(1.0), _exp(product, 1, rest))


def _root(x: Expr) -> Expr:
    """x^0.5: unlike sqrt, +0 at -0 and infinity at -infinity."""
    return Select(_bin("eq", x, _c(-inf)), _c(inf), Unary("sqrt", _add(x, _c(0.0))))


def _square(x: Expr) -> Expr:
    return _mul(x, x)


def _cube(x: Expr) -> Expr:
    return _mul(_mul(x, x), x)


_SIMPLE_POWERS: dict[float, Callable[[Expr], Expr]] = {
    -1.0: lambda x: _div(_c(1.0), x),
    0.5: _root,
    1.0: lambda x: x,
    2.0: _square,
    3.0: _cube,
}


def rsqrt_f32(x: Expr) -> Expr:
    """1 / sqrt(x), two correctly rounded steps."""
    return _div(_c(1.0), Unary("sqrt", x))


def _integer_pow(x: Expr, y: Expr) -> Expr:
    """Square and multiply over all bits of the exponent, wrapping; y < 0 gives 0."""
    one, zero = Const(1, x.dtype), Const(0, x.dtype)
    result: Expr = one
    base = x
    for bit in range(y.dtype.bits - (y.dtype.kind == "int")):
        has = _bin("ne", _bin("and", y, Const(1 << bit, y.dtype)), Const(0, y.dtype))
        result = _mul(result, Select(has, base, one))
        base = _mul(base, base)
    return Select(_bin("lt", y, Const(0, y.dtype)), zero, result)


# ---------------------------------------------------------------- the pass

_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp_f32,
    "log": log_f32,
    "tanh": tanh_f32,
    "erf": erf_f32,
    "sigmoid": sigmoid_f32,
    "rsqrt": rsqrt_f32,
    "sin": sin_f32,
    "cos": cos_f32,
}


def _wide(e: Expr) -> Expr:
    """An f16 operand in f32; a literal stays one."""
    if e.dtype is F32:
        return e
    return Const(e.value, F32) if isinstance(e, Const) else Cast(e, F32)


def _expanded(e: Expr) -> Expr:
    """One node whose operands are expanded already; f16 is computed in f32 and rounded."""
    match e:
        case Unary(op, a) if op in _UNARY and e.dtype in (F16, F32):
            out = _UNARY[op](_wide(a))
        case Binary("pow", a, b) if e.dtype in (F16, F32):
            out = pow_f32(_wide(a), _wide(b))
        case Binary("mod", a, b) if e.dtype.is_float:
            out = (
                float_mod.remainder(a, b)
                if e.dtype is F64
                else float_mod.remainder(_wide(a), _wide(b))
            )
        case Unary(op, a) if op in double_math.UNARY and e.dtype is F64:
            return double_math.UNARY[op](a)
        case Binary("pow", a, b) if e.dtype is F64:
            return double_math.pow_f64(a, b)
        case Binary("pow", a, b):
            return _integer_pow(a, b)
        case _:
            return e
    return out if out.dtype is e.dtype else Cast(out, e.dtype)


def expand_math(kernel: Kernel) -> Kernel:
    """Replace all transcendental operations of a kernel."""

    def expand(root: Expr) -> Expr:
        memo: dict[int, Expr] = {}

        def go(e: Expr) -> Expr:
            got = memo.get(id(e))
            if got is None:
                got = memo[id(e)] = _expanded(map_children(e, go))
            return got

        return go(root)

    return replace(kernel, body=map_block(kernel.body, expr=expand))
