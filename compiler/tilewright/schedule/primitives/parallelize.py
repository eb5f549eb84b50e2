"""parallelize(var): iterations may run on several threads.

Legal iff the loop is the kernel's only outermost statement but for the sizes that it reads, and its
iterations are independent.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel, Let
from tilewright.schedule.legality import carried, require_loop


def parallelize(kernel: Kernel, var: str) -> Kernel:
    """Mark the outermost loop `var` parallel."""
    require_loop(kernel, var)
    *sizes, outer = kernel.body
    alone = all(isinstance(s, Let) for s in sizes)
    if not alone or not isinstance(outer, For) or outer.var != var:
        raise ScheduleError(f"`{var}` is not the only outermost loop")
    reason = carried(outer)
    if reason:
        raise ScheduleError(reason)
    return replace(kernel, body=(*sizes, replace(outer, kind="parallel")))
