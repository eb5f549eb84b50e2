"""What may stand around a parallel loop: every thread runs through it with its share of the iterations.

In: a kernel. Out: what is wrong with its parallel loops, or None. Invariant: in a kernel that passes, calls for
parts of the iterations do what one call for all of them does, and nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.core.index import Ix, variables
from tilewright.loop.ir import Block, For, If, Kernel, Let
from tilewright.loop.rewrite import walk


def wrong_sharing(kernel: Kernel) -> str | None:
    """Why threads cannot share out the parallel loops of a kernel, or None if they can, or there are none."""
    extents: set[Ix] = set()
    for found in _parallel(kernel.body, ()):
        if isinstance(found, str):
            return found
        extents.add(found)
    return "there are parallel loops of several extents" if len(extents) > 1 else None


def _shares(block: Block) -> bool:
    return any(isinstance(s, For) and s.kind == "parallel" for s in walk(block))


def _parallel(block: Block, around: tuple[str, ...]) -> Iterator[Ix | str]:
    """Extents of parallel loops, and what is wrong. Around them may be sizes, serial loops, branches."""
    if not _shares(block):
        return
    for s in block:
        if not _shares((s,)):
            if not isinstance(s, Let):
                yield "every thread would do what stands next to a parallel loop"
        elif isinstance(s, If):
            yield from _parallel((*s.then, *s.orelse), around)
        elif isinstance(s, For) and s.kind == "serial":
            yield from _parallel(s.body, (*around, s.var))
        elif isinstance(s, For):
            if s.kind != "parallel" or _shares(s.body) or variables(s.extent) & set(around):
                yield f"threads cannot share out loops of `{s.var}`"
            yield s.extent
