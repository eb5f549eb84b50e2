"""The loop IR as a GPU runs it: all threads at once, barriers where code has them, races found.

In: a kernel whose loops are bound to blocks and threads, NumPy arrays as for `loop.interp`. Out: arrays
changed. Invariant: the values are those of the serial interpreter; beyond that an `IRError` names every
element that one thread writes and another touches before the next barrier (or another block, ever; or, of
scratch that is not shared, another thread, ever), every access outside a buffer and every read of scratch that
was not written. Barriers are those of `loop.barriers`, which code generation emits: one that is missing there
is a race here. Threads are numbered as in the generated code: what no thread executes, the first one does.

All threads of many blocks are lanes of NumPy arrays, so that whole models run; statements are executed
in lockstep, which any order of threads must agree with where there are no races.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.index import Extremum, FloorDiv, Ix, Mod, variables
from tilewright.errors import IRError
from tilewright.loop import interp, mma
from tilewright.loop import simt_values as values
from tilewright.loop.barriers import barriers, runs
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Cast,
    Const,
    Dot,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Mma,
    Ref,
    Select,
    Stmt,
    Store,
    Unary,
)
from tilewright.loop.rewrite import loads
from tilewright.loop.simt_lanes import Index, Nest, Place, perfect, same, threads, uneven, widths
from tilewright.loop.simt_memory import MAX_THREADS, Memory

Lanes = npt.NDArray[Any]

#: Threads that are executed together; more blocks wait.
MAX_LANES = 1 << 16


def run(
    kernel: Kernel, arrays: Mapping[str, npt.NDArray[Any]], most: int | None = None
) -> dict[str, Lanes]:
    """Execute `kernel` as a GPU would; arguments as for `loop.interp.run`.

    `most`: at most so many blocks of each grid, spread evenly from the first to the last one. Returns for
    each output which elements were written.
    """
    interp.check_arguments(kernel, arrays)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        machine = _Grid(kernel, most)
        for p in kernel.params:
            machine.memory[p.buffer.name] = Memory.of(
                p.buffer, arrays[p.buffer.name], p.role == "out"
            )
        machine.top(kernel.body)
        for p in kernel.params:
            if p.role == "out":
                arrays[p.buffer.name][...] = machine.memory[p.buffer.name].data.reshape(
                    p.buffer.shape
                )
        found = ((n, m) for n, m in machine.memory.items() if m.per == "all" and m.tracked)
        written = {n: m.marks["wrote"] >= 0 for n, m in found}
    return {n: mask.reshape(arrays[n].shape) for n, mask in written.items()}


class _Grid:
    def __init__(self, kernel: Kernel, most: int | None) -> None:
        self.kernel = kernel
        self.most = most
        self.memory: dict[str, Memory] = {}
        self.blocks = np.zeros(1, np.int64)  # block of each lane
        self.ids = np.zeros(1, np.int64)  # lane of the chunk
        self.who = np.zeros(1, np.int64)  # thread of each lane, unique over all blocks
        self.before = barriers(kernel)
        self.runs: dict[int, list[tuple[Block, bool]]] = {}  # identity of a block -> its runs
        self.widths: dict[int, int] = {}
        widths(kernel.body, {}, self.widths)
        #: identity of an index -> it, its variables
        self.names: dict[int, tuple[tuple[Ix, ...], tuple[str, ...]]] = {}
        self.held: dict[
            int, list[tuple[Ix, ...]]
        ] = {}  # identity of a `Mma` -> the sums of a thread
        self.stamp = 0  # barriers so far
        self.nests: dict[
            int, Nest
        ] = {}  # identity of the outermost loop of threads -> what it keeps
        self.nest_now: Nest | None = None
        self.block_count = 0

    def error(self, text: str) -> IRError:
        return IRError(f"{self.kernel.name}: {text}")

    # ---- blocks and threads

    def top(self, block: Block) -> None:
        for is_grid, group in groupby(block, lambda s: isinstance(s, For) and s.kind == "block"):
            if not is_grid:
                self.start(1, {}, tuple(group))
                continue
            for s in group:
                assert isinstance(s, For)
                self.grid(s)

    def grid(self, s: For) -> None:
        nest = perfect(s, "block")
        body = nest[-1].body
        sizes = [f.extent.const for f in nest]
        total = int(np.prod(sizes))
        chunk = max(1, MAX_LANES // max(1, threads(body)))
        if uneven(body, {f.var for f in nest}):
            chunk = 1  # blocks that take ways of their own do not run together
        chosen = np.arange(total)
        if self.most is not None and self.most < total:
            chosen = np.unique(np.linspace(0, total - 1, self.most).astype(np.int64))
        for first in range(0, len(chosen), chunk):
            some = chosen[first : first + chunk]
            cells = np.unravel_index(some, sizes)
            env: Index = {f.var: c.astype(np.int64) for f, c in zip(nest, cells, strict=True)}
            self.start(len(some), env, body)

    def start(self, count: int, env: Index, body: Block) -> None:
        """Run `count` blocks together; block-level variables have one value per block."""
        self.blocks = np.arange(count, dtype=np.int64) + self.block_count
        self.first = self.block_count
        self.block_count += count
        self.ids = np.arange(count, dtype=np.int64)
        self.who = self.blocks * MAX_THREADS
        self.nests = {}
        self.stamp += 1
        self.together(body, env, {})

    def together(self, block: Block, env: Index, refs: dict[str, Lanes]) -> None:
        """Statements of a block outside its threads."""
        env = dict(env)
        if id(block) not in self.runs:
            self.runs[id(block)] = list(runs(block))
        for run, everyone in self.runs[id(block)]:
            if not everyone:
                self.barrier(run[0])
                self.run(run, env, refs, None)
                continue
            for s in run:
                self.barrier(s)
                match s:
                    case For(kind="thread"):
                        self.nest(s, env, refs)
                    case For(var, extent, body):
                        ends = np.asarray(self.index(extent, env))
                        if ends.min() != ends.max():
                            raise self.error(f"`{var}` has another length in every block")
                        for i in range(int(ends.max())):
                            self.together(body, {**env, var: i}, dict(refs))
                    case If(cond, then, orelse):
                        taken = self.everywhere(cond, env, refs)
                        if taken.any() != taken.all():
                            raise self.error("threads start where blocks take two ways")
                        self.together(then if taken.all() else orelse, env, dict(refs))
                    case Let(name, value, bound):
                        refs[name] = self.everywhere(value, env, refs)
                        if bound is not None:
                            env[name] = np.clip(refs[name], *bound).astype(np.int64)
                    case _:
                        self.run((s,), env, refs, None)

    def barrier(self, s: Stmt) -> None:
        """All threads wait for each other before `s` where the generated code has them wait."""
        self.stamp += id(s) in self.before

    def everywhere(self, e: Expr, env: Index, refs: dict[str, Lanes]) -> Lanes:
        """A value that every thread of a block computes for itself."""
        for x in loads(e):
            if self.memory[x.buffer].private:
                raise self.error(f"all threads read {x.buffer}, of which each has its own")
        return self.eval(e, env, refs, None)

    def nest(self, s: For, env: Index, refs: dict[str, Lanes]) -> None:
        """All threads of a nest of thread loops."""
        loops = perfect(s, "thread")
        known = self.nests.get(id(s))
        if known is None or not same(known.outer, env):
            known = self.nests[id(s)] = self.spread(loops, env)
        numbers = {k: v for k, v in env.items() if not isinstance(v, np.ndarray)}
        inside = {**known.env, **numbers}
        mask = known.mask
        for f in loops:
            if not f.extent.is_const:
                on = inside[f.var] < self.index(f.extent, inside)
                mask = on if mask is None else mask & on
        if mask is not None and mask.all():
            mask = None
        per = len(known.ids) // len(self.blocks)
        wide = {k: np.repeat(v, per) if v.ndim else v for k, v in refs.items()}
        kept = self.blocks, self.ids, self.who
        self.blocks, self.ids, self.who, self.nest_now = known.blocks, known.ids, known.who, known
        self.run(loops[-1].body, inside, wide, mask)
        self.blocks, self.ids, self.who = kept
        self.nest_now = None

    def spread(self, loops: list[For], env: Index) -> Nest:
        """Lanes of a nest of thread loops in the blocks that run together."""
        blocks = self.blocks
        count = len(blocks)
        sizes = [self.widths[id(f)] for f in loops]  # at most, later masked
        per = int(np.prod(sizes))
        cells = np.unravel_index(np.tile(np.arange(per), count), sizes)
        outer = {k: v for k, v in env.items() if isinstance(v, np.ndarray)}
        inside: Index = {k: np.repeat(v, per) for k, v in outer.items()}
        mask = np.ones(count * per, np.bool_)
        for f, c in zip(loops, cells, strict=True):
            inside[f.var] = c.astype(np.int64)
            if f.extent.is_const:
                mask &= inside[f.var] < f.extent.const
        ids, wide = np.arange(count * per, dtype=np.int64), np.repeat(blocks, per)
        who = wide * MAX_THREADS + np.tile(np.arange(per), count)
        return Nest(outer, inside, None if mask.all() else mask, wide, ids, who)

    # ---- statements

    def run(self, block: Block, env: Index, refs: dict[str, Lanes], mask: Lanes | None) -> None:
        for s in block:
            match s:
                case For(var, extent, body):
                    ends = self.index(extent, env)
                    for i in range(int(np.max(ends))):
                        active = mask
                        if isinstance(ends, np.ndarray):
                            active = (i < ends) if mask is None else mask & (i < ends)
                        self.run(body, {**env, var: i}, dict(refs), active)
                case Store(buffer, index, value):
                    self.store(buffer, index, self.eval(value, env, refs, mask), env, mask)
                case Let(name, value, bound):
                    v = self.eval(value, env, refs, mask)
                    refs[name] = v
                    if bound is not None:
                        env = {**env, name: np.clip(v, *bound).astype(np.int64)}
                case If(cond, then, orelse):
                    taken = np.broadcast_to(self.eval(cond, env, refs, mask), self.ids.shape)
                    for way, body in ((taken, then), (~taken, orelse)):
                        active = way if mask is None else way & mask
                        if body and active.any():
                            self.run(body, dict(env), dict(refs), None if active.all() else active)
                case Mma():
                    self.mma(s, env, mask)
                case Alloc(buffer):
                    per = "block" if self.nest_now is None else "lane"
                    made = Memory.scratch(buffer, len(self.ids), per)
                    before = self.memory.get(buffer.name)
                    if buffer.space == "shared" and before and len(before.data) == len(made.data):
                        made.marks = before.marks  # the same memory in every turn of a loop
                    self.memory[buffer.name] = made

    def mma(self, s: Mma, env: Index, mask: Lanes | None) -> None:
        """Tensor cores work for whole warps: all threads, 32 at a time, their lanes in order."""
        lanes = np.broadcast_to(np.asarray(self.index(s.lane, env)), self.ids.shape)
        if mask is not None or not np.array_equal(lanes, self.ids % mma.LANES):
            raise self.error("not all 32 threads of a warp reach a `mma`, or not in order")
        held = self.held.setdefault(id(s), [(*s.index, Ix(i)) for i in range(mma.HELD)])
        places = [mma.position(s.lane, i) for i in range(mma.HELD)]
        sums = [self.load(Load(s.buffer, at, mma.sum_of(s)), env, None) for at in held]
        totals = [v.astype(np.float64) if s.a.dtype.is_float else v for v in sums]
        for k in range(s.extent):
            inner = {**env, s.k: k}
            x, y = (
                {
                    p[n]: mma.widened(self.load(e, {**inner, var: self.index(p[n], env)}, None))
                    for p in places
                }
                for n, (var, e) in enumerate(((s.row, s.a), (s.col, s.b)))
            )
            totals = [t + x[row] * y[col] for t, (row, col) in zip(totals, places, strict=True)]
        for at, total, v in zip(held, totals, sums, strict=True):
            self.store(s.buffer, at, total.astype(v.dtype), env, None)

    # ---- memory

    def locate(
        self, name: str, index: tuple[Ix, ...], env: Index, mask: Lanes | None
    ) -> tuple[Memory, Lanes]:
        """A buffer and the flat position of each lane's element in it; lanes that are off get 0."""
        m = self.memory[name]
        place = self.place(m, index, env) if mask is None else None
        if place is not None and self.nest_now is not None and place in self.nest_now.places:
            return m, self.nest_now.places[place]
        at: Any = 0
        for form, n in zip(index, m.buffer.shape, strict=True):
            i = self.index(form, env)
            if mask is not None and isinstance(i, np.ndarray):
                i = np.where(mask, i, 0)
            least, most = (i.min(), i.max()) if isinstance(i, np.ndarray) else (i, i)
            if least < 0 or most >= n:
                where = int(least if least < 0 else most)
                raise self.error(f"{name}: index {where} ({form}) is outside 0..{n - 1}")
            at = at * n + i
        if m.per != "all":
            copy = self.ids if m.per == "lane" else self.blocks - self.first
            at = at + copy * (len(m.data) // m.copies)
        if not isinstance(at, np.ndarray):
            at = np.full(self.ids.shape, at)
        if place is not None and self.nest_now is not None:
            self.nest_now.keep(place, at)
        return m, at

    def place(self, m: Memory, index: tuple[Ix, ...], env: Index) -> Place | None:
        """What the positions of all lanes of a nest depend on; None where that is not told apart."""
        if self.nest_now is None:
            return None
        names = self.names.get(id(index), (index, ()))[1]
        if id(index) not in self.names:
            names = tuple(sorted(set[str]().union(*map(variables, index))))
            self.names[id(index)] = (
                index,
                names,
            )  # keeps the index, so that its identity stays its own
        numbers: list[int] = []
        for v in names:
            value = env[v]
            if not isinstance(value, np.ndarray):
                numbers.append(value)
            elif value is not self.nest_now.env.get(v):
                return None
        return id(m.buffer), m.copies, id(index), tuple(numbers)

    def load(self, e: Load, env: Index, mask: Lanes | None) -> Lanes:
        m, at = self.locate(e.buffer, e.index, env, mask)
        if mask is not None:
            self.noted(m.read, at[mask], self.who[mask])
            return m.data[at]
        found = m.again(at, self.stamp)
        if found is None:
            self.noted(m.read, at, self.who)
            found = m.remember(at, self.stamp)
        return found

    def store(
        self, name: str, index: tuple[Ix, ...], value: Lanes, env: Index, mask: Lanes | None
    ) -> None:
        m, at = self.locate(name, index, env, mask)
        value, who = np.broadcast_to(value, self.ids.shape), self.who
        if mask is not None:
            at, value, who = at[mask], value[mask], who[mask]
        self.noted(m.write, at, who)
        m.put(at, value)

    def noted(self, note: Callable[[Lanes, Lanes, int], None], at: Lanes, who: Lanes) -> None:
        """Note an access; complaints name the kernel."""
        try:
            note(at, who, self.stamp)
        except IRError as err:
            raise self.error(str(err)) from None
        except IndexError as err:  # more threads than the scratch around them was made for
            raise self.error(f"threads share scratch of their surroundings: {err}") from None

    # ---- values

    def index(self, form: Ix, env: Index) -> Any:
        """An index form for all lanes: an int, or one value per lane."""
        total: Any = form.const
        for atom, coef in form.terms:
            match atom:
                case str():
                    v = env[atom]
                case FloorDiv(num, den):
                    v = self.index(num, env) // den
                case Mod(num, den):
                    v = self.index(num, env) % den
                case Extremum(op, a, b):
                    pick = np.minimum if op == "min" else np.maximum
                    v = pick(self.index(a, env), self.index(b, env))
            total = total + coef * v
        return total

    def eval(
        self,
        e: Expr,
        env: Index,
        refs: dict[str, Lanes],
        mask: Lanes | None,
        known: dict[int, Lanes] | None = None,
    ) -> Lanes:
        """Values of all lanes; expressions that `e` shares are computed once (`known`, by identity)."""
        known = {} if known is None else known
        if id(e) not in known:
            known[id(e)] = self._eval(e, env, refs, mask, known)
        return known[id(e)]

    def _eval(
        self,
        e: Expr,
        env: Index,
        refs: dict[str, Lanes],
        mask: Lanes | None,
        known: dict[int, Lanes],
    ) -> Lanes:
        def go(x: Expr) -> Lanes:
            return self.eval(x, env, refs, mask, known)

        match e:
            case Const(value, dtype):
                return np.asarray(value).astype(dtype.numpy)
            case FromIndex(index, dtype):
                return np.asarray(self.index(index, env)).astype(dtype.numpy)
            case Ref(name, _):
                return refs[name]
            case Load():
                return self.load(e, env, mask)
            case Unary(op, a):
                return values.unary(op, go(a))
            case Binary(op, a, b):
                return values.binary(op, go(a), go(b), a.dtype)
            case Fma(a, b, c):
                return values.fma(go(a), go(b), go(c))
            case Dot(var, n, a, b, c):
                total = go(c)
                for i in range(n):
                    inner = {**env, var: i}
                    left = self.eval(a, inner, refs, mask)
                    total = values.fma(left, self.eval(b, inner, refs, mask), total)
                return total
            case Select(cond, a, b):
                taken = np.broadcast_to(go(cond), self.ids.shape)
                sides = []
                for way, x in ((taken, a), (~taken, b)):
                    active = way if mask is None else way & mask
                    whole = active.all()
                    same = known if whole and mask is None else None
                    sides.append(self.eval(x, env, refs, None if whole else active, same))
                return np.where(taken, *sides)
            case Cast(a, dtype):
                return values.cast(go(a), dtype)
            case Bitcast(a, dtype):
                return np.ascontiguousarray(go(a)).view(dtype.numpy)
