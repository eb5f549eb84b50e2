"""widen(buffer, dtype): a sum is kept in a wider float type and rounded where it is used.

    alloc t: f16;  t = 0;  for k: t = fma(a[k], b[k], t);  y = t
      ->
    alloc t: f32;  t = 0;  for k: t = fma(cast(a[k]), cast(b[k]), t);  y = cast(t)

Results differ only by what is no longer rounded in between.
Legal iff the buffer is float scratch and `dtype` a wider float.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.dtypes import ALL, DType
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Fma,
    Kernel,
    Load,
    Mma,
    Stmt,
    Store,
)
from tilewright.loop.rewrite import map_block, map_loads, walk


def widen(kernel: Kernel, buffer: str, dtype: str) -> Kernel:
    """Keep scratch `buffer` in type `dtype`."""
    found = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)]
    old = next((b for b in found if b.name == buffer), None)
    new = ALL.get(dtype)
    if old is None or not old.dtype.is_float:
        raise ScheduleError(f"`{buffer}` is not scratch of floats")
    if new is None or not new.is_float or new.bits <= old.dtype.bits:
        raise ScheduleError(f"`{dtype}` is no float type wider than {old.dtype}")
    if any(isinstance(s, Mma) for s in walk(kernel.body)):
        raise ScheduleError("tensor cores are used already: do this before")
    narrow = old.dtype

    def load(e: Load) -> Expr:
        return Cast(Load(buffer, e.index, new), narrow) if e.buffer == buffer else e

    def rewrite(s: Stmt) -> Stmt:
        match s:
            case Alloc(Buffer(name=name)) if name == buffer:
                return Alloc(replace(s.buffer, dtype=new))
            case Store(name, index, value) if name == buffer:
                return Store(name, index, _wide(value, new))
            case _:
                return s

    body = map_block(kernel.body, expr=lambda e: map_loads(e, load), stmt=rewrite)
    return replace(kernel, body=body)


def _wide(e: Expr, dtype: DType) -> Expr:
    """The value of `e` before it was rounded to a narrower type."""
    match e:
        case Const(value, _):
            return Const(value, dtype)
        case Fma(a, b, c):
            return Fma(_wide(a, dtype), _wide(b, dtype), _wide(c, dtype))
        case Binary("add" | "sub" | "mul" as op, a, b):
            return Binary(op, _wide(a, dtype), _wide(b, dtype))
        case Cast(Load(_, _, kept) as inner, _) if kept is dtype:
            return inner
        case _:
            return Cast(e, dtype)
