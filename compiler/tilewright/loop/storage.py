"""Values of types that are only stored (f16, bf16, 8- and 4-bit floats, 4- and 2-bit integers).

In: an expression of a type's `storage` or of its `work` type. Out: one of the other.
Invariant: `decode` is exact. `encode` rounds once, to nearest with ties to even; what is too large becomes
infinity, or NaN where the type has none, or the largest value where it has neither; integers keep their low
bits. `decode(encode(x))` of a value of the type is that value (up to the bits of a NaN).

Formats: IEEE 754-2019 (binary16); Micikevicius et al., "FP8 formats for deep learning" (2022); OCP
Microscaling Formats v1.0 (f4e2m1, f8e8m0); the `fnuz` types have one NaN and no negative zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

from tilewright.core.dtypes import BF16, F16, F32, F64, I32, U8, U16, U32, DType
from tilewright.loop.builder import add, binary, cast, const, mul, select, sub, unary
from tilewright.loop.ir import Bitcast, Cast, Const, Expr


@dataclass(frozen=True, slots=True)
class _Format:
    """A small float: sign, exponent with `bias`, `mantissa` bits.

    `special`: the magnitude from which on bits stand for no finite number, the first of them being
    infinity if `has_inf`; `fnuz`: the only special number is NaN, with the bits of a negative zero.
    """

    sign: int
    mantissa: int
    bias: int
    special: int
    has_inf: bool = False
    fnuz: bool = False


_FORMATS = {
    "f8e4m3fn": _Format(0x80, 3, 7, 0x7F),
    "f8e4m3fnuz": _Format(0x80, 3, 8, 0x80, fnuz=True),
    "f8e5m2": _Format(0x80, 2, 15, 0x7C, has_inf=True),
    "f8e5m2fnuz": _Format(0x80, 2, 16, 0x80, fnuz=True),
    "f4e2m1": _Format(0x8, 1, 1, 0x8),
}
#: Bits of integers that take a byte each.
_INTEGERS = {"i4": 4, "u4": 4, "i2": 2, "u2": 2}


def _i(v: int) -> Const:
    return Const(v, I32)


def _f(v: float) -> Const:
    return Const(v, F32)


def decode(bits: Expr, dtype: DType) -> Expr:
    """The value, in `dtype.work`, that `bits` (of `dtype.storage`) stand for."""
    if dtype.work is dtype:
        return bits
    if dtype.name in _INTEGERS:  # who wrote the other bits of the byte is not known
        return _low_bits(bits, dtype)
    if dtype is F16:
        return Cast(bits, F32)
    if dtype is BF16:
        return Bitcast(binary("shl", Cast(bits, U32), const(16, U32)), F32)
    wide = Cast(bits, I32)
    if dtype.name == "f8e8m0":
        exact = Bitcast(binary("shl", wide, _i(23)), F32)  # 0 means 2^-127, which is subnormal
        value = select(binary("eq", wide, _i(0)), _f(2.0**-127), exact)
        return select(binary("eq", wide, _i(255)), _f(nan), value)
    f = _FORMATS[dtype.name]
    size = binary("and", wide, _i(f.sign - 1))
    # the exponent of f32 is too small by the difference of the biases, also for subnormal numbers
    number = cast(size, F32)
    least = mul(number, _f(2.0 ** (1 - f.bias - f.mantissa)))
    shifted = add(binary("shl", size, _i(23 - f.mantissa)), _i((127 - f.bias) << 23))
    small = binary("lt", size, _i(1 << f.mantissa))
    value = select(small, least, Bitcast(shifted, F32))
    if not f.fnuz and dtype.name != "f4e2m1":
        beyond = select(binary("gt", size, _i(f.special)), _f(nan), _f(inf if f.has_inf else nan))
        value = select(binary("ge", size, _i(f.special)), beyond, value)
    sign = binary("shl", binary("and", wide, _i(f.sign)), _i(31 - (f.sign.bit_length() - 1)))
    value = Bitcast(binary("or", Bitcast(value, I32), sign), F32)
    if f.fnuz:
        return select(binary("eq", wide, _i(f.sign)), _f(nan), value)
    return value


def encode(value: Expr, dtype: DType) -> Expr:
    """The bits (of `dtype.storage`) of `value`, which is of `dtype.work`, rounded to `dtype`."""
    if dtype.work is dtype:
        return value
    if dtype.name in _INTEGERS:
        return _low_bits(value, dtype)
    if dtype is F16:
        return Cast(value, F16)
    if dtype is BF16:
        return _bf16(value)
    if dtype.name == "f8e8m0":
        return _e8m0(value)
    return _small_float(value, _FORMATS[dtype.name])


def rounded(value: Expr, dtype: DType) -> Expr:
    """`value` as it comes back from memory."""
    return value if dtype.work is dtype else decode(encode(value, dtype), dtype)


def _low_bits(value: Expr, dtype: DType) -> Expr:
    bits = _INTEGERS[dtype.name]
    if dtype.kind == "uint":
        return binary("and", value, const((1 << bits) - 1, value.dtype))
    shift = const(8 - bits, value.dtype)
    return binary("shr", binary("shl", value, shift), shift)


def _bf16(value: Expr) -> Expr:
    """The upper half of the bits, plus one where the lower half is more than half or a tie to odd."""
    bits = Bitcast(value, U32)
    odd = binary("and", binary("shr", bits, const(16, U32)), const(1, U32))
    near = binary("shr", add(bits, add(odd, const(0x7FFF, U32))), const(16, U32))
    quiet = binary("or", binary("shr", bits, const(16, U32)), const(0x40, U32))
    return Cast(select(unary("isnan", value), quiet, near), U16)


def _small_float(value: Expr, f: _Format) -> Expr:
    bits = Bitcast(value, I32)
    size = binary("and", bits, _i(0x7FFFFFFF))
    drop = 23 - f.mantissa
    odd = binary("and", binary("shr", size, _i(drop)), _i(1))
    near = binary("shr", add(size, add(odd, _i((1 << (drop - 1)) - 1))), _i(drop))
    normal = sub(near, _i((127 - f.bias) << f.mantissa))
    # subnormal numbers are whole multiples of the least one: the product is exact
    steps = mul(Bitcast(size, F32), _f(2.0 ** (f.bias + f.mantissa - 1)))
    least = cast(unary("round", steps), I32)
    small = binary("lt", size, _i((128 - f.bias) << 23))
    out = select(small, least, normal)
    if f.sign == 0x8:  # no infinity, no NaN
        largest = select(binary("gt", size, _i(0x7F800000)), _i(0), _i(f.special - 1))
    elif f.fnuz:
        largest = _i(f.sign)
    else:
        beyond = _i(f.special if f.has_inf else 0x7F)
        largest = select(binary("gt", size, _i(0x7F800000)), _i(0x7F), beyond)
    huge = binary("ge", size, _i(0x7F800000))  # infinity, NaN
    out = select(binary("or", huge, binary("ge", out, _i(f.special))), largest, out)
    at = 31 - (f.sign.bit_length() - 1)
    sign: Expr = binary("and", binary("shr", bits, _i(at)), _i(f.sign))
    if f.fnuz:
        nothing = binary("or", binary("eq", out, _i(0)), binary("eq", out, _i(f.sign)))
        sign = select(nothing, _i(0), sign)
    elif f.sign == 0x8:
        sign = select(binary("gt", size, _i(0x7F800000)), _i(f.sign), sign)
    return Cast(binary("or", out, sign), U8)


def _e8m0(value: Expr) -> Expr:
    """The exponent of the nearest power of two, ties up; NaN for what has none."""
    bits = Bitcast(value, I32)
    exponent = binary("shr", bits, _i(23))
    rest = binary("and", bits, _i(0x7FFFFF))
    up = binary("ge", rest, _i(0x400000))
    near = add(exponent, select(up, _i(1), _i(0)))
    tiny = binary("lt", bits, _i(0x800000))
    near = select(tiny, select(binary("gt", bits, _i(0x600000)), _i(1), _i(0)), near)
    bad = binary("or", binary("lt", bits, _i(0)), binary("ge", near, _i(255)))
    return Cast(select(bad, _i(255), near), U8)


def narrowed(value: Expr, to: DType) -> Expr:
    """`value` in the work type of `to`, such that `encode` rounds correctly: what is wider than f32 goes
    there by rounding to odd, after which a second rounding does no harm (Boldo & Melquiond, 2008)."""
    if to.work is not F32 or to is F32 or value.dtype.bits < 32 or value.dtype is F32:
        return cast(value, to.work)
    exact = cast(value, F64)
    near = Cast(exact, F32)
    back = Cast(near, F64)
    over = binary("gt", unary("abs", back), unary("abs", exact))
    bits = sub(Bitcast(near, I32), select(over, _i(1), _i(0)))
    odd = select(binary("ne", back, exact), binary("or", bits, _i(1)), bits)
    return Bitcast(odd, F32)
