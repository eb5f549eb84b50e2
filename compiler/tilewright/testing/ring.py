"""A kernel over the ring of 32-bit integers: the same data flow, without rounding.

In: a kernel over floats. Out: the kernel with unsigned integers in their place, and functions that no ring has
(exponentials, quotients) replaced by fixed linear ones, which keep operands apart.
Invariant: whatever a schedule may do to the kernel leaves the new one's results bit for bit equal, so a wrong
operand, a lost iteration or a race shows as a difference, whatever the data (after Ginzburg et al.'s idea of
testing kernels in modular arithmetic, which Triton calls FpSan).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

from tilewright.core.dtypes import U32, DType
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Buffer,
    Cast,
    Const,
    Expr,
    FromIndex,
    Kernel,
    Load,
    Mma,
    Ref,
    Stmt,
    Unary,
)
from tilewright.loop.rewrite import map_block, map_children

_WHOLE = (1 << 32) - 1
_RING = frozenset({"add", "sub", "mul", "min", "max", "lt", "le", "gt", "ge", "eq", "ne"})


def ring(kernel: Kernel) -> Kernel:
    """The kernel in integers; raises `ScheduleError` where it looks into the bits of floats."""
    memo: dict[int, Expr] = {}
    keep: list[Expr] = []  # ids are good as long as objects live

    def expr(e: Expr) -> Expr:
        got = memo.get(id(e))
        if got is None:
            got = memo[id(e)] = _convert(e, expr)
            keep.append(e)
        return got

    def stmt(s: Stmt) -> Stmt:
        if isinstance(s, Mma):
            raise ScheduleError("tensor cores have no ring form")
        return Alloc(_buffer(s.buffer)) if isinstance(s, Alloc) else s

    return replace(
        kernel,
        params=tuple(replace(p, buffer=_buffer(p.buffer)) for p in kernel.params),
        body=map_block(kernel.body, expr=expr, stmt=stmt),
    )


def _buffer(b: Buffer) -> Buffer:
    return replace(b, dtype=_type(b.dtype))


def _type(d: DType) -> DType:
    return U32 if d.is_float else d


def _convert(e: Expr, sub: object) -> Expr:
    assert callable(sub)
    match e:
        case Const(value, dtype) if dtype.is_float:
            return Const(_number(float(value)), U32)
        case FromIndex(index, dtype):
            return FromIndex(index, _type(dtype))
        case Ref(name, dtype):
            return Ref(name, _type(dtype))
        case Load(buffer, index, dtype):
            return Load(buffer, index, _type(dtype))
        case Bitcast(a, dtype):
            if a.dtype.is_float != dtype.is_float:
                raise ScheduleError("the kernel looks into the bits of floats")
            return sub(a) if dtype.is_float else Bitcast(sub(a), dtype)
        case Cast(a, dtype):
            x, to = sub(a), _type(dtype)
            return x if x.dtype is to else Cast(x, to)
        case Unary("isnan", a) if a.dtype.is_float:
            return Binary("eq", sub(a), Const(_salt("nan"), U32))
        case Unary(op, a) if a.dtype.is_float:
            return _linear(op, sub(a), None)
        case Binary(op, a, b) if a.dtype.is_float and op not in _RING:
            return _linear(op, sub(a), sub(b))
        case _:
            return map_children(e, sub)


def _linear(op: str, a: Expr, b: Expr | None) -> Expr:
    """A function of the ring in place of `op`: odd factors lose nothing."""
    x = Binary("mul", a, Const(_salt(op) | 1, U32))
    if b is not None:
        x = Binary("add", x, Binary("mul", b, Const(_salt(op + "'") | 1, U32)))
    return Binary("add", x, Const(_salt(op + "+"), U32))


def _number(value: float) -> int:
    """A literal: small whole numbers are themselves, bounds stay bounds, others are some number."""
    if math.isinf(value):
        return _WHOLE if value > 0 else 0
    if value == int(value if math.isfinite(value) else 0) and abs(value) < 1 << 20:
        return int(value) & _WHOLE
    return _salt(repr(value))


def _salt(text: str) -> int:
    return zlib.crc32(text.encode())
