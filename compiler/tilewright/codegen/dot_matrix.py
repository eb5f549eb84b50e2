"""Products of two small matrices of bytes on AArch64 (Armv8.6 I8MM): `smmla`, `ummla`, `usmmla`.

In: a `Dot` of eight products (or a multiple) in a vector loop of four lanes, of which lane q multiplies row q // 2
of one operand by row q % 2 of the other. Out: the four sums, or None where lanes are not arranged so.
Invariant: the instruction adds to element [i][j] of a 2 x 2 matrix of i32 the sum of products of bytes of row i
of its first and row j of its second operand, wrapping as `loop.interp` does (Arm ARM, "SMMLA (vector)").

So a tile of pixels and channels is a set of such squares: no value moves between lanes inside the sum, and each
byte that was loaded is used for two rows, where `sdot` uses it for one.
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing
from tilewright.codegen.byte_runs import ByteRun
from tilewright.codegen.values import Value
from tilewright.core.dtypes import I8, I32, U8
from tilewright.core.index import Ix
from tilewright.loop.ir import Dot

#: Products per sum and instruction, lanes of the result.
DEPTH, SQUARE = 8, 4
#: Types of the bytes, rows first -> instruction. The mixed one takes unsigned rows only.
_NAMES = {(I8, I8): "smmla", (U8, U8): "ummla", (U8, I8): "usmmla"}


def matrix_product(at: Addressing, e: Dot, a: ByteRun, b: ByteRun, c: Value) -> Value | None:
    """`e` as products of two rows of `a` and two rows of `b`, if its lanes form such a square."""
    vec = at.vector
    name = _NAMES.get((a.dtype, b.dtype))
    if vec is None or name is None or e.extent % DEPTH:
        return None
    if vec.lanes != SQUARE or vec.active != SQUARE:
        return None
    if at.lane_names(a.offset) | at.lane_names(b.offset) != {vec.var}:
        return None
    firsts = [at.lane_offset(a.offset, q) for q in range(SQUARE)]
    seconds = [at.lane_offset(b.offset, q) for q in range(SQUARE)]
    if firsts[0] != firsts[1] or firsts[2] != firsts[3]:
        return None
    if seconds[0] != seconds[2] or seconds[1] != seconds[3]:
        return None
    call = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
    at.declare(f"declare <4 x i32> @{call}(<4 x i32>, <16 x i8>, <16 x i8>)")
    total = at.splat(c, SQUARE).ssa
    for k in range(0, e.extent, DEPTH):
        x = _two_rows(at, a.buffer, firsts[0] + k, firsts[2] + k)
        y = _two_rows(at, b.buffer, seconds[0] + k, seconds[1] + k)
        total = at.op(f"call <4 x i32> @{call}(<4 x i32> {total}, <16 x i8> {x}, <16 x i8> {y})")
    return Value(total, I32, SQUARE)


def _two_rows(at: Addressing, buffer: str, first: Ix, second: Ix) -> str:
    """Eight bytes from each of two places in one register."""
    slot = at.slots[buffer]
    if second - first == Ix(DEPTH):
        return at.op(f"load <16 x i8>, ptr {at.address(slot, first)}, align 1")
    low, high = (at.op(f"load i64, ptr {at.address(slot, o)}, align 1") for o in (first, second))
    pair = at.op(f"insertelement <2 x i64> poison, i64 {low}, i32 0")
    pair = at.op(f"insertelement <2 x i64> {pair}, i64 {high}, i32 1")
    return at.op(f"bitcast <2 x i64> {pair} to <16 x i8>")
