"""Add long sums of floats up in parts: a chain of additions gathers a rounding with every one of them.

    for k in 1024: for i: for j: t[i, j] = t[i, j] + ..
      ->
    for ko in 4:
      alloc p[I, J]
      for i: for j: p[i, j] = 0
      for k in 256: for i: for j: p[i, j] = p[i, j] + ..
      for i: for j: t[i, j] = t[i, j] + p[i, j]

In: a scheduled kernel. Out: one in which no loop adds more than `MOST` terms to the same scratch without a break.
Invariant: the same terms are added to the same elements; only where floats round is another place.

The error of a chain of n additions grows with n times its square root, that of parts of b with n times the square root
of b (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2; MLAS and OpenBLAS add blocks of K to
C for the same reason, besides caches). It costs a load, an addition and a store per element and part. A schedule
says in which order a sum runs, not how long a chain may be: so this holds for every template, log and target. Threads
of a GPU are left alone: their registers are full, and a tile's sums there go on from one stage of memory to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from tilewright.core.dtypes import U32, DType
from tilewright.core.index import Ix, bounds, imin, ix, substitute, variables
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Block,
    Buffer,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Space,
    Stmt,
    Store,
    dense,
)
from tilewright.loop.rewrite import Ranges, loads, map_block, map_loads, substitute_block, walk
from tilewright.loop.updates import identity, update

#: Terms of a part.
PART = 256
#: Terms that one chain may have.
MOST = 384


def split_sums(kernel: Kernel) -> Kernel:
    """`kernel` with its long sums in parts."""
    if any(isinstance(s, For) and s.kind in ("block", "thread") for s in walk(kernel.body)):
        return kernel
    taken = {s.var for s in walk(kernel.body) if isinstance(s, For)}
    taken |= {s.buffer.name for s in walk(kernel.body) if isinstance(s, Alloc)}
    taken |= {p.buffer.name for p in kernel.params}
    return replace(kernel, body=_Splitter(taken).block(kernel.body, {}, {}))


@dataclass(frozen=True, slots=True)
class _Update:
    """A statement that adds to scratch, and the loops around it inside the sum, outermost first."""

    store: Store
    nest: tuple[For, ...]

    @property
    def elements(self) -> tuple[For, ...]:
        """The loops that tell elements apart."""
        moves = {v for i in self.store.index for v in variables(i)}
        return tuple(f for f in self.nest if f.var in moves)


class _Splitter:
    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        number, found = 1, name
        while found in self.taken:
            number, found = number + 1, f"{name}{number + 1}"
        self.taken.add(found)
        return found

    def block(self, block: Block, scratch: dict[str, Buffer], ranges: Ranges) -> Block:
        out: list[Stmt] = []
        for s in block:
            if isinstance(s, Alloc):
                scratch = {**scratch, s.buffer.name: s.buffer}
            elif isinstance(s, Let) and s.range is not None:
                ranges = {**ranges, s.name: s.range}
            if isinstance(s, If):
                then, orelse = (self.block(b, scratch, ranges) for b in (s.then, s.orelse))
                out.append(If(s.cond, then, orelse))
            elif isinstance(s, For):
                made = self.parts(s, scratch, ranges) if s.kind == "serial" else None
                out.append(made or replace(s, body=self.block(s.body, scratch, _in(s, ranges))))
            else:
                out.append(s)
        return tuple(out)

    def parts(self, loop: For, scratch: dict[str, Buffer], ranges: Ranges) -> For | None:
        """The sum that `loop` begins, in parts; None if it is short, or something else."""
        chain = [loop]
        while len(chain[-1].body) == 1:
            (inner,) = chain[-1].body
            if not isinstance(inner, For) or inner.kind != "serial":
                break
            chain.append(inner)
        updates = _updates(chain[-1].body, scratch)
        if not updates:
            return None
        moves = {v for u in updates for i in u.store.index for v in variables(i)}
        sums = [f for f in chain if f.var not in moves]
        if sums != chain[: len(sums)]:
            return None
        if len(sums) < len(chain):  # the last of them are loops over elements
            updates = [replace(u, nest=(*chain[len(sums) :], *u.nest)) for u in updates]
        for f in sums:
            ranges = _in(f, ranges)
        within = max(_most([f for f in u.nest if f not in u.elements], ranges) for u in updates)
        if within * _most(sums, ranges) <= MOST or not _fixed(sums, updates, ranges):
            return None
        return self.cut(sums, updates, within, scratch, ranges)

    def cut(
        self,
        sums: Sequence[For],
        updates: Sequence[_Update],
        within: int,
        scratch: dict[str, Buffer],
        ranges: Ranges,
    ) -> For:
        """The loops `sums` around a new part: the inner ones, and a piece of the loop around them, make one."""
        outer, inner = list(sums), list[For]()
        body = sums[-1].body
        while outer and within * _most(outer[-1:], ranges) <= MOST:
            inner.insert(0, outer.pop())
            within *= _most(inner[:1], ranges)
        size = _piece(_most(outer[-1:], ranges), PART // within)
        if size > 1:
            last = outer.pop()
            number, at = self.fresh(f"{last.var}p"), self.fresh(f"{last.var}q")
            start = ix(number) * size
            moved = {last.var: start + ix(at)}
            body = substitute_block(body, moved)
            inner = [replace(f, extent=substitute(f.extent, moved)) for f in inner]
            outer.append(replace(last, var=number, extent=(last.extent + (size - 1)) // size))
            inner.insert(0, replace(last, var=at, extent=imin(Ix(size), last.extent - start)))
        mine: dict[str, str] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for u in updates:
            name = u.store.buffer
            if name not in mine:
                mine[name] = self.fresh(f"{name}_part")
                sizes[name] = tuple(_most([f], ranges) for f in u.elements)
        index = {u.store.buffer: tuple(ix(f.var) for f in u.elements) for u in updates}

        def load(e: Load) -> Expr:
            return Load(mine[e.buffer], index[e.buffer], e.dtype) if e.buffer in mine else e

        def store(s: Stmt) -> Stmt:
            if isinstance(s, Store) and s.buffer in mine:
                return Store(mine[s.buffer], index[s.buffer], s.value)
            return s

        total = map_block(body, expr=lambda e: map_loads(e, load), stmt=store)
        for f in reversed(inner):
            total = (replace(f, body=total),)
        before: list[Stmt] = []
        after: list[Stmt] = []
        for u in updates:
            name, dtype = u.store.buffer, u.store.value.dtype
            part = Load(mine[name], index[name], dtype)
            spelt = all(f.kind != "serial" for f in u.elements)
            space: Space = "register" if spelt and scratch[name].space == "register" else "local"
            before.append(Alloc(dense(part.buffer, dtype, sizes[name], space)))
            before += _around(u.elements, Store(part.buffer, part.index, identity("add", dtype)))
            added = Binary("add", Load(name, u.store.index, dtype), part)
            after += _around(u.elements, Store(name, u.store.index, added))
        made: Block = (*before, *total, *after)
        for f in reversed(outer):
            made = (replace(f, body=made),)
        (whole,) = made
        assert isinstance(whole, For)
        return whole


def _updates(block: Block, scratch: dict[str, Buffer]) -> list[_Update]:
    """What a block adds to floats in scratch, one update of each; nothing if it does anything else."""
    found: list[_Update] = []
    values: list[Expr] = []

    def collect(block: Block, nest: tuple[For, ...]) -> bool:
        for s in block:
            if isinstance(s, For) and s.kind in ("serial", "unroll", "vector"):
                if not collect(s.body, (*nest, s)):
                    return False
            elif isinstance(s, Let) and s.range is None:
                values.append(s.value)
            elif isinstance(s, Store) and s.buffer in scratch and _rounds(s.value.dtype):
                added = update(s)
                if added is None or added[0] != "add":
                    return False
                found.append(_Update(s, nest))
            else:
                return False
        return True

    if not collect(block, ()):
        return []
    names = [u.store.buffer for u in found]
    read = [x.buffer for e in (*values, *(u.store.value for u in found)) for x in loads(e)]
    return found if len(set(names)) == len(names) == sum(b in names for b in read) else []


def _rounds(dtype: DType) -> bool:
    """Whether additions round; those of u32 stand for them in the ring (`testing.ring`), which shows what is lost."""
    return dtype.is_float or dtype is U32


def _fixed(sums: Sequence[For], updates: Sequence[_Update], ranges: Ranges) -> bool:
    """Whether the elements are the same in every iteration of the sum, each met once, and sizes are bounded."""
    loops = {f.var for f in sums}
    for u in updates:
        within = {f.var for f in u.nest if f not in u.elements}
        if any(variables(f.extent) & (loops | within) for f in u.elements):
            return False
        if any(bounds(f.extent, ranges)[1] is None for f in u.elements):
            return False
    return True


def _in(f: For, ranges: Ranges) -> Ranges:
    """Values of variables inside a loop."""
    return {**ranges, f.var: (0, max(_most([f], ranges), 1) - 1)}


def _most(loops: Sequence[For], ranges: Ranges) -> int:
    """Iterations of nested loops, at most; so many where there is no bound."""
    ends = [bounds(f.extent, ranges)[1] for f in loops]
    return prod(1 << 30 if n is None else max(n, 0) for n in ends)


def _piece(n: int, size: int) -> int:
    """Iterations of a piece of a loop of `n`, about `size`: a divisor if there is one near, else pieces alike."""
    if size < 2 or n <= size:
        return min(size, n)
    near = [d for d in range(size // 2 + 1, size * 3 // 2 + 1) if n % d == 0]
    if near:
        return min(near, key=lambda d: abs(d - size))
    return -(-n // -(-n // size))


def _around(nest: Sequence[For], s: Stmt) -> Block:
    """A statement inside copies of loops."""
    out: Block = (s,)
    for f in reversed(nest):
        out = (replace(f, body=out),)
    return out
