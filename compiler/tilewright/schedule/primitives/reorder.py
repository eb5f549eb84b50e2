"""reorder(order): permute perfectly nested loops.

    for i: for j: S   ->   for j: for i: S          (order = [j, i])

Applies wherever at least two of the named loops are perfectly nested. Legal iff iterations that
update the same element keep their order, no loop leaves the loop its extent depends on, and vector and
parallel loops stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tilewright.core.index import variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Block, For, If, Kernel, Stmt
from tilewright.schedule.legality import reordering, require_loop


def reorder(kernel: Kernel, order: Sequence[str]) -> Kernel:
    """Bring the named loops into the given order, outermost first."""
    for var in order:
        require_loop(kernel, var)
    if len(set(order)) != len(order):
        raise ScheduleError("a loop is named twice")
    return replace(kernel, body=_block(kernel.body, list(order)))


def _block(block: Block, order: list[str]) -> Block:
    return tuple(_statement(s, order) for s in block)


def _statement(s: Stmt, order: list[str]) -> Stmt:
    if isinstance(s, If):
        return If(s.cond, _block(s.then, order), _block(s.orelse, order))
    if not isinstance(s, For):
        return s
    nest: list[For] = [s]
    while len(nest[-1].body) == 1 and isinstance(nest[-1].body[0], For):
        nest.append(nest[-1].body[0])
    body = _block(nest[-1].body, order)
    named = [f.var for f in nest if f.var in order]
    target = [v for v in order if v in named]
    if named != target:
        before = [f.var for f in nest]
        queue = iter(target)
        after = [next(queue) if v in order else v for v in before]
        reason = reordering(nest, after)
        if reason:
            raise ScheduleError(reason)
        pinned = [f.var for f in nest if f.kind in ("vector", "parallel")]
        moved = [v for v in pinned if before.index(v) != after.index(v)]
        if moved:
            raise ScheduleError(
                f"`{moved[0]}` is vectorised or parallel already: reorder before that"
            )
        by_name = {f.var: f for f in nest}
        nest = [by_name[v] for v in after]
        for i, f in enumerate(nest):
            inside = {g.var for g in nest[i:]} & variables(f.extent)
            if inside:
                raise ScheduleError(f"the extent of `{f.var}` depends on `{min(inside)}` inside it")
    for f in reversed(nest):
        body = (For(f.var, f.extent, body, f.kind),)
    return body[0]
