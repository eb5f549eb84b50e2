"""GPUs: which loops become blocks and threads.

In: an unscheduled kernel and a target with `[gpu]`. Out: a trace.
`outputs` gives every output a thread of its own; it fits every kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tilewright.loop.ir import Alloc, For, Kernel
from tilewright.schedule.legality import carried
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft
from tilewright.schedule.trace import Trace

#: Threads of a block that has no shared memory to fill: at least and at most.
FEWEST, MOST = 32, 256


def schedule(kernel: Kernel, target: Target) -> Trace:
    """The default schedule of any kernel."""
    return outputs(kernel, target)


def outputs(kernel: Kernel, target: Target) -> Trace:
    """One thread per iteration of the independent outer loops of each nest."""
    d = Draft(kernel)
    if any(isinstance(s, Alloc) for s in kernel.body):
        return ()  # nests that share scratch: one thread
    for i, top in enumerate([s for s in kernel.body if isinstance(s, For)]):
        free = _independent(top)
        total = prod(d.extent(v) for v in free)
        size = next((n for n in range(MOST, FEWEST - 1, -1) if total % n == 0), 0)
        if total <= MOST or size:
            _linear(d, free, i, size or total)
        elif free:
            _by_loop(d, free, i)
    return d.trace


def _linear(d: Draft, free: Sequence[str], i: int, size: int) -> None:
    """All loops as one, cut into blocks of exactly `size` threads."""
    if not free:
        return
    name = free[0]
    for inner in free[1:]:
        d.do("fuse", name, inner, f"p{i}_{inner}")
        name = f"p{i}_{inner}"
    if d.extent(name) == size:
        d.do("bind", name, "thread")
        return
    d.do("split", name, size, f"block{i}", f"thread{i}")
    d.do("bind", f"block{i}", "block")
    d.do("bind", f"thread{i}", "thread")


def _by_loop(d: Draft, free: Sequence[str], i: int) -> None:
    """The innermost loop gives the threads, some of which idle in its last block, the others blocks."""
    last = free[-1]
    for v in free[:-1]:
        d.do("bind", v, "block")
    if d.extent(last) <= MOST:
        d.do("bind", last, "thread")
        return
    d.do("split", last, MOST, f"block{i}", f"thread{i}")
    d.do("bind", f"block{i}", "block")
    d.do("bind", f"thread{i}", "thread")


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
