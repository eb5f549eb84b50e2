"""vectorize(var): execute all iterations of an innermost loop at once, one per vector lane.

Legal iff the loop holds no other loop or branch, its iterations are independent, and they are not many more than the
lanes of all registers together: LLVM would take hours.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import bounds
from tilewright.errors import ScheduleError
from tilewright.loop.ir import Alloc, For, If, Kernel, Stmt
from tilewright.loop.rewrite import map_block
from tilewright.schedule.legality import carried, require_loop

#: Lanes of a vector at most: 32 registers of 512 bits hold as many floats.
MOST_LANES = 512


def vectorize(kernel: Kernel, var: str) -> Kernel:
    """Vectorise every loop called `var`."""
    for f in require_loop(kernel, var):
        for s in f.body:
            if isinstance(s, For | If | Alloc):
                raise ScheduleError(f"`{var}` is not an innermost loop of plain stores")
        reason = carried(f)
        if reason:
            raise ScheduleError(reason)
        _, most = bounds(f.extent, {})
        if most is not None and most > MOST_LANES:
            raise ScheduleError(
                f"`{var}` has {most} iterations, a vector at most {MOST_LANES} lanes"
            )

    def rewrite(s: Stmt) -> Stmt:
        return replace(s, kind="vector") if isinstance(s, For) and s.var == var else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))
