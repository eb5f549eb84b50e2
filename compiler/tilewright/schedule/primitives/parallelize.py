"""parallelize(var): iterations may run on several threads.

    for p in 6: for r in 14: S   ->   for p in 6: parallel r in 14: S

Loops around it stay around it: every thread runs through all of them with its share of `var`, so that an operand
which they walk along is read by each thread once, whatever share it has. Legal iff the loop is the kernel's only
outermost statement but for the sizes that it reads, or perfectly nested in serial loops that are, could be moved
outermost, and its iterations are independent.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.core.index import variables
from tilewright.errors import ScheduleError
from tilewright.loop.ir import For, Kernel, Let
from tilewright.schedule.legality import carried, reordering, require_loop


def parallelize(kernel: Kernel, var: str) -> Kernel:
    """Mark the loop `var` parallel."""
    require_loop(kernel, var)
    *sizes, outer = kernel.body
    if not isinstance(outer, For) or not all(isinstance(s, Let) for s in sizes):
        raise ScheduleError(f"`{var}` is not in the only outermost loop")
    around: list[For] = []
    loop = outer
    while loop.var != var:
        around.append(loop)
        if loop.kind != "serial" or len(loop.body) != 1 or not isinstance(loop.body[0], For):
            raise ScheduleError(f"`{var}` is not perfectly nested in serial loops")
        loop = loop.body[0]
    names = [f.var for f in around]
    if variables(loop.extent) & set(names):
        raise ScheduleError(f"the extent of `{var}` depends on a loop around it")
    body = loop.body
    for f in reversed(around):
        body = (replace(f, body=body),)
    reason = carried(replace(loop, body=body)) or (
        reordering([*around, loop], [var, *names]) if around else None
    )
    if reason:
        raise ScheduleError(reason)
    made = replace(loop, kind="parallel")
    for f in reversed(around):
        made = replace(f, body=(made,))
    return replace(kernel, body=(*sizes, made))
