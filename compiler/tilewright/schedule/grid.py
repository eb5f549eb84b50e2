"""Whether a kernel of a GPU uses more than one block, and if not, why.

In: a scheduled kernel. Out: one clause for people, or nothing. Invariant: a schedule that leaves work to one block, or
one thread, where there is enough for many never does so in silence.
"""

from __future__ import annotations

from tilewright.errors import ScheduleError
from tilewright.loop.ir import Block, For, If, Kernel
from tilewright.loop.rewrite import walk
from tilewright.schedule.primitives.bind import bind

#: Innermost iterations that a block does well alone: 16 turns of 256 threads.
ENOUGH = 1 << 12


def one_block(kernel: Kernel) -> str:
    """Why work of a kernel is left to one block, or to one thread; empty where all independent iterations are
    spread, or too few to be."""
    kinds = {s.kind for s in walk(kernel.body) if isinstance(s, For)}
    if "block" in kinds or _volume(kernel.body) <= ENOUGH:
        return ""
    where = "one block" if "thread" in kinds else "one thread"
    for s in kernel.body:
        if isinstance(s, For) and s.kind == "serial" and s.extent.is_const and s.extent.const > 1:
            try:
                bind(kernel, s.var, "block")
            except ScheduleError as err:
                return f"it runs in {where}: {err}"
            return f"it runs in {where}: nothing binds `{s.var}`"
    return "" if "thread" in kinds else "it runs in one thread"


def _volume(block: Block) -> int:
    """Iterations of all innermost loops."""
    total = 0
    for s in block:
        if isinstance(s, For):
            total += (s.extent.const if s.extent.is_const else 1) * max(1, _volume(s.body))
        elif isinstance(s, If):
            total += max(_volume(s.then), _volume(s.orelse))
    return total
