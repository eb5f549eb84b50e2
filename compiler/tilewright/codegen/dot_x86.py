"""Dot products of four bytes per lane on x86-64.

In: the word of four bytes that all lanes share, and four bytes of every lane. Out: the sums.
Invariant: sums wrap as `loop.interp` defines them; nothing saturates on the way (`vpmaddubsw`, which adds
two products in 16 bits, is never used).

`vpdpbusd` (AVX512-VNNI) multiplies unsigned by signed bytes. Two signed ones: x * w = (x + 128) * w - 128 * w,
where x + 128 flips a bit and the sum of 128 * w depends on the lane only, so that all rows of a register tile
share it. Without VNNI, or for two unsigned ones, even and odd bytes are widened to 16 bits for `vpmaddwd`,
whose two products fit into 32 bits. (Intel, "Intrinsics Guide".)
"""

from __future__ import annotations

from tilewright.codegen.addressing import Addressing
from tilewright.core.dtypes import I8, U8, DType

_MADD = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
#: 0x80808080: flipped, these bits make signed bytes unsigned ones, greater by 128.
TOP_BITS = -2139062144


def dot_bytes(
    at: Addressing,
    total: str,
    shared: str,
    own: str,
    kinds: tuple[DType, DType],
    lanes: int,
    vnni: bool,
) -> str:
    """total + shared . own, all <lanes x i32>; `kinds`: element types of the bytes in shared and own."""
    if vnni and kinds != (U8, U8):
        return _vnni(at, total, shared, own, kinds, lanes)
    name = f"llvm.x86.{_MADD[lanes]}"
    words, pairs = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
    at.declare(f"declare {words} @{name}({pairs}, {pairs})")
    halves = [_halves(at, v, k, lanes) for v, k in zip((shared, own), kinds, strict=True)]
    for x, y in zip(*halves, strict=True):
        products = at.op(f"call {words} @{name}({pairs} {x}, {pairs} {y})")
        total = at.op(f"add {words} {total}, {products}")
    return total


def _vnni(
    at: Addressing, total: str, shared: str, own: str, kinds: tuple[DType, DType], lanes: int
) -> str:
    words, run = f"<{lanes} x i32>", f"<{4 * lanes} x i8>"
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    at.declare(f"declare {words} @{name}({words}, {run}, {run})")

    def add(to: str, unsigned: str, signed: str) -> str:
        u, s = (at.op(f"bitcast {words} {v} to {run}") for v in (unsigned, signed))
        return at.op(f"call {words} @{name}({words} {to}, {run} {u}, {run} {s})")

    if kinds == (I8, U8):
        return add(total, own, shared)
    if kinds == (U8, I8):
        return add(total, shared, own)
    flips = f"<{', '.join([f'i32 {TOP_BITS}'] * lanes)}>"
    more = add("zeroinitializer", flips, own)
    raised = at.op(f"xor {words} {shared}, {flips}")
    return at.op(f"sub {words} {add(total, raised, own)}, {more}")


def _halves(at: Addressing, words: str, kind: DType, lanes: int) -> tuple[str, str]:
    """Bytes 0 and 2 of every word, and bytes 1 and 3, as pairs of 16 bits."""
    pairs = f"<{2 * lanes} x i16>"
    v = at.op(f"bitcast <{lanes} x i32> {words} to {pairs}")
    eight = f"<{', '.join(['i16 8'] * (2 * lanes))}>"
    shift = "ashr" if kind is I8 else "lshr"
    even = at.op(f"{shift} {pairs} {at.op(f'shl {pairs} {v}, {eight}')}, {eight}")
    return even, at.op(f"{shift} {pairs} {v}, {eight}")
