"""fuse(outer, inner, name): two perfectly nested loops become one.

    for i in N: for j in M: S(i, j)   ->   for f in N*M: S(f // M, f % M)

Legal iff `inner` is the only statement of `outer`, its extent is constant, both loops are serial and no
extent inside depends on them (its remainder could no longer be set apart); iterations
keep their order.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import ix, variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel, Stmt
from tilewright.loop.rewrite import map_block, simplify_kernel, substitute_block, walk
from tilewright.schedule.legality import require_fresh, require_loop, require_serial


def fuse(kernel: Kernel, outer: str, inner: str, name: str) -> Kernel:
    """Fuse every pair of loops `outer` / `inner`."""
    require_serial(kernel, outer)
    require_serial(kernel, inner)
    for f in require_loop(kernel, outer):
        if len(f.body) != 1 or not isinstance(f.body[0], For) or f.body[0].var != inner:
            raise ScheduleError(f"`{inner}` is not the only statement inside `{outer}`")
        if not f.body[0].extent.is_const:
            raise ScheduleError("the inner extent is not constant")
        for deep in walk(f.body):
            if isinstance(deep, For) and variables(deep.extent) & {outer, inner}:
                raise ScheduleError(f"the extent of `{deep.var}` depends on them")
    require_fresh(kernel, *(n for n in (name,) if n not in (outer, inner)))

    def rewrite(s: Stmt) -> Stmt:
        if not isinstance(s, For) or s.var != outer:
            return s
        deep = s.body[0]
        assert isinstance(deep, For)
        m = deep.extent.const
        body = substitute_block(deep.body, {outer: ix(name) // m, inner: ix(name) % m})
        return For(name, s.extent * m, body, s.kind)

    return simplify_kernel(replace(kernel, body=map_block(kernel.body, stmt=rewrite)))
