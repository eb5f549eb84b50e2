"""unroll(var): emit the loop's body once per iteration.

Legal iff the extent is bounded by a small constant once the loops around it are specialised.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import bounds
from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel, Stmt
from tilewright.loop.rewrite import map_block
from tilewright.schedule.legality import require_loop

#: More copies than this never pay and make compile times explode.
MAX_UNROLL = 256


def unroll(kernel: Kernel, var: str) -> Kernel:
    """Unroll every loop called `var` completely."""
    for f in require_loop(kernel, var):
        _, hi = bounds(f.extent, {})
        if (f.extent.is_const and f.extent.const > MAX_UNROLL) or (
            hi is not None and hi > MAX_UNROLL
        ):
            raise ScheduleError(f"`{var}` has {f.extent} iterations, more than {MAX_UNROLL}")

    def rewrite(s: Stmt) -> Stmt:
        return replace(s, kind="unroll") if isinstance(s, For) and s.var == var else s

    return replace(kernel, body=map_block(kernel.body, stmt=rewrite))
