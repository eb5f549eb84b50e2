"""Products on tensor cores: a `Mma` statement as `mma.sync` of PTX.

In: a `Mma` at a point of a kernel whose innermost 32 threads are a warp. Out: loads of the operands' fragments,
one instruction, stores of the four sums.
Invariant: a thread loads what the instruction wants of it, which is not what its own sums need: the warp shares.
`loop.mma.registers` says what.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing
from tilewright.codegen.values import Value, llvm_type, memory_type
from tilewright.core.dtypes import F16, F32, I8, I32, DType
from tilewright.core.index import Ix, coefficient, substitute
from tilewright.loop import mma
from tilewright.loop.ir import Load, Mma


def emit_mma(at: Addressing, s: Mma) -> None:
    """Emit a statement; its sums are in private scratch."""
    total = mma.sum_of(s)
    slot = at.slots[s.buffer]
    held = [at.address(slot, at.offset(slot, (*s.index, Ix(i)))) for i in range(mma.HELD)]
    sums = [at.load_vector(p, total, 1, None) for p in held]
    a = [
        _word(at, s.a, {s.row: row}, s.k, k)
        for row, k in mma.registers(s.lane, s.extent, s.a.dtype, mma.ROWS)
    ]
    b = [
        _word(at, s.b, {s.col: col}, s.k, k)
        for col, k in mma.registers(s.lane, s.extent, s.b.dtype, mma.COLS)
    ]
    name = f"llvm.nvvm.mma.m16n8k{s.extent}.row.col.{_suffix(s)}"
    kind = llvm_type(total, 1)
    result = "{" + ", ".join([kind] * mma.HELD) + "}"
    arguments = [(v.type, v.ssa) for v in (*a, *b, *sums)]
    at.declare(f"declare {result} @{name}({', '.join(t for t, _ in arguments)})")
    out = at.op(f"call {result} @{name}({', '.join(f'{t} {v}' for t, v in arguments)})")
    for i, ptr in enumerate(held):
        part = at.op(f"extractvalue {result} {out}, {i}")
        at.store_vector(ptr, Value(part, total, 1), None)


def _suffix(s: Mma) -> str:
    """How LLVM names the types of an instruction."""
    if s.a.dtype is F16:
        return "f32.f32"
    if s.a.dtype is F32:
        return "tf32"
    kinds = ["s8" if x.dtype is I8 else "u8" for x in (s.a, s.b)]
    return kinds[0] if kinds[0] == kinds[1] else ".".join(kinds)


def _word(at: Addressing, e: Load, place: dict[str, Ix], var: str, k: Ix) -> Value:
    """The register with the elements of `e` from `k` on: by one load where they are neighbours."""
    slot = at.slots[e.buffer]
    index = tuple(substitute(i, place) for i in e.index)
    offset = at.offset(slot, index)
    first = at.offset(slot, tuple(substitute(i, {var: k}) for i in index))
    per = mma.WORD // e.dtype.bytes
    if e.dtype is F32:
        one = at.load_vector(at.address(slot, first), F32, 1, None)
        at.declare("declare i32 @llvm.nvvm.f2tf32.rna(float)")
        return _register(at.op(f"call i32 @llvm.nvvm.f2tf32.rna(float {one.ssa})"), e.dtype)
    aligned = (at.alignment(slot, first) or e.dtype.bytes) % mma.WORD == 0
    if coefficient(offset, var) == 1 and aligned:
        kind = "<2 x half>" if e.dtype is F16 else "i32"
        word = at.op(f"load {kind}, ptr {at.address(slot, first)}, align {mma.WORD}")
        return _register(word, e.dtype)
    wide = f"<{per} x {memory_type(e.dtype)}>"
    word = "poison"
    for j in range(per):
        other = at.offset(slot, tuple(substitute(i, {var: k + j}) for i in index))
        one = at.load_vector(at.address(slot, other), e.dtype, 1, None)
        word = at.op(f"insertelement {wide} {word}, {one.type} {one.ssa}, i32 {j}")
    if e.dtype is not F16:
        word = at.op(f"bitcast {wide} {word} to i32")
    return _register(word, e.dtype)


def _register(ssa: str, operand: DType) -> Value:
    """A register of an operand: halves as a pair, everything else as a word."""
    return Value(ssa, F16, 2) if operand is F16 else Value(ssa, I32, 1)
