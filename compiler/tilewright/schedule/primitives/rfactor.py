"""rfactor(acc, outer, var): as many partial results of a reduction as an inner loop has iterations.

    for ro in N: for ri in W: t = t + x[ro, ri]
      ->
    alloc p[W];  for ri in W: p[ri] = 0
    for ro in N: for ri in W: p[ri] = p[ri] + x[ro, ri]
    for ri in W: t = t + p[ri]

Where the vectors of a reduction run across it (sums of columns), one chain of additions per column waits for
every one of them and gathers their roundings; several do not. As in Halide and TVM; `lanes` is for vectors along a
reduction. This changes the order of a sum, so it is a schedule's explicit choice.
Legal iff the loops from `outer` to `var` are perfectly nested and serial, `var` has a constant extent, and the body
is nothing but updates of `acc` by one associative operator.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Binary, Block, Expr, For, Kernel, Load, Stmt, Store, dense
from tilewright.loop.rewrite import map_block, map_loads, walk
from tilewright.loop.updates import identity
from tilewright.schedule.legality import require_loop, require_serial
from tilewright.schedule.primitives.lanes import associative


def rfactor(kernel: Kernel, acc: str, outer: str, var: str) -> Kernel:
    """Give the reduction of scalar scratch `acc` over loops `outer` .. `var` a partial result per iteration of the
    inner one."""
    require_serial(kernel, outer)
    require_serial(kernel, var)
    part = f"{acc}_{var}"
    if any(isinstance(s, Alloc) and s.buffer.name == part for s in walk(kernel.body)):
        raise ScheduleError(f"`{acc}` has partial results per `{var}` already")
    if len(require_loop(kernel, outer)) > 1:
        raise ScheduleError(f"there are several loops `{outer}`: do this before `stage`")

    def rewrite(s: Stmt) -> Stmt | tuple[Stmt, ...]:
        return _factored(s, acc, var, part) if isinstance(s, For) and s.var == outer else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))


def _factored(outer: For, acc: str, var: str, part: str) -> tuple[Stmt, ...]:
    nest = [outer]
    while nest[-1].var != var:
        inner = nest[-1].body[0] if len(nest[-1].body) == 1 else None
        if not isinstance(inner, For) or inner.kind != "serial":
            raise ScheduleError(f"`{var}` is not perfectly nested in `{outer.var}`")
        nest.append(inner)
    last = nest[-1]
    if not last.extent.is_const:
        raise ScheduleError(f"`{var}` has {last.extent} iterations, no constant number")
    if not all(isinstance(s, Store) and s.buffer == acc for s in last.body):
        raise ScheduleError(f"`{var}` does more than update `{acc}`")
    op, dtype = associative(last.body, acc)
    mine = Load(part, (ix(var),), dtype)

    def load(e: Load) -> Expr:
        return mine if e.buffer == acc else e

    def store(s: Stmt) -> Stmt:
        return Store(part, mine.index, s.value) if isinstance(s, Store) else s

    body: Block = map_block(last.body, expr=lambda e: map_loads(e, load), stmt=store)
    for f in reversed(nest):
        body = (replace(f, body=body),)
    total = Store(acc, (), Binary(op, Load(acc, (), dtype), mine))
    return (
        Alloc(dense(part, dtype, (last.extent.const,), "register")),
        For(var, last.extent, (Store(part, mine.index, identity(op, dtype)),)),
        *body,
        For(var, last.extent, (total,)),
    )
