"""hold(var): a part of a sum over elements of scratch is added up in registers, then added to them.

    for k in K: for i: for j: t[io, i, j] = t[io, i, j] + ..
      ->
    alloc r[I, J]
    for i: for j: r[i, j] = 0
    for k in K: for i: for j: r[i, j] = r[i, j] + ..
    for i: for j: t[io, i, j] = t[io, i, j] + r[i, j]

`stage` holds the sums of a tile from beginning to end. Where a long sum goes over all tiles in parts, so that the
second operand of a part is used by all tiles while it is in a near cache, the sums lie in memory in between.
A part begins at zero (as MLAS adds blocks of K to C): that takes what going on from `t` would, and fewer roundings
add up. It changes the order of a sum, so it is a schedule's explicit choice.
Legal iff each loop `var` holds nothing but a perfect nest with one update (by `+`, `*`, `min` or `max`) of scratch
from outside that `var` does not move along, of an element that no other iteration of the nest touches; extents do
not depend on `var`. The scratch moves from registers to memory.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import bounds, ix, variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Block,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import Ranges, accesses, map_block, map_loads, walk
from tilewright.loop.updates import identity, update
from tilewright.schedule.legality import carried, require_loop, require_serial


def hold(kernel: Kernel, var: str) -> Kernel:
    """Add up what the loop called `var` adds in registers while it runs."""
    require_serial(kernel, var)
    if len(require_loop(kernel, var)) > 1:
        raise ScheduleError(f"there are several loops `{var}`")
    scratch = {s.buffer.name: s for s in walk(kernel.body) if isinstance(s, Alloc)}
    held: set[str] = set()
    body = _block(kernel.body, var, scratch, held, {})

    def spill(s: Stmt) -> Stmt:
        if isinstance(s, Alloc) and s.buffer.name in held:
            return Alloc(replace(s.buffer, space="local"))
        return s

    return replace(kernel, body=map_block(body, stmt=spill))


def _block(
    block: Block, var: str, scratch: dict[str, Alloc], held: set[str], ranges: Ranges
) -> Block:
    out: list[Stmt] = []
    for s in block:
        if isinstance(s, For) and s.var == var:
            made, name = _held(s, scratch, ranges)
            held.add(name)
            out.extend(made)
        elif isinstance(s, For):
            if s.kind not in ("serial", "parallel") and var in {f.var for f in _loops(s)}:
                raise ScheduleError(
                    f"`{var}` is inside a loop that is no longer serial: do this before"
                )
            _, hi = bounds(s.extent, ranges)
            inside = {**ranges, s.var: (0, (hi or 1) - 1)}
            out.append(replace(s, body=_block(s.body, var, scratch, held, inside)))
        elif isinstance(s, If):
            then = _block(s.then, var, scratch, held, ranges)
            out.append(If(s.cond, then, _block(s.orelse, var, scratch, held, ranges)))
        else:
            if isinstance(s, Let) and s.range is not None:
                ranges = {**ranges, s.name: s.range}
            out.append(s)
    return tuple(out)


def _loops(s: For) -> list[For]:
    return [f for f in walk(s.body) if isinstance(f, For)]


def _held(loop: For, scratch: dict[str, Alloc], ranges: Ranges) -> tuple[Block, str]:
    """The nest of `loop` on registers, and the scratch that it adds to."""
    nest: list[For] = []
    body = loop.body
    while len(body) == 1 and isinstance(body[0], For):
        nest.append(body[0])
        body = body[0].body
    store = body[0] if len(body) == 1 else None
    if not nest or not isinstance(store, Store) or store.buffer not in scratch:
        raise ScheduleError(f"`{loop.var}` holds more than a nest that adds to scratch")
    name, at = store.buffer, store.index
    if any(loop.var in variables(i) for i in at):
        raise ScheduleError(f"`{loop.var}` moves along `{name}`")
    for f in nest:
        if f.kind in ("block", "thread"):
            raise ScheduleError(f"`{f.var}` is bound to {f.kind}s already")
        reason = carried(f)
        if reason:
            raise ScheduleError(reason)
        if loop.var in variables(f.extent):
            raise ScheduleError(f"the extent of `{f.var}` depends on `{loop.var}`")
    reads = [index for b, index, stores in accesses((store,)) if b == name and not stores]
    if not reads:
        raise ScheduleError(f"`{loop.var}` does not add to `{name}`")
    if any(index != at for index in reads):
        raise ScheduleError(f"`{name}` is read at another element than is written")
    added = update(store)
    if added is None:
        raise ScheduleError(f"`{name}` is not updated by one associative operator")
    sizes: list[int] = []
    for f in nest:
        _, hi = bounds(f.extent, ranges)
        if hi is None:
            raise ScheduleError(f"`{f.var}` has no constant bound")
        sizes.append(hi)
        ranges = {**ranges, f.var: (0, hi - 1)}
    buffer = scratch[name].buffer
    part = f"{name}_{loop.var}"
    if part in scratch:
        raise ScheduleError(f"`{name}` is held during `{loop.var}` already")
    mine = Load(part, tuple(ix(f.var) for f in nest), buffer.dtype)

    def load(e: Load) -> Expr:
        return mine if e.buffer == name else e

    def around(s: Stmt) -> Block:
        out: Block = (s,)
        for f in reversed(nest):
            out = (replace(f, body=out),)
        return out

    add = map_block((store,), expr=lambda e: map_loads(e, load))
    assert isinstance(add[0], Store)
    total = Binary(added[0], Load(name, at, buffer.dtype), mine)
    made = (
        Alloc(dense(part, buffer.dtype, tuple(sizes), "register")),
        *around(Store(part, mine.index, identity(added[0], buffer.dtype))),
        replace(loop, body=around(Store(part, mine.index, add[0].value))),
        *around(Store(name, at, total)),
    )
    return made, name
