"""Vector conversions and products that LLVM makes lane by lane, or by detours, on x86-64.

In: vectors of 4 lanes and more. Out: the values that `loop.interp` defines for them.
Invariant: the same results as the general code, in instructions for whole vectors.

A saturating conversion becomes a comparison and two bounds around `vcvttps2dq`. The high half of a product of
two i32 (what requantisation is made of) comes of `vpmuldq`, which multiplies the even lanes of its operands:
once as they are and once shifted down, where widening all lanes to 64 bits costs five shuffles. A product of
numbers of 16 bits in lanes of 32 (bytes of a depthwise convolution) is `vpmaddwd`, with zeros above one of the two:
one step where `vpmulld` takes two. (LLVM takes `vpdpwssd` apart again, which it finds too slow in a chain.)
Weights of four bits become floats by a lookup in a register (`vpermps`), less their zero point.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tilewright.codegen.addressing import Addressing
from tilewright.codegen.values import Builder, Value, llvm_type
from tilewright.core.dtypes import BOOL, F32, F64, I8, I16, I32, I64, U8, DType, limits
from tilewright.loop.ir import Binary, Cast, Const, Expr, Fma


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


_MADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}


def emit_fma(at: Addressing, e: Fma, a: Value, b: Value, c: Value) -> Value | None:
    """a * b + c in i32 where both were 8 or 16 bits wide; None where this is no such thing."""
    kinds = [x.a.dtype if isinstance(x, Cast) else None for x in (e.a, e.b)]
    lanes = c.lanes
    if c.dtype is not I32 or lanes not in _MADD or any(k not in (I8, U8, I16) for k in kinds):
        return None
    words, pairs = llvm_type(I32, lanes), llvm_type(I16, 2 * lanes)
    left, right = a.ssa, b.ssa
    if U8 not in kinds:  # bytes without a sign have zeros above them
        right = at.op(f"and {words} {right}, splat (i32 65535)")
    x, y = (at.op(f"bitcast {words} {v} to {pairs}") for v in (left, right))
    name = f"llvm.x86.{_MADD[lanes]}"
    at.declare(f"declare {words} @{name}({pairs}, {pairs})")
    product = at.op(f"call {words} @{name}({pairs} {x}, {pairs} {y})")
    return Value(at.op(f"add {words} {product}, {c.ssa}"), I32, lanes)


class Lookup(NamedTuple):
    """Floats that only the last four bits of `which` decide: `table[which % 16]`."""

    which: Expr
    table: tuple[float, ...]


def lookup(e: Expr) -> Lookup | None:
    """`e` as a lookup, if it is a few bits as a float, or that less a constant (weights of four bits and less)."""
    match e:
        case Binary("sub", inner, Const(number)):
            found = lookup(inner)
            if found is not None:
                less = np.array(found.table, np.float32) - np.float32(number)
                return found._replace(table=tuple(map(float, less)))
        case Cast(Binary("and", x, Const(mask))) if e.dtype is F32 and mask in (1, 3, 7, 15):
            return (
                Lookup(x, tuple(float(i & int(mask)) for i in range(16)))
                if x.dtype is I32
                else None
            )
        case Cast(Binary("shr", Cast(x) as wide, Const(places)) as few) if (
            e.dtype is F32 and wide.dtype is I32 and x.dtype is U8 and places >= 4
        ):
            return Lookup(few, tuple(map(float, range(16))))
    return None


def emit_lookup(at: Addressing, table: tuple[float, ...], index: Value) -> Value | None:
    """`vpermps` of 16 lanes, which takes the last four bits of every index; None for other vectors."""
    if index.lanes != len(table):
        return None
    floats, words = llvm_type(F32, 16), llvm_type(I32, 16)
    name = "llvm.x86.avx512.permvar.sf.512"
    at.declare(f"declare {floats} @{name}({floats}, {words})")
    entries = ", ".join(f"float {at.constant(v, F32).ssa}" for v in table)
    out = at.op(f"call {floats} @{name}({floats} <{entries}>, {words} {index.ssa})")
    return Value(out, F32, 16)


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
