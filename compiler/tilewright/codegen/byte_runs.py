"""Operands of dot products that are bytes side by side in memory.

In: an operand of a `Dot` at a point of a kernel. Out: where its bytes begin and how they widen, or None.
Invariant: a run counts up with the variable of the sum, one byte per product.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.codegen.addressing import Addressing
from tilewright.core.dtypes import I8, I32, U8, DType
from tilewright.core.index import Ix, coefficient, substitute
from tilewright.loop.ir import Expr
from tilewright.loop.raised import shared_byte


@dataclass(frozen=True, slots=True)
class ByteRun:
    """Consecutive bytes of a buffer: address form of the first, and how they widen."""

    buffer: str
    offset: Ix
    dtype: DType
    raised: bool


def byte_run(at: Addressing, e: Expr, var: str) -> ByteRun | None:
    """An operand that reads consecutive bytes as `var` counts up; None if it is anything else."""
    found = shared_byte(e)
    if found is None or e.dtype is not I32 or found[0].dtype not in (I8, U8):
        return None
    load, raised = found
    offset = at.offset(at.slots[load.buffer], load.index)
    if coefficient(offset, var) != 1:
        return None
    return ByteRun(load.buffer, substitute(offset, {var: Ix(0)}), load.dtype, raised)
