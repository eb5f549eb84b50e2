"""Elementwise work and data movement.

In: an unscheduled kernel, one perfect nest per output piece. Out: a trace that fuses what is contiguous
and vectorises the innermost loop.
"""

from __future__ import annotations

from tilewright.core.index import FloorDiv, Ix, Mod, simplify
from tilewright.loop.ir import For, Kernel
from tilewright.loop.rewrite import accesses, expressions, loads, loops
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import (
    Draft,
    buffers,
    parallelize_outer,
    vectorize_pass,
    volume,
)
from tilewright.schedule.trace import Trace


def injective(kernel: Kernel, target: Target) -> Trace:
    """Elementwise work and data movement: fuse what is contiguous, vectors along the innermost loop."""
    d = Draft(kernel)
    width = _narrowest_width(kernel, target)
    for top in [s for s in kernel.body if isinstance(s, For)]:
        names = _perfect_nest(top)
        while len(names) >= 2:
            outer, inner = names[-2], names[-1]
            saved = (d.kernel, list(d.steps))
            if d.try_("fuse", outer, inner, f"{outer}_{inner}") and _linear(d.kernel):
                names[-2:] = [f"{outer}_{inner}"]
                continue
            d.kernel, d.steps = saved
            break
        if names:
            vectorize_pass(d, names[-1], width)
    parallelize_outer(d, volume(kernel))
    return d.trace


def _perfect_nest(f: For) -> list[str]:
    names = [f.var]
    while len(f.body) == 1 and isinstance(f.body[0], For):
        f = f.body[0]
        names.append(f.var)
    return [] if any(isinstance(s, For) for s in f.body) else names


def _linear(kernel: Kernel) -> bool:
    """Whether no memory offset needs a division."""
    known = buffers(kernel)
    for buffer, index, _ in accesses(kernel.body):
        offset = Ix(0)
        for i, s in zip(index, known[buffer].strides, strict=True):
            offset = offset + i * s
        ranges = {
            v: (0, f.extent.const - 1) for v, f in loops(kernel.body).items() if f.extent.is_const
        }
        if any(isinstance(a, FloorDiv | Mod) for a, _ in simplify(offset, ranges).terms):
            return False
    return True


def _narrowest_width(kernel: Kernel, target: Target) -> int:
    sizes = [e.dtype.bytes for e in expressions(kernel.body)]
    sizes += [x.dtype.bytes for e in expressions(kernel.body) for x in loads(e)]
    return target.lanes(max(sizes, default=4))
