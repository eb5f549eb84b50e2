"""GPUs: which loops become blocks and threads.

In: an unscheduled kernel and a target with `[gpu]`. Out: a trace.
`outputs` gives every output a thread of its own; it fits every kernel.
"""

from __future__ import annotations

from tilewright.loop.ir import For, Kernel
from tilewright.schedule.legality import carried
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft
from tilewright.schedule.trace import Trace

#: Threads of a block that has no shared memory to fill.
THREADS = 128


def outputs(kernel: Kernel, target: Target) -> Trace:
    """One thread per iteration of the independent outer loops of each nest."""
    d = Draft(kernel)
    for i, top in enumerate([s for s in kernel.body if isinstance(s, For)]):
        free = _independent(top)
        if not free:
            continue
        name = free[0]
        for inner in free[1:]:
            joined = f"p{i}_{inner}"
            if not d.try_("fuse", name, inner, joined):
                break
            name = joined
        if d.extent(name) > THREADS:
            d.do("split", name, THREADS, f"block{i}", f"thread{i}")
            d.do("bind", f"block{i}", "block")
            d.do("bind", f"thread{i}", "thread")
        else:
            d.try_("bind", name, "thread")
    return d.trace


def _independent(top: For) -> list[str]:
    """Perfectly nested loops from the outside in whose iterations do not depend on each other."""
    names: list[str] = []
    f = top
    while f.extent.is_const and carried(f.body, f.var) is None:
        names.append(f.var)
        if len(f.body) != 1 or not isinstance(f.body[0], For):
            break
        f = f.body[0]
    return names
