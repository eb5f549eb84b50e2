"""Threads as lanes of arrays: which run together, how many there are, where they have been before.

In: loops of a kernel bound to blocks and threads. Out: facts about them, and what a nest of threads keeps between
its turns. Invariant: kept positions are those that computing them again would give.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.index import bounds, variables
from tilewright.errors import IRError
from tilewright.loop.barriers import has_threads
from tilewright.loop.ir import Block, For, If, Let
from tilewright.loop.rewrite import Ranges, walk

Array = npt.NDArray[Any]
Index = dict[str, Any]  # variable -> int, or one value per lane
#: A buffer, how many copies of it there are, an index, numbers of the variables that are the same for all lanes.
Place = tuple[int, int, int, tuple[int, ...]]

#: Positions of lanes that a nest of threads keeps, so that they are not computed again in every turn around it.
MAX_PLACES = 1 << 23


@dataclass(slots=True)
class Nest:
    """The threads of a nest in the blocks that run together, and where they have been before.

    `env`: variables outside the nest and its own, one value per lane; `outer`: what they were made from.
    `mask`: None where all lanes are on. `places`: index forms, with the values of variables that are one
    number for all lanes -> checked positions in a buffer.
    """

    outer: Index
    env: Index
    mask: Array | None
    blocks: Array
    ids: Array
    who: Array
    places: dict[Place, Array] = field(default_factory=dict[Place, Array])

    def keep(self, place: Place, at: Array) -> None:
        """Remember the checked positions of all lanes."""
        if len(self.places) * len(at) > MAX_PLACES:
            self.places.clear()
        self.places[place] = at


def perfect(s: For, kind: str) -> list[For]:
    """Loops of a kind, each the only statement of the one before."""
    nest = [s]
    while len(nest[-1].body) == 1:
        (inner,) = nest[-1].body
        if not isinstance(inner, For) or inner.kind != kind:
            break
        nest.append(inner)
    return nest


def same(known: Index, env: Index) -> bool:
    """Whether what has one value per lane in `env` is what is known already."""
    arrays = {k: v for k, v in env.items() if isinstance(v, np.ndarray)}
    return known.keys() == arrays.keys() and all(v is known[k] for k, v in arrays.items())


def uneven(body: Block, blocks: set[str]) -> bool:
    """Whether what surrounds threads has another length, or another way, in some block."""
    for s in walk(body):
        if isinstance(s, If) and has_threads((s,)):
            return True
        serial = isinstance(s, For) and s.kind != "thread" and has_threads(s.body)
        if isinstance(s, For) and serial and variables(s.extent) & blocks:
            return True
    return False


def widths(block: Block, ranges: Ranges, found: dict[int, int]) -> None:
    """Identity of each loop of threads -> its iterations, at most."""
    for s in block:
        if isinstance(s, If):
            widths(s.then, ranges, found)
            widths(s.orelse, ranges, found)
        elif isinstance(s, Let) and s.range is not None:
            ranges = {**ranges, s.name: s.range}
        elif isinstance(s, For):
            _, hi = bounds(s.extent, ranges)
            if hi is None:
                raise IRError(f"a loop of {s.extent} iterations has no bound")
            if s.kind == "thread":
                found[id(s)] = max(hi, 1, found.get(id(s), 1))
            widths(s.body, {**ranges, s.var: (0, max(hi, 1) - 1)}, found)


def threads(body: Block) -> int:
    """A bound on the threads that a block starts at once."""
    most = 1
    for s in body:
        inner: list[Block] = []
        if isinstance(s, For):
            inner = [s.body]
            if s.kind == "thread":
                size = s.extent.const if s.extent.is_const else 1024
                most = max(most, size * threads(s.body))
                continue
        elif isinstance(s, If):
            inner = [s.then, s.orelse]
        most = max([most, *map(threads, inner)])
    return most
