"""Tensor cores as `Mma` statements see them: shapes, types, who holds what.

In: lanes of a warp and numbers of held elements. Out: rows and columns of the tile.
Invariant: this is the layout of `mma.sync.m16n8k*` of PTX, so that code generation copies nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import F16, F32, I8, I32, U8, DType
from tilewright.core.index import IntLike, Ix, ix
from tilewright.errors import IRError
from tilewright.loop.ir import Mma

#: Rows and columns of a tile, threads that hold it, elements that each of them holds.
ROWS, COLS, LANES, HELD = 16, 8, 32, 4
#: Bytes of a register.
WORD = 4
#: Stands for the number of an element of which all four are touched (`rewrite.accesses`).
ANY_HELD = ix("held@mma")


def sum_type(a: DType, b: DType) -> DType | None:
    """The type in which products of `a` and `b` are added up; None if tensor cores have no such product."""
    if a in (I8, U8) and b in (I8, U8):
        return I32
    return F32 if a is b and a in (F16, F32) else None


def sum_of(s: Mma) -> DType:
    """The type of the sums of a statement; `IRError` if its operands do not fit."""
    found = sum_type(s.a.dtype, s.b.dtype)
    if found is None:
        raise IRError(f"no tensor core multiplies {s.a.dtype} and {s.b.dtype}")
    return found


def depths(operand: DType) -> tuple[int, ...]:
    """Lengths of the sum that one instruction covers, the longest first: 16 bytes of a row, or 32."""
    return (32 // operand.bytes, 16 // operand.bytes)


def kind(a: DType) -> str:
    """What `Gpu.mma` calls products of this type of operands."""
    return {F16: "f16", F32: "tf32"}.get(a, "i8")


def position(lane: IntLike, held: IntLike) -> tuple[Ix, Ix]:
    """(row, column) of an element of the tile by its lane and its number in it."""
    thread, i = ix(lane), ix(held)
    return thread // 4 + (i // 2) * 8, (thread % 4) * 2 + i % 2


def registers(lane: IntLike, extent: int, operand: DType, rows: int) -> list[tuple[Ix, Ix]]:
    """Where the registers of an operand of `rows` rows (`a`: 16) or columns (`b`: 8) begin: (row, k) of each.

    A register holds the 4 bytes of a row from there on; those of a row lie 16 bytes apart. First come all rows
    for the first half of the sum, then for the second.
    """
    thread, per = ix(lane), WORD // operand.bytes
    halves = range(extent * operand.bytes // 16)
    return [
        (thread // 4 + 8 * part, thread % 4 * per + half * 4 * per)
        for half in halves
        for part in range(rows // 8)
    ]


def ranges(s: Mma) -> dict[str, tuple[int, int]]:
    """Ranges of the variables that a statement binds."""
    return {s.row: (0, ROWS - 1), s.col: (0, COLS - 1), s.k: (0, s.extent - 1)}


def widened(v: Any) -> npt.NDArray[Any]:
    """Operands as they are multiplied: f64 in which products are exact, or i32 that wraps."""
    values = np.asarray(v)
    if values.dtype.kind != "f":
        return values.astype(np.int32)
    return (rounded_tf32(values) if values.dtype == np.float32 else values).astype(np.float64)


def rounded_tf32(v: Any) -> npt.NDArray[np.float32]:
    """f32 values rounded to 10 bits after the point, ties away from zero; NaN and infinity stay."""
    wide = np.asarray(v, np.float32)
    bits = wide.view(np.uint32)
    near = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(wide), near, wide)
