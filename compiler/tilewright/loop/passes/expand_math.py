"""Vector math: transcendental functions become polynomials in the loop IR itself.

In: a kernel that uses exp, log, tanh, erf, sigmoid, sin, cos or pow. Out: one that uses only
operations with an instruction of their own. Sub-expressions used twice are one shared object, which
the code generator computes once.
Invariant: the error stays below `MAX_ULP` (units in the last place, against float64), measured by
`tests/loop/test_expand_math.py`; infinities and NaN come out as in IEEE 754; results below the
smallest normal number flush to zero.

Methods: Cody & Waite, "Software Manual for the Elementary Functions" (1980), for range reduction;
coefficients from `docs/derive_math.py` (minimax by Lawson's iteration).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, nan, pi

from tilewright.core.dtypes import F16, F32, F64, I32, DType
from tilewright.errors import IRError
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
from tilewright.loop.rewrite import map_block, map_children

#: Largest error in units in the last place where the result is a normal number. `pow` grows with the
#: exponent of its result; `sin` and `cos` hold for |x| <= 1000 away from their zeros.
MAX_ULP: dict[str, float] = {
    "exp": 2.0, "log": 2.0, "tanh": 4.0, "erf": 4.0, "sigmoid": 4.0, "sin": 4.0, "cos": 4.0,
    "pow": 128.0,
}  # fmt: skip

# exp(r) = 1 + r + r^2 * P(r), |r| <= ln 2 / 2
_EXP = (0.49999994, 0.1666652, 0.041668393, 0.008368781, 0.0013814467)
# log(1 + f) = f - f^2 / 2 + f^3 * P(f), sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG = (
    0.3333333, -0.2500082, 0.20001227, -0.16623357, 0.14201759, -0.13160183, 0.12761575, -0.07634493,
)  # fmt: skip
# tanh(x) = x + x^3 * P(x^2), |x| <= 0.65
_TANH = (-0.33333263, 0.13330899, -0.053692967, 0.020483315, -0.005528633)
# erf(x) = x * P(x^2), |x| <= 1
_ERF = (
    1.1283791, -0.37612626, 0.112835854, -0.026853811, 0.0051883277, -0.00080101925, 7.853858e-05,
)  # fmt: skip
# erfc(x) = exp(-Q(x)), 1 <= x <= 4
_ERFC = (
    -0.00018846663, 1.1295803, 0.6332164, 0.10842209, -0.025210334, 0.004205283, -0.00044147234,
    2.169759e-05,
)  # fmt: skip
# sin(r) = r + r^3 * P(r^2), |r| <= pi / 2
_SIN = (-0.16666667, 0.008333331, -0.00019840867, 2.752532e-06, -2.3887749e-08)

#: Adding this to a small float leaves its nearest integer in the low bits (round to nearest even).
_MAGIC = 12582912.0  # 1.5 * 2^23
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


def _horner(coefficients: Sequence[float], x: Expr) -> Expr:
    """c0 + x * (c1 + x * (c2 + ...))."""
    p: Expr = _c(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        p = Fma(p, x, _c(c))
    return p


def exp_f32(x: Expr) -> Expr:
    """e^x: x = n ln 2 + r, 2^n added into the exponent bits of a polynomial in r."""
    shifted = Fma(x, _c(1.4426950408889634), _c(_MAGIC))
    n = _sub(shifted, _c(_MAGIC))
    r = Fma(n, _c(-_LN2_LOW), Fma(n, _c(-_LN2_HIGH), x))
    p = _add(Fma(_mul(r, r), _horner(_EXP, r), r), _c(1.0))
    scaled = _add(Bitcast(p, I32), _bin("shl", Bitcast(shifted, I32), _i(23)))
    y: Expr = Bitcast(scaled, F32)
    y = Select(_bin("gt", x, _c(88.72283)), _c(inf), y)
    return Select(_bin("lt", x, _c(-87.33654)), _c(0.0), y)


def log_f32(x: Expr) -> Expr:
    """ln x: x = 2^e * m with sqrt(1/2) <= m < sqrt(2), polynomial in m - 1."""
    tiny = _bin("lt", x, _c(1.1754944e-38))
    normal = Select(tiny, _mul(x, _c(8388608.0)), x)  # denormals: scale by 2^23
    bits = Bitcast(normal, I32)
    offset = _sub(bits, _i(0x3F3504F3))  # bits of sqrt(1/2)
    e_int = _bin("shr", offset, _i(23))
    m = Bitcast(_sub(bits, _bin("shl", e_int, _i(23))), F32)
    e = _sub(Cast(e_int, F32), Select(tiny, _c(23.0), _c(0.0)))
    f = _sub(m, _c(1.0))
    f2 = _mul(f, f)
    low = Fma(e, _c(_LN2_LOW), _mul(_mul(f2, f), _horner(_LOG, f)))
    y: Expr = Fma(e, _c(_LN2_HIGH), _add(f, Fma(f2, _c(-0.5), low)))
    y = Select(_bin("eq", x, _c(inf)), _c(inf), y)
    y = Select(_bin("eq", x, _c(0.0)), _c(-inf), y)
    # negative or NaN: not (x >= 0)
    return Select(_bin("ge", x, _c(0.0)), y, _c(nan))


def tanh_f32(x: Expr) -> Expr:
    """x + x^3 P(x^2) near 0, else 1 - 2 / (e^(2|x|) + 1) with the sign of x."""
    size = Unary("abs", x)
    z = _mul(x, x)
    small = Fma(_mul(z, x), _horner(_TANH, z), x)
    e = exp_f32(_bin("min", _add(size, size), _c(40.0)))
    large = _sub(_c(1.0), _bin("div", _c(2.0), _add(e, _c(1.0))))
    return Select(_bin("lt", size, _c(0.65)), small, _with_sign(large, x))


def _with_sign(magnitude: Expr, x: Expr) -> Expr:
    sign = _bin("and", Bitcast(x, I32), _i(-0x80000000))
    return Bitcast(_bin("or", Bitcast(magnitude, I32), sign), F32)


def erf_f32(x: Expr) -> Expr:
    """x P(x^2) for |x| < 1, else 1 - e^(-Q(|x|)) with the sign of x; 1 from |x| = 4 on."""
    size = _bin("min", Unary("abs", x), _c(4.0))
    z = _mul(x, x)
    small = _mul(x, _horner(_ERF, z))
    large = _sub(_c(1.0), exp_f32(Unary("neg", _horner(_ERFC, size))))
    return Select(_bin("lt", size, _c(1.0)), small, _with_sign(large, x))


def sigmoid_f32(x: Expr) -> Expr:
    """1 / (1 + e^-x); e^-x overflows to infinity where the result underflows to 0."""
    return _bin("div", _c(1.0), _add(_c(1.0), exp_f32(Unary("neg", x))))


def _sine(x: Expr, quarter: float) -> Expr:
    """sin(x + 2 * quarter * pi): x reduced by a multiple of pi in three parts."""
    turns = Fma(x, _c(1 / pi), _c(quarter))
    shifted = _add(turns, _c(_MAGIC))
    n = _sub(shifted, _c(_MAGIC))
    k = _sub(n, _c(quarter)) if quarter else n
    r = Fma(k, _c(-3.140625), x)
    r = Fma(k, _c(-9.67502593994140625e-4), r)
    r = Fma(k, _c(-1.509957990978376432e-7), r)
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


def pow_f32(x: Expr, y: Expr) -> Expr:
    """|x|^y = e^(y ln |x|), with the sign and the special cases of IEEE 754 pow."""
    size = Unary("abs", x)
    magnitude = exp_f32(_mul(y, log_f32(size)))
    whole = _bin("eq", Unary("floor", y), y)
    half = _mul(y, _c(0.5))
    odd = _bin("and", whole, _bin("ne", Unary("floor", half), half))
    signed = Select(odd, Unary("neg", magnitude), magnitude)
    negative = Select(whole, signed, _c(nan))
    out = Select(_bin("lt", x, _c(0.0)), negative, magnitude)
    one = _bin("or", _bin("eq", y, _c(0.0)), _bin("eq", x, _c(1.0)))
    return Select(one, _c(1.0), out)


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp_f32,
    "log": log_f32,
    "tanh": tanh_f32,
    "erf": erf_f32,
    "sigmoid": sigmoid_f32,
    "sin": sin_f32,
    "cos": cos_f32,
}


def _integer_pow(x: Expr, y: Expr) -> Expr:
    """Square and multiply over the (at most 6) exponent bits that do not overflow; y < 0 gives 0."""
    one, zero = Const(1, x.dtype), Const(0, x.dtype)
    result: Expr = one
    base = x
    for bit in range(6):
        has = _bin("ne", _bin("and", y, Const(1 << bit, y.dtype)), Const(0, y.dtype))
        result = _mul(result, Select(has, base, one))
        base = _mul(base, base)
    return Select(_bin("lt", y, Const(0, y.dtype)), zero, result)


def _through_f32(e: Expr, dtype: DType, build: Callable[..., Expr], *args: Expr) -> Expr:
    if dtype is F32:
        return build(*args)
    if dtype is F16:
        return Cast(build(*(Cast(a, F32) for a in args)), F16)
    raise IRError(f"vector math on {dtype} is not supported: cast the model to float32")


def expand_math(kernel: Kernel) -> Kernel:
    """Replace all transcendental operations of a kernel."""

    def expand(root: Expr) -> Expr:
        memo: dict[int, Expr] = {}

        def go(e: Expr) -> Expr:
            got = memo.get(id(e))
            if got is None:
                got = memo[id(e)] = step(map_children(e, go))
            return got

        return go(root)

    def step(e: Expr) -> Expr:
        match e:
            case Unary(op, a) if op in _UNARY and a.dtype is not F64:
                return _through_f32(e, e.dtype, _UNARY[op], a)
            case Binary("pow", a, b) if e.dtype.is_float:
                return _through_f32(e, e.dtype, pow_f32, a, b)
            case Binary("pow", a, b):
                return _integer_pow(a, b)
            case _:
                return e

    return replace(kernel, body=map_block(kernel.body, expr=expand))
