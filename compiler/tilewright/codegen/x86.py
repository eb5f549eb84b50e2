"""Vector conversions and products that LLVM makes lane by lane, or by detours, on x86-64.

In: vectors of 4 lanes and more. Out: the values that `loop.interp` defines for them.
Invariant: the same results as the general code, in instructions for whole vectors.

A saturating conversion becomes a comparison and two bounds around `vcvttps2dq`. The high half of a product of
two i32 (what requantisation is made of) comes of `vpmuldq`, which multiplies the even lanes of its operands:
once as they are and once shifted down, where widening all lanes to 64 bits costs five shuffles.
"""

from __future__ import annotations

from typing import NamedTuple

from tilewright.codegen.values import Builder, Value, llvm_type
from tilewright.core.dtypes import BOOL, F32, F64, I32, I64, DType, limits
from tilewright.loop.ir import Binary, Cast, Const, Expr


def to_integer(b: Builder, v: Value, dtype: DType, bounded: bool) -> Value:
    """Floats cut to integers; `bounded`: no number is beyond what `dtype` holds (NaN may come)."""
    source, lanes = v.dtype, v.lanes
    floats = llvm_type(source, lanes)

    def splat(number: float) -> Value:
        return b.splat(b.constant(number, source), lanes)

    known = b.op(f"fcmp ord {floats} {v.ssa}, {v.ssa}")
    x = b.select(Value(known, BOOL, lanes), v, splat(0.0))
    low, high = limits(dtype)
    past = float(high + 1)  # a power of two: what does not fit begins here
    if not bounded:
        below = high if dtype.bits < mantissa(source) else past - past / 2 ** mantissa(source)
        for op, bound in (("lt", splat(low)), ("gt", splat(below))):
            x = b.select(b.binary(op, x, bound), bound, x)
    work = dtype if dtype.bits >= 32 else I32
    ins = "fptosi" if work.kind == "int" else "fptoui"
    out = Value(b.op(f"{ins} {floats} {x.ssa} to {llvm_type(work, lanes)}"), work, lanes)
    if not bounded and dtype.bits >= mantissa(source):
        top = b.splat(b.constant(high, dtype), lanes)
        out = b.select(b.binary("ge", v, splat(past)), top, out)
    return b.cast(out, dtype)


def mantissa(dtype: DType) -> int:
    """Bits of a float's whole numbers, the hidden one too."""
    return {16: 11, 32: 24, 64: 53}[dtype.bits]


def converts(v: Value, dtype: DType) -> bool:
    """Whether `to_integer` has whole vectors for this conversion."""
    return v.lanes >= 4 and v.dtype in (F32, F64) and dtype.is_integer and dtype.bits <= 32


def within(e: Expr, dtype: DType) -> bool:
    """Whether `e` is held between constants that `dtype` holds."""
    low, high = limits(dtype)
    match e:
        case Binary("min", Binary("max", _, Const(least)), Const(most)):
            return low <= least and most <= high
        case Binary("max", Binary("min", _, Const(most)), Const(least)):
            return low <= least and most <= high
    return False


class HighProduct(NamedTuple):
    """((a * b + rounding) >> 32) + plus, in 64 bits, cut to 32; a and b are i32."""

    a: Expr
    b: Expr
    rounding: int
    plus: int


def high_product(e: Expr) -> HighProduct | None:
    """`e` as a high product, if it is one."""
    if not isinstance(e, Cast) or e.dtype is not I32 or e.a.dtype is not I64:
        return None
    whole, plus = _and_constant(e.a)
    match whole:
        case Binary("shr", inner, Const(32)):
            product, rounding = _and_constant(inner)
            match product:
                case Binary("mul", Cast(a), Cast(b)) if a.dtype is I32 and b.dtype is I32:
                    return HighProduct(a, b, rounding, plus)
    return None


def _and_constant(e: Expr) -> tuple[Expr, int]:
    match e:
        case Binary("add", a, Const(number)):
            return a, int(number)
    return e, 0


def emit_high_product(at: Builder, a: Value, b: Value, rounding: int, plus: int) -> Value:
    """The product of `HighProduct` in all lanes."""
    lanes = a.lanes
    words, pairs = llvm_type(I32, lanes), llvm_type(I64, lanes // 2)
    low = "splat (i64 32)"
    operands = [at.op(f"bitcast {words} {v.ssa} to {pairs}") for v in (a, b)]
    products: list[str] = []
    for odd in (False, True):
        sides = operands if odd else [at.op(f"shl {pairs} {v}, {low}") for v in operands]
        x, y = (at.op(f"ashr {pairs} {v}, {low}") for v in sides)
        product = at.op(f"mul {pairs} {x}, {y}")
        if rounding:
            product = at.op(f"add {pairs} {product}, splat (i64 {rounding})")
        products.append(product)
    even = at.op(f"lshr {pairs} {products[0]}, {low}")
    high = at.op(f"and {pairs} {products[1]}, splat (i64 {-(1 << 32)})")
    both = at.op(f"or {pairs} {even}, {high}")
    out = Value(at.op(f"bitcast {pairs} {both} to {words}"), I32, lanes)
    return at.binary("add", out, at.splat(at.constant(plus, I32), lanes)) if plus else out
