"""Integer dot products: which instruction of the target computes a `Dot`, if any.

In: a `Dot` at a point of a kernel. Out: its value, or None where the caller has to spell it out.
Invariant: the result is the wrapping sum that `loop.interp` defines; an instruction is only chosen where
it computes exactly that.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing
from tilewright.codegen.values import Value
from tilewright.core.dtypes import I8, I32, U8, DType
from tilewright.core.index import Ix, coefficient, substitute
from tilewright.loop.ir import Cast, Dot, Expr, Load


def emit_dot(at: Addressing, e: Dot, c: Value, instructions: tuple[str, ...]) -> Value | None:
    """`e` by one of the target's dot-product `instructions`; `c` is the value of `e.c`."""
    a, b = _bytes(at, e.a, e.var), _bytes(at, e.b, e.var)
    if e.dtype is not I32 or a is None or b is None:
        return None
    if at.vector is None and "smlad" in instructions:
        return _smlad(at, e, a, b, c)
    return None


class _Run:
    """Consecutive bytes of a buffer: address form of the first, and how they widen."""

    def __init__(self, buffer: str, offset: Ix, dtype: DType) -> None:
        self.buffer, self.offset, self.dtype = buffer, offset, dtype


def _bytes(at: Addressing, e: Expr, var: str) -> _Run | None:
    """An operand that reads consecutive bytes as `var` counts up; None if it is anything else."""
    match e:
        case Cast(Load(buffer, index, dtype), to) if to is I32 and dtype in (I8, U8):
            offset = at.offset(at.slots[buffer], index)
            if coefficient(offset, var) == 1:
                return _Run(buffer, substitute(offset, {var: Ix(0)}), dtype)
    return None


# ---------------------------------------------------------------- Armv7E-M: two 16-bit products


def _smlad(at: Addressing, e: Dot, a: _Run, b: _Run, c: Value) -> Value:
    """Four products from two words: even and odd bytes are widened to pairs of 16 bits.

    `sxtb16` takes bytes 0 and 2 of a word, or 1 and 3 after a rotation that the instruction does by
    itself; both operands are cut in the same way, so the products meet.
    """
    total = c.ssa
    at.declare("declare i32 @llvm.arm.smlad(i32, i32, i32)")
    for start in range(0, e.extent - 3, 4):
        x, y = (_word(at, r, start) for r in (a, b))
        for odd in (False, True):
            xs, ys = _pairs(at, a, x, odd), _pairs(at, b, y, odd)
            total = at.op(f"call i32 @llvm.arm.smlad(i32 {xs}, i32 {ys}, i32 {total})")
    for k in range(e.extent - e.extent % 4, e.extent):
        x, y = (_widened(at, r, k) for r in (a, b))
        total = at.op(f"add i32 {at.op(f'mul i32 {x}, {y}')}, {total}")
    return Value(total, I32, 1)


def _word(at: Addressing, run: _Run, start: int) -> str:
    """Four bytes as one word. M-profile cores load words from any address."""
    ptr = at.address(at.slots[run.buffer], run.offset + start)
    return at.op(f"load i32, ptr {ptr}, align 1")


def _pairs(at: Addressing, run: _Run, word: str, odd: bool) -> str:
    name = "llvm.arm.sxtb16" if run.dtype is I8 else "llvm.arm.uxtb16"
    at.declare(f"declare i32 @{name}(i32)")
    if odd:
        at.declare("declare i32 @llvm.fshl.i32(i32, i32, i32)")
        word = at.op(f"call i32 @llvm.fshl.i32(i32 {word}, i32 {word}, i32 24)")
    return at.op(f"call i32 @{name}(i32 {word})")


def _widened(at: Addressing, run: _Run, k: int) -> str:
    ptr = at.address(at.slots[run.buffer], run.offset + k)
    byte = at.op(f"load i8, ptr {ptr}, align 1")
    return at.op(f"{'sext' if run.dtype is I8 else 'zext'} i8 {byte} to i32")
