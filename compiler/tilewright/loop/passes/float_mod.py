"""The remainder of floats as a long division in the loop IR.

In: operands of f32 or f64. Out: x - y trunc(x / y) by operations with an instruction of their own.
Invariant: exact, as C's `fmod` is (IEC 60559): the sign is that of x; NaN where x is infinite or y zero; x
where y is infinite.

Method: schoolbook division in base 2^DIGIT. With s = |y| 2^(DIGIT i) and r < 2^DIGIT s, the digit
q = floor(r / s) comes out of a rounded division at most one too large, and r - q s, a multiple of the last place
of s and not larger than s, has a float of its own, which a fused multiply-add finds (Sterbenz, 1974). A digit
that was one too large leaves r below zero, and the next one is then negative.
"""

from __future__ import annotations

from math import ceil, frexp, inf, nan

import numpy as np

from tilewright.core.dtypes import F64, I32, I64, DType
from tilewright.loop.ir import Binary, BinaryOp, Bitcast, Const, Expr, Fma, Select, Unary

#: Bits of a digit: few enough that the rounding of a quotient is far below one.
_DIGIT = {32: 22, 64: 51}
#: Exponents of the largest and of the smallest float: 2^high is above all of them, 2^low the least.
_RANGE = {32: (128, -149), 64: (1024, -1074)}


def remainder(x: Expr, y: Expr) -> Expr:
    """fmod(x, y) for two f32 or two f64 expressions; a literal y costs fewer steps."""
    dtype = x.dtype
    size, zero = Unary("abs", y), Const(0.0, dtype)
    most = Const(float(np.finfo(np.float64 if dtype is F64 else np.float32).max), dtype)
    r: Expr = Unary("abs", x)
    scaled: list[Expr] = [size]
    for _ in range(_digits(y, dtype) - 1):
        scaled.append(_bin("mul", scaled[-1], Const(2.0 ** _DIGIT[dtype.bits], dtype)))
    for s in reversed(scaled):
        q = Unary("floor", _bin("div", r, s))
        # an infinite multiple of y is larger than r: its digit is 0, but 0 times infinity no number
        r = Fma(Unary("neg", q), _bin("min", s, most), r)
    r = Select(_bin("lt", r, zero), _bin("add", r, size), r)
    proper = _bin("and", _bin("lt", Unary("abs", x), Const(inf, dtype)), _bin("gt", size, zero))
    return Select(proper, _signed(r, x), Const(nan, dtype))


def _digits(y: Expr, dtype: DType) -> int:
    """How many digits a quotient by `y` can have."""
    high, low = _RANGE[dtype.bits]
    if isinstance(y, Const) and 0 < abs(y.value) < inf:
        low = frexp(abs(y.value))[1] - 1
    return max(1, ceil((high - low) / _DIGIT[dtype.bits]))


def _signed(r: Expr, x: Expr) -> Expr:
    """r >= 0 with the sign of x, zeros included."""
    whole = I64 if x.dtype is F64 else I32
    sign = _bin("and", Bitcast(x, whole), Const(-(1 << (whole.bits - 1)), whole))
    return Bitcast(_bin("or", Bitcast(r, whole), sign), x.dtype)


def _bin(op: BinaryOp, a: Expr, b: Expr) -> Expr:
    return Binary(op, a, b)
