"""Where the threads of a block must wait for each other.

In: a kernel whose loops are bound to blocks and threads. Out: the statements that need a barrier before them.
Invariant: between two statements that touch the same element of shared or global memory from different
threads, one of them writing, there is a barrier on every path. Conservative: what is not proved to be
apart is taken to meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.index import Extremum, FloorDiv, Ix, Mod, bounds, simplify, variables
from tilewright.loop import mma
from tilewright.loop.ir import (
    Alloc,
    Block,
    Buffer,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Mma,
    Ref,
    Stmt,
)
from tilewright.loop.rewrite import Ranges, accesses, expressions, parts, walk

Numbers = npt.NDArray[Any]

#: More points than this are not tried: a tile in shared memory has at most 12288 floats.
MOST_POINTS = 1 << 15


@dataclass(frozen=True, slots=True)
class _Touch:
    """An access: element `at` of a buffer, as a flat offset."""

    buffer: str
    at: Ix
    store: bool


def has_threads(block: Block) -> bool:
    """Whether there are loops of threads in a block."""
    return any(isinstance(s, For) and s.kind == "thread" for s in walk(block))


def runs(block: Block) -> Iterator[tuple[Block, bool]]:
    """Statements outside threads in runs: by all threads (those that start threads, names and scratch that
    everyone needs), or by the first thread alone.

    A name or scratch that only statements of one such run use is its own: what the name is computed from may be,
    too.
    """
    ours = [isinstance(s, (Alloc, Let)) or has_threads((s,)) for s in block]
    for i in reversed(range(len(block))):
        s = block[i]
        if isinstance(s, (Let, Alloc)):
            users = [j for j in range(i + 1, len(block)) if _uses((block[j],), s)]
            ours[i] = bool(users) and any(ours[i + 1 : users[-1] + 1])
    for together, group in groupby(zip(block, ours, strict=True), lambda pair: pair[1]):
        yield tuple(s for s, _ in group), together


def _uses(block: Block, s: Let | Alloc) -> bool:
    """Whether statements use a name or scratch."""
    if isinstance(s, Let):
        return s.name in _names(block)
    return any(name == s.buffer.name for name, _, _ in accesses(block))


def _names(block: Block) -> set[str]:
    """Names that expressions, indices and extents use."""
    found: set[str] = set()
    for e in (x for whole in expressions(block) for x in parts(whole)):
        if isinstance(e, Ref):
            found.add(e.name)
        elif isinstance(e, FromIndex):
            found |= variables(e.index)
    for _, index, _ in accesses(block):
        found.update(*map(variables, index))
    for s in walk(block):
        if isinstance(s, For):
            found |= variables(s.extent)
    return found


def barriers(kernel: Kernel) -> frozenset[int]:
    """Identities (`id`) of the statements outside threads that need a barrier before them.

    A run of statements that one thread executes alone (`runs`) is named by its first one.
    """
    common = {p.buffer.name: p.buffer for p in kernel.params if p.role == "out"}
    for s in walk(kernel.body):
        if isinstance(s, Alloc) and s.buffer.space == "shared":
            common[s.buffer.name] = s.buffer
    scan = _Scan(common)
    scan.block(kernel.body, (), {})
    return frozenset(scan.before)


class _Scan:
    """Walks over a block in the order of execution; `pending` is what was touched since a barrier."""

    def __init__(self, common: dict[str, Buffer]) -> None:
        self.common = common
        self.before: set[int] = set()

    def block(
        self, block: Block, pending: tuple[_Touch, ...], ranges: Ranges
    ) -> tuple[_Touch, ...]:
        for run, together in runs(block):
            if not together:
                pending = self.event(run[0], run, pending, ranges)
                continue
            for s in run:
                if isinstance(s, For) and s.kind != "thread":
                    pending = self.loop(s, pending, ranges)
                elif isinstance(s, If):
                    pending = self.event(s, (replace(s, then=(), orelse=()),), pending, ranges)
                    ways = [self.block(b, pending, ranges) for b in (s.then, s.orelse)]
                    pending = tuple(dict.fromkeys((*ways[0], *ways[1])))
                else:
                    pending = self.event(s, (s,), pending, ranges)
        return pending

    def event(
        self, first: Stmt, run: Block, pending: tuple[_Touch, ...], ranges: Ranges
    ) -> tuple[_Touch, ...]:
        """Statements between which threads need not wait, the barrier they may need being before `first`."""
        touched = self.touches(run, ranges)
        if id(first) in self.before or any(
            a.buffer == b.buffer and (a.store or b.store) for a in pending for b in touched
        ):
            self.before.add(id(first))
            return touched
        return tuple(dict.fromkeys((*pending, *touched)))

    def loop(self, s: For, pending: tuple[_Touch, ...], ranges: Ranges) -> tuple[_Touch, ...]:
        _, hi = bounds(s.extent, ranges)
        inner = {**ranges, s.var: (0, hi - 1)} if hi is not None else ranges
        once = self.block(s.body, pending, inner)
        if s.kind != "block":  # iterations follow each other in one block
            apart = self.apart(s, inner)
            self.block(s.body, tuple(t for t in once if t.buffer not in apart), inner)
        surely = s.extent.is_const and s.extent.const > 0
        return once if surely else tuple(dict.fromkeys((*pending, *once)))

    def touches(self, block: Block, ranges: Ranges) -> tuple[_Touch, ...]:
        """Accesses of buffers that threads share."""
        inner = {**ranges, **_inside(block, ranges)}
        found: dict[_Touch, None] = {}
        for name, index, store in accesses(block):
            if name in self.common:
                at = Ix(0)
                for i, stride in zip(index, self.common[name].strides, strict=True):
                    at = at + i * stride
                found[_Touch(name, simplify(at, inner), store)] = None
        return tuple(found)

    def apart(self, s: For, ranges: Ranges) -> frozenset[str]:
        """Buffers of which different iterations of a loop touch different elements: all are tried."""
        inner = {**ranges, **_inside(s.body, ranges)}
        still = ranges.keys() - {
            s.var
        }  # a name that is read from memory has no range here: it moves
        bases: dict[str, set[Ix]] = {}
        parts: dict[str, set[Ix]] = {}
        for t in self.touches(s.body, ranges):
            own = [term for term in t.at.terms if variables(Ix(0, (term,))) - still]
            stays = [term for term in t.at.terms if term not in own]
            bases.setdefault(t.buffer, set()).add(Ix(0, tuple(stays)))
            parts.setdefault(t.buffer, set()).add(Ix(t.at.const, tuple(own)))
        return frozenset(
            b for b, forms in parts.items()
            if len(bases[b]) == 1 and _disjoint(forms, s.var, inner)
        )  # fmt: skip


def _disjoint(forms: set[Ix], var: str, ranges: Ranges) -> bool:
    """Whether no value of `forms` belongs to two values of the variable `var`."""
    values: list[Numbers] = []
    owners: list[Numbers] = []
    for form in forms:
        names = sorted(variables(form) | {var})
        if not ranges.keys() >= set(names):
            return False
        sizes = [ranges[n][1] + 1 for n in names]
        if prod(sizes) > MOST_POINTS:
            return False
        points = dict(zip(names, np.indices(sizes).reshape(len(sizes), -1), strict=True))
        values.append(np.broadcast_to(_value(form, points), points[var].shape))
        owners.append(points[var])
    pairs = np.unique(np.stack([np.concatenate(values), np.concatenate(owners)]), axis=1)
    return bool(len(np.unique(pairs[0])) == pairs.shape[1])


def _value(form: Ix, points: dict[str, Numbers]) -> Numbers:
    """An index form at many points."""
    total: Numbers = np.asarray(form.const)
    for atom, coef in form.terms:
        match atom:
            case str():
                v = points[atom]
            case FloorDiv(num, den):
                v = _value(num, points) // den
            case Mod(num, den):
                v = _value(num, points) % den
            case Extremum(op, x, y):
                pick = np.minimum if op == "min" else np.maximum
                v = pick(_value(x, points), _value(y, points))
        total = total + coef * v
    return total


def _inside(block: Block, ranges: Ranges) -> Ranges:
    """Ranges of the loops in a block; loops of one name have the largest of their ranges."""
    found: Ranges = {}
    for s in walk(block):
        if isinstance(s, For):
            _, hi = bounds(s.extent, {**ranges, **found})
            if hi is not None:
                found[s.var] = (0, max(hi - 1, found.get(s.var, (0, 0))[1]))
        elif isinstance(s, Mma):
            found.update(mma.ranges(s))
    return found
