"""Whole numbers of floats by one addition, on every target alike.

In: f32 expressions below 2^22 in magnitude. Out: i32 expressions, rounded, ties to even.
Invariant: adding 1.5 * 2^23 leaves steps of 1, so the sum's last bits are the whole number.
"""

from __future__ import annotations

from tilewright.core.dtypes import F32, I32
from tilewright.loop.builder import add, const, sub
from tilewright.loop.ir import Bitcast, Expr

#: 1.5 * 2^23: a float of this size has steps of 1. Its bits.
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000


def whole(value: Expr, plus: int = 0) -> Expr:
    """round(value) + plus."""
    return sub(Bitcast(add(value, const(_MAGIC, F32)), I32), const(_MAGIC_BITS - plus, I32))
