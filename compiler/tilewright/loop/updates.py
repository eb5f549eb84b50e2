"""Statements that add to an element: `acc[i] = acc[i] (+|*|min|max) e`, or `acc[i] = a*b + acc[i]`.

In: a store. Out: the operator and what it combines the element with; the operator's identity.
Invariant: such updates of an element may be grouped in any way; for floats that moves roundings.
"""

from __future__ import annotations

import math

from tilewright.core.dtypes import DType
from tilewright.loop.ir import Binary, BinaryOp, Const, Expr, Fma, Load, Store
from tilewright.loop.rewrite import loads

_ASSOCIATIVE = frozenset({"add", "mul", "min", "max"})


def update(s: Store) -> tuple[BinaryOp, tuple[Expr, ...]] | None:
    """(operator, the operands besides the element itself) of an update; None for any other store."""
    own = s.buffer, s.index
    match s.value:
        case Fma(a, b, Load(buffer, index, _)) if (buffer, index) == own:
            op: BinaryOp = "add"
            rest: tuple[Expr, ...] = (a, b)
        case Binary(found, Load(buffer, index, _), e) if (buffer, index) == own:
            op, rest = found, (e,)
        case Binary(found, e, Load(buffer, index, _)) if (buffer, index) == own:
            op, rest = found, (e,)
        case _:
            return None
    if op not in _ASSOCIATIVE or any(x.buffer == s.buffer for e in rest for x in loads(e)):
        return None
    return op, rest


def identity(op: BinaryOp, dtype: DType) -> Const:
    """What `op` combines with any value to that value."""
    if op in ("add", "mul"):
        return Const(0 if op == "add" else 1, dtype)
    if dtype.is_float:
        return Const(math.inf if op == "min" else -math.inf, dtype)
    signed = dtype.kind == "int"
    lo, hi = (
        (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1)
        if signed
        else (0, (1 << dtype.bits) - 1)
    )
    return Const(hi if op == "min" else lo, dtype)
