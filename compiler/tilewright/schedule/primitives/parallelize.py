"""parallelize(var): iterations may run on several threads.

Legal iff the loop is the kernel's only outermost statement, its extent is constant and its iterations
are independent.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel
from tilewright.schedule.legality import carried, require_loop


def parallelize(kernel: Kernel, var: str) -> Kernel:
    """Mark the outermost loop `var` parallel."""
    require_loop(kernel, var)
    if len(kernel.body) != 1 or not isinstance(kernel.body[0], For) or kernel.body[0].var != var:
        raise ScheduleError(f"`{var}` is not the only outermost loop")
    outer = kernel.body[0]
    if not outer.extent.is_const:
        raise ScheduleError(f"the extent of `{var}` is not constant")
    reason = carried(outer.body, var)
    if reason:
        raise ScheduleError(reason)
    return replace(kernel, body=(replace(outer, kind="parallel"),))
