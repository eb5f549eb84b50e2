"""Which lanes of scratch belong to one iteration alone.

In: the statements that follow an allocation. Out: whether a partial vector may overwrite the lanes beyond its
last iteration.
Invariant: a yes is a proof: no statement reads or writes such a lane as an element.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.core.index import Ix, variables
from tilewright.loop.ir import Block, For, If
from tilewright.loop.rewrite import accesses

_Access = tuple[tuple[Ix, ...], For | None, frozenset[str]]


def lanes_are_private(name: str, stmts: Block) -> bool:
    """Whether every access to scratch `name` is `[..., v]` with the same rows, in vector loops over v of the same
    extent, which the row alone decides: then a row always has the same number of elements."""
    found = list(_accesses(name, stmts, None, frozenset()))
    if not found or not found[0][0]:
        return False
    (*rows, last), loop, _ = found[0]
    if (
        loop is None
        or last != Ix(0, ((loop.var, 1),))
        or any(loop.var in variables(i) for i in rows)
    ):
        return False
    for index, here, inside in found:
        if here is None or (here.var, here.extent) != (loop.var, loop.extent):
            return False
        decided = {v for i in rows for v in variables(i)}
        if index != found[0][0] or not (variables(here.extent) & inside) <= decided:
            return False
    return True


def _accesses(
    name: str, stmts: Block, vector: For | None, inside: frozenset[str]
) -> Iterator[_Access]:
    """Index, vector loop and loops since the allocation of every access to `name`."""
    for s in stmts:
        if isinstance(s, For):
            inner = s if s.kind == "vector" else vector
            yield from _accesses(name, s.body, inner, inside | {s.var})
            continue
        leaf = s
        if isinstance(s, If):
            yield from _accesses(name, s.then, vector, inside)
            yield from _accesses(name, s.orelse, vector, inside)
            leaf = If(s.cond, ())
        yield from ((i, vector, inside) for b, i, _ in accesses((leaf,)) if b == name)
