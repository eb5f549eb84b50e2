"""bind(var, axis): the iterations of a loop are the blocks, or the threads of a block, of a GPU.

Blocks may run in any order, the threads of one nest at the same time; between two nests of threads all
threads of a block wait for each other. Legal iff the iterations are independent, blocks enclose threads,
and a loop of blocks is an outermost loop (or directly inside another one), uses no scratch from outside, and
has no nests next to it that depend on it (`legality.meeting`).
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Block, For, If, Kernel, Stmt
from tilewright.loop.rewrite import accesses, walk
from tilewright.schedule.legality import (
    carried,
    local_buffers,
    meeting,
    require_loop,
    require_serial,
)


def bind(kernel: Kernel, var: str, axis: str) -> Kernel:
    """Bind every loop called `var` to `axis`: "block" or "thread"."""
    if axis not in ("block", "thread"):
        raise ScheduleError(f"the axis `{axis}` is neither block nor thread")
    require_serial(kernel, var)
    for f in require_loop(kernel, var):
        reason = carried(f) or (meeting(kernel, var) if axis == "block" else None)
        if reason:
            raise ScheduleError(reason)
        if axis == "block" and not f.extent.is_const:
            raise ScheduleError(f"the extent of `{var}` is not constant")
        _require_own_scratch(kernel, f, axis)
    return replace(kernel, body=_block(kernel.body, var, axis, "outside"))


def _require_own_scratch(kernel: Kernel, f: For, axis: str) -> None:
    """Blocks share no scratch; threads share what is in shared memory, the rest is one element each."""
    inside = local_buffers(f.body)
    outside = {
        s.buffer.name: s.buffer.space
        for s in walk(kernel.body)
        if isinstance(s, Alloc) and s.buffer.name not in inside
    }
    for name, index, _ in accesses(f.body):
        own = axis == "thread" and ix(f.var) in index
        if name in outside and not own and (axis == "block" or outside[name] != "shared"):
            raise ScheduleError(f"`{f.var}` uses the scratch `{name}` of the code around it")


def _block(block: Block, var: str, axis: str, where: str) -> Block:
    """`where` we are: outside all loops but blocks, inside serial loops, or inside threads."""
    return tuple(_statement(s, var, axis, where) for s in block)


def _statement(s: Stmt, var: str, axis: str, where: str) -> Stmt:
    if isinstance(s, If):
        return If(s.cond, _block(s.then, var, axis, where), _block(s.orelse, var, axis, where))
    if not isinstance(s, For):
        return s
    if s.var == var:
        if axis == "block" and where != "outside":
            raise ScheduleError(f"`{var}` is inside a loop that is not one of blocks")
        return For(s.var, s.extent, _block(s.body, var, axis, _inside(axis, s.body, where)), axis)  # type: ignore[arg-type]
    return replace(s, body=_block(s.body, var, axis, _inside(s.kind, s.body, where)))


def _inside(kind: str, body: Block, where: str) -> str:
    if kind == "block":
        return where if len(body) == 1 else "inside"
    return "threads" if kind == "thread" else "inside"
