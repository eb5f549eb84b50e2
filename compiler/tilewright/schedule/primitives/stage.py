"""stage(loops): keep the scratch of several iterations alive at once, in registers.

    for i: for j: [alloc t; t = a; for k: t += ..; C[i, j] = t]
      ->
    alloc t[I, J]
    for i: for j: t[i, j] = a
    for i: for j: for k: t[i, j] += ..
    for i: for j: C[i, j] = t[i, j]

Hoists all scratch of the innermost block out of the given loops (perfectly nested, outermost first),
one more innermost dim per loop, and distributes the loops over the block: each inner loop and each run of plain
statements gets its own copy of the nest.
Legal iff the iterations of the given loops are independent and no `let` is used across the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.core.index import Ix, bounds, ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Block,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Mma,
    Ref,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import Ranges, children, expressions, map_block, map_loads, walk
from tilewright.schedule.legality import carried, require_loop


def stage(kernel: Kernel, loops: Sequence[str]) -> Kernel:
    """Stage the scratch inside `loops` (outermost first)."""
    for var in loops:
        for f in require_loop(kernel, var):
            if f.kind in ("block", "thread"):
                raise ScheduleError(f"`{var}` is bound to {f.kind}s already: stage before that")
    if any(isinstance(s, Mma) for s in walk(kernel.body)):
        raise ScheduleError("tensor cores hold the sums already: stage before `tensorize_mma`")
    return replace(kernel, body=_search(kernel.body, list(loops), {}))


def _search(block: Block, names: list[str], ranges: Ranges) -> Block:
    out: list[Stmt] = []
    for s in block:
        if isinstance(s, For) and s.var == names[0]:
            out.extend(_stage(s, names, ranges))
        elif isinstance(s, For):
            _, hi = bounds(s.extent, ranges)
            inner = {**ranges, s.var: (0, (hi or 1) - 1)}
            out.append(replace(s, body=_search(s.body, names, inner)))
        elif isinstance(s, If):
            out.append(If(s.cond, _search(s.then, names, ranges), _search(s.orelse, names, ranges)))
        else:
            if isinstance(s, Let) and s.range is not None:
                ranges = {**ranges, s.name: s.range}
            out.append(s)
    return tuple(out)


def _stage(outer: For, names: list[str], ranges: Ranges) -> list[Stmt]:
    nest = [outer]
    for name in names[1:]:
        body = nest[-1].body
        if len(body) != 1 or not isinstance(body[0], For) or body[0].var != name:
            raise ScheduleError(f"`{name}` is not perfectly nested in `{nest[-1].var}`")
        nest.append(body[0])
    block = nest[-1].body
    for f in nest:
        reason = carried(f)
        if reason:
            raise ScheduleError(reason)
    sizes: list[int] = []
    for f in nest:
        _, hi = bounds(f.extent, ranges)
        if hi is None:
            raise ScheduleError(f"`{f.var}` has no constant bound")
        sizes.append(hi)
        ranges = {**ranges, f.var: (0, hi - 1)}
    allocs = [s for s in block if isinstance(s, Alloc)]
    if not allocs:
        raise ScheduleError(f"there is no scratch to stage inside `{names[-1]}`")
    names_of = {a.buffer.name for a in allocs}
    at = tuple(ix(f.var) for f in nest)
    out: list[Stmt] = [
        Alloc(dense(a.buffer.name, a.buffer.dtype, (*a.buffer.shape, *sizes), a.buffer.space))
        for a in allocs
    ]
    for group in _groups(block):
        body = _expand(group, names_of, at)
        for f in reversed(nest):
            body = (For(f.var, f.extent, body, f.kind),)
        out.extend(body)
    return out


def _groups(block: Block) -> list[Block]:
    """Cut a block at its loops; every loop alone, every run of other statements together."""
    groups: list[list[Stmt]] = []
    open_run = False
    for s in block:
        if isinstance(s, Alloc):
            continue
        if isinstance(s, For) or not open_run:
            groups.append([])
        groups[-1].append(s)
        open_run = not isinstance(s, For)
    cut = [tuple(g) for g in groups]
    for i, g in enumerate(cut):
        lets = {s.name for s in g if isinstance(s, Let)}
        for later in cut[i + 1 :]:
            used = lets & _references(later)
            if used:
                raise ScheduleError(f"`{min(used)}` is used on both sides of a loop")
    return cut


def _references(block: Block) -> set[str]:
    out: set[str] = set()
    stack: list[Expr] = list(expressions(block))
    while stack:
        e = stack.pop()
        if isinstance(e, Ref):
            out.add(e.name)
        stack.extend(children(e))
    return out


def _expand(block: Block, names: set[str], at: tuple[Ix, ...]) -> Block:
    def load(e: Load) -> Expr:
        return Load(e.buffer, (*e.index, *at), e.dtype) if e.buffer in names else e

    def store(s: Stmt) -> Stmt:
        if isinstance(s, Store) and s.buffer in names:
            return Store(s.buffer, (*s.index, *at), s.value)
        return s

    return map_block(block, expr=lambda e: map_loads(e, load), stmt=store)
