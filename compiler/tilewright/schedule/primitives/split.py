"""split(var, factor, outer, inner): one loop becomes two.

    for i in N: S(i)   ->   for io in ceil(N / f): for ii in min(f, N - io*f): S(io*f + ii)

Legal for every serial loop (iterations keep their order). The minimum vanishes where f divides N; elsewhere
`loop.passes.specialize_tails` turns the last iteration into code of its own.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import Ix, imin, ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel, Stmt
from tilewright.loop.rewrite import map_block, simplify_kernel, substitute_block
from tilewright.schedule.legality import require_fresh, require_serial


def split(kernel: Kernel, var: str, factor: int, outer: str, inner: str) -> Kernel:
    """Split every loop called `var` by `factor` (>= 1)."""
    require_serial(kernel, var)
    require_fresh(kernel, *(n for n in (outer, inner) if n != var))
    if factor < 1:
        raise ScheduleError(f"factor {factor} must be at least 1")

    def rewrite(s: Stmt) -> Stmt:
        if not isinstance(s, For) or s.var != var:
            return s
        n = s.extent
        body = substitute_block(s.body, {var: ix(outer) * factor + ix(inner)})
        if n % factor == Ix(0):
            size, count = Ix(factor), n // factor
        else:
            size, count = imin(factor, n - ix(outer) * factor), (n + (factor - 1)) // factor
        return For(outer, count, (For(inner, size, body),), s.kind)

    return simplify_kernel(replace(kernel, body=map_block(kernel.body, stmt=rewrite)))
