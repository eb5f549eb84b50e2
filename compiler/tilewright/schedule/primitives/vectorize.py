"""vectorize(var): execute all iterations of an innermost loop at once, one per vector lane.

Legal iff the loop holds no other loop or branch and its iterations are independent.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, For, If, Kernel, Stmt
from tilewright.loop.rewrite import map_block
from tilewright.schedule.legality import carried, require_loop


def vectorize(kernel: Kernel, var: str) -> Kernel:
    """Vectorise every loop called `var`."""
    for f in require_loop(kernel, var):
        for s in f.body:
            if isinstance(s, For | If | Alloc):
                raise ScheduleError(f"`{var}` is not an innermost loop of plain stores")
        reason = carried(f)
        if reason:
            raise ScheduleError(reason)

    def rewrite(s: Stmt) -> Stmt:
        return replace(s, kind="vector") if isinstance(s, For) and s.var == var else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))
