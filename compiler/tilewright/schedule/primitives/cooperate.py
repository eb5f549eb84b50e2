"""cooperate(var): the threads of a block work on one row together.

    block r: [alloc t; vector l in 128: t[l] = ..; x = t[0]; ..]
      ->
    block r: [alloc t in shared; thread l in 128: t[l] = ..; thread one in 1: x = t[0]; ..]

Inside the loop `var` (the whole kernel if it is empty) vector loops become threads, scratch outside of
them moves to shared memory, and single stores between them are left to one thread. Each nest of threads
ends with a barrier, so that everyone sees what the others wrote.
Legal iff the loop is one of blocks, and no thread is there yet.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from tilewright.core.index import Ix
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, Block, For, If, Kernel, Stmt, Store
from tilewright.loop.rewrite import map_block, walk
from tilewright.schedule.legality import require_loop


def cooperate(kernel: Kernel, var: str) -> Kernel:
    """Turn the vectors inside `var` into threads that share their scratch."""
    body = kernel.body
    if var:
        found = require_loop(kernel, var)
        if len(found) != 1 or found[0].kind != "block":
            raise ScheduleError(f"`{var}` is not a loop of blocks")
        body = found[0].body
    if any(isinstance(s, For) and s.kind in ("thread", "parallel") for s in walk(body)):
        raise ScheduleError("there are threads already")
    made = _Rewriter().block(body)
    if not var:
        return replace(kernel, body=made)

    def rewrite(s: Stmt) -> Stmt:
        return replace(s, body=made) if isinstance(s, For) and s.var == var else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))


class _Rewriter:
    def __init__(self) -> None:
        self.count = 0

    def block(self, block: Block) -> Block:
        out: list[Stmt] = []
        for single, group in groupby(block, lambda s: isinstance(s, Store)):
            run = tuple(group)
            if single:
                out.append(For(f"one{self.count}", Ix(1), run, "thread"))
                self.count += 1
            else:
                out.extend(self.statement(s) for s in run)
        return tuple(out)

    def statement(self, s: Stmt) -> Stmt:
        match s:
            case Alloc(buffer):
                return Alloc(replace(buffer, space="shared"))
            case For(kind="vector"):
                return replace(s, kind="thread")
            case For():
                return replace(s, body=self.block(s.body))
            case If():
                raise ScheduleError("a condition lies between the threads")
            case _:
                return s
