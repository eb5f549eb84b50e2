"""lanes(acc, var, width): keep `width` partial results of a reduction, combine them at the end.

    for j in N: t = t + x[j]
      ->
    alloc p[W];  vector l in W: p[l] = 0
    for jo in N / W: vector l in W: p[l] = p[l] + x[jo*W + l]
    vector l in N % W: p[l] = p[l] + x[N - N % W + l]
    combine p pairwise (tree), then t = t + p[0]

This changes the order of a sum, so it is a schedule's explicit choice (rounding depth gets smaller).
Legal iff every update of `acc` in the loop is `acc = acc (+|*|min|max) e` or `acc = a*b + acc`, all with
one operator, nothing else in the loop reads `acc` (a running sum has no partial ones) and nothing else carries
a dependence.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.dtypes import DType
from tilewright.core.index import Ix, ix, simplify
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Expr,
    For,
    Kernel,
    Load,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import (
    accesses,
    map_block,
    map_loads,
    simplify_kernel,
    substitute_block,
)
from tilewright.loop.updates import identity, update
from tilewright.schedule.legality import carried, require_loop


def lanes(kernel: Kernel, acc: str, var: str, width: int) -> Kernel:
    """Give the reduction of scalar scratch `acc` over loop `var` `width` (a power of two) lanes."""
    require_loop(kernel, var)
    if width < 2 or width & (width - 1):
        raise ScheduleError(f"width {width} must be a power of two")

    def rewrite(s: Stmt) -> Stmt | tuple[Stmt, ...]:
        return _lanes(s, acc, width) if isinstance(s, For) and s.var == var else s

    return simplify_kernel(replace(kernel, body=map_block(kernel.body, stmt=rewrite)))


def _lanes(loop: For, acc: str, width: int) -> tuple[Stmt, ...]:
    if any(isinstance(s, For) for s in loop.body):
        raise ScheduleError(f"`{loop.var}` is not an innermost loop")
    op, dtype = associative(loop.body, acc)
    part, lane = f"{acc}_lanes_{loop.var}", f"{loop.var}_lane"
    buffer = dense(part, dtype, (width,), "register")

    def load(e: Load) -> Expr:
        return Load(part, (ix(lane),), dtype) if e.buffer == acc else e

    def store(s: Stmt) -> Stmt:
        return Store(part, (ix(lane),), s.value) if isinstance(s, Store) and s.buffer == acc else s

    body = map_block(loop.body, expr=lambda e: map_loads(e, load), stmt=store)
    others = tuple(s for s in body if not (isinstance(s, Store) and s.buffer == part))
    reason = carried(replace(loop, body=others))
    if reason and any(isinstance(s, Store) and s.buffer != part for s in body):
        raise ScheduleError(reason)
    n = loop.extent
    block, rest = f"{loop.var}_block", n % width

    def piece(start: Ix, count: Ix) -> Stmt:
        at = substitute_block(body, {loop.var: simplify(start + ix(lane), {})})
        return For(lane, count, at, "vector")

    out: list[Stmt] = [
        Alloc(buffer),
        For(lane, Ix(width), (Store(part, (ix(lane),), identity(op, dtype)),), "vector"),
    ]
    if n // width != Ix(0):
        out.append(For(block, n // width, (piece(ix(block) * width, Ix(width)),)))
    if rest != Ix(0):
        out.append(piece(n // width * width, rest))
    half = width // 2
    while half:
        pair = Binary(op, Load(part, (ix(lane),), dtype), Load(part, (ix(lane) + half,), dtype))
        out.append(For(lane, Ix(half), (Store(part, (ix(lane),), pair),), "vector"))
        half //= 2
    total = Binary(op, Load(acc, (), dtype), Load(part, (Ix(0),), dtype))
    out.append(Store(acc, (), total))
    return tuple(out)


def associative(body: Block, acc: str) -> tuple[BinaryOp, DType]:
    """The one associative operator of all updates of scalar `acc`."""
    found: set[BinaryOp] = set()
    dtype: DType | None = None
    for s in body:
        if not (isinstance(s, Store) and s.buffer == acc):
            if any(name == acc for name, _, _ in accesses((s,))):
                raise ScheduleError(f"`{acc}` is used by more than its own updates")
            continue
        made = update(s)
        if made is None or s.index:
            raise ScheduleError(f"`{acc}` is not updated by one associative operator")
        found.add(made[0])
        dtype = s.value.dtype
    if len(found) != 1 or dtype is None:
        raise ScheduleError(f"`{acc}` is not updated by one associative operator")
    return found.pop(), dtype
