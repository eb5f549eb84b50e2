"""overlap(var, factor, outer, inner): tiles of exactly `factor` iterations, the last of which starts early.

    for i in N: y[i] = S(i)
      ->
    for io in ceil(N / f): for ii in f: t = min(io*f, N - f) + ii; if t >= io*f: y[t] = S(t)

What tiles have in common is computed twice and stored once. Nothing is read that was not read before, and
no extent varies: what tensor cores, threads and copies to shared memory want.
Legal iff the loop is serial with at least `factor` iterations that do not depend on each other and
use no scratch from outside.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from tilewright.core.dtypes import I32
from tilewright.core.index import Ix, imin, ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Binary, Const, For, FromIndex, If, Kernel, Stmt, Store
from tilewright.loop.rewrite import accesses, map_block, simplify_kernel, substitute_block, walk
from tilewright.schedule.legality import carried, local_buffers, require_fresh, require_serial


def overlap(kernel: Kernel, var: str, factor: int, outer: str, inner: str) -> Kernel:
    """Cut every loop called `var` into overlapping tiles."""
    require_serial(kernel, var)
    require_fresh(kernel, *(n for n in (outer, inner) if n != var))
    scratch = {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc)}

    def rewrite(s: Stmt) -> Stmt:
        if not isinstance(s, For) or s.var != var:
            return s
        if not s.extent.is_const or not 1 <= factor <= s.extent.const:
            raise ScheduleError(f"`{var}` has {s.extent} iterations, no tile of {factor}")
        reason = carried(s)
        if reason:
            raise ScheduleError(reason)
        own = local_buffers(s.body)
        foreign = {name for name, _, _ in accesses(s.body)} & scratch - own
        if foreign:
            raise ScheduleError(f"`{var}` uses the scratch `{min(foreign)}` of the code around it")
        return _tiled(s, factor, outer, inner, own)

    return simplify_kernel(replace(kernel, body=map_block(kernel.body, stmt=rewrite)))


def _tiled(s: For, factor: int, outer: str, inner: str, own: set[str]) -> Stmt:
    n = s.extent.const
    rest = n - factor
    step = gcd(factor, rest) if rest else factor  # the start's alignment stays visible
    start = imin(ix(outer) * (factor // step), rest // step) * step
    begins = FromIndex(start + ix(inner) - ix(outer) * factor, I32)
    first = Binary("ge", begins, Const(0, I32))

    def guard(b: Stmt) -> Stmt:
        outside = isinstance(b, Store) and b.buffer not in own
        return If(first, (b,)) if outside and n % factor else b

    body = map_block(substitute_block(s.body, {s.var: start + ix(inner)}), stmt=guard)
    return For(outer, Ix(-(-n // factor)), (For(inner, Ix(factor), body),))
