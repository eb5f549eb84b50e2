"""The loop IR as a GPU runs it: all threads at once, barriers between their nests, races found.

In: a kernel whose loops are bound to blocks and threads, NumPy arrays as for `loop.interp`. Out: arrays
changed. Invariant: the values are those of the serial interpreter; beyond that an `IRError` names every
element that one thread writes and another touches before the next barrier (or another block, ever),
every access outside a buffer and every read of scratch that was not written.

All threads of many blocks are lanes of NumPy arrays, so that whole models run; statements are executed
in lockstep, which any order of threads must agree with where there are no races.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import DType
from tilewright.core.index import Extremum, FloorDiv, Ix, Mod
from tilewright.errors import IRError
from tilewright.loop import interp, mma
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Buffer,
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
    Store,
    Unary,
)

Lanes = npt.NDArray[Any]
Index = dict[str, Any]  # variable -> int, or one value per lane

#: Threads that are executed together; more blocks wait.
MAX_LANES = 1 << 16


def run(kernel: Kernel, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Execute `kernel` as a GPU would; arguments as for `loop.interp.run`."""
    interp.check_arguments(kernel, arrays)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        machine = _Grid(kernel)
        for p in kernel.params:
            machine.memory[p.buffer.name] = _Memory.of(
                p.buffer, arrays[p.buffer.name], p.role == "out"
            )
        machine.top(kernel.body)
        for p in kernel.params:
            if p.role == "out":
                arrays[p.buffer.name][...] = machine.memory[p.buffer.name].data.reshape(
                    p.buffer.shape
                )


@dataclass(slots=True)
class _Memory:
    """A buffer, one copy per block (`shared`) or thread (private), and who touched what last.

    `writer`, `reader`: the lane (-2: several) in the nest of threads numbered `wrote`, `read`;
    `owner`: the block that wrote an element of global memory. Empty where races cannot happen.
    """

    buffer: Buffer
    data: Lanes
    copies: int
    per: str
    tracked: bool
    written: Lanes | None = None
    marks: dict[str, Lanes] = field(default_factory=dict[str, Lanes])

    @classmethod
    def of(cls, buffer: Buffer, data: Lanes, tracked: bool) -> _Memory:
        """A parameter."""
        flat = np.array(data).reshape(-1)
        made = cls(buffer, flat, 1, "all", tracked)
        made.track(("wrote", "writer", "read", "reader", "owner"))
        return made

    @classmethod
    def scratch(cls, buffer: Buffer, copies: int, per: str) -> _Memory:
        size = copies * int(np.prod(buffer.shape))
        made = cls(buffer, np.zeros(size, buffer.dtype.numpy), copies, per, per == "block")
        made.written = np.zeros(size, np.bool_)
        made.track(("wrote", "writer", "read", "reader"))
        return made

    def track(self, names: tuple[str, ...]) -> None:
        if self.tracked:
            self.marks = {n: np.full(self.data.shape, -1, np.int64) for n in names}


class _Grid:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory: dict[str, _Memory] = {}
        self.blocks = np.zeros(1, np.int64)  # block of each lane
        self.ids = np.zeros(1, np.int64)  # lane of the chunk
        self.stamp = 0
        self.in_nest = False
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
        nest = [s]
        while len(nest[-1].body) == 1:
            (inner,) = nest[-1].body
            if not isinstance(inner, For) or inner.kind != "block":
                break
            nest.append(inner)
        body = nest[-1].body
        sizes = [f.extent.const for f in nest]
        total = int(np.prod(sizes))
        chunk = max(1, MAX_LANES // max(1, _threads(body)))
        for first in range(0, total, chunk):
            count = min(chunk, total - first)
            cells = np.unravel_index(np.arange(first, first + count), sizes)
            env: Index = {f.var: c.astype(np.int64) for f, c in zip(nest, cells, strict=True)}
            self.start(count, env, body)

    def start(self, count: int, env: Index, body: Block) -> None:
        """Run `count` blocks together; block-level variables have one value per block."""
        self.blocks = np.arange(count, dtype=np.int64) + self.block_count
        self.first = self.block_count
        self.block_count += count
        self.ids = np.arange(count, dtype=np.int64)
        self.stamp += 1
        self.run(body, env, {}, None)

    def nest(self, s: For, env: Index, refs: dict[str, Lanes]) -> None:
        """All threads of a nest of thread loops; a barrier before and after."""
        loops = [s]
        while len(loops[-1].body) == 1:
            (inner,) = loops[-1].body
            if not isinstance(inner, For) or inner.kind != "thread":
                break
            loops.append(inner)
        blocks = self.blocks
        count = len(blocks)
        sizes: list[int] = []
        inside: Index = dict(env)
        for f in loops:  # the largest extent over all blocks, later masked
            sizes.append(int(np.max(self.index(f.extent, inside))))
            inside[f.var] = 0
        per = int(np.prod(sizes))
        lanes = count * per
        cells = np.unravel_index(np.tile(np.arange(per), count), sizes)
        spread: Index = {
            k: np.repeat(v, per) if isinstance(v, np.ndarray) else v for k, v in env.items()
        }
        mask = np.ones(lanes, np.bool_)
        for f, c in zip(loops, cells, strict=True):
            spread[f.var] = c.astype(np.int64)
            mask &= spread[f.var] < self.index(f.extent, spread)
        kept = self.blocks, self.ids
        self.blocks, self.ids = np.repeat(blocks, per), np.arange(lanes, dtype=np.int64)
        self.stamp += 1
        self.in_nest = True
        wide = {k: np.repeat(v, per) if v.ndim else v for k, v in refs.items()}
        self.run(loops[-1].body, spread, wide, None if mask.all() else mask)
        self.in_nest = False
        self.stamp += 1
        self.blocks, self.ids = kept

    # ---- statements

    def run(self, block: Block, env: Index, refs: dict[str, Lanes], mask: Lanes | None) -> None:
        for s in block:
            match s:
                case For(var, extent, body, kind):
                    if kind == "thread" and not self.in_nest:
                        if mask is not None:
                            raise self.error(f"threads `{var}` start where blocks take two ways")
                        self.nest(s, env, refs)
                        continue
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
                    per = "lane" if self.in_nest else "block"
                    self.memory[buffer.name] = _Memory.scratch(buffer, len(self.ids), per)

    def mma(self, s: Mma, env: Index, mask: Lanes | None) -> None:
        """Tensor cores work for whole warps: all threads, 32 at a time, their lanes in order."""
        lanes = np.broadcast_to(np.asarray(self.index(s.lane, env)), self.ids.shape)
        if mask is not None or not np.array_equal(lanes, self.ids % mma.LANES):
            raise self.error("not all 32 threads of a warp reach a `mma`, or not in order")
        held = [(*s.index, Ix(i)) for i in range(mma.HELD)]
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
    ) -> tuple[_Memory, Lanes]:
        """A buffer and the flat position of each lane's element in it; lanes that are off get 0."""
        m = self.memory[name]
        at: Any = np.zeros(self.ids.shape, np.int64)
        for form, n in zip(index, m.buffer.shape, strict=True):
            i = np.broadcast_to(np.asarray(self.index(form, env)), self.ids.shape)
            bad = (i < 0) | (i >= n)
            if mask is not None:
                bad = bad & mask
            if bad.any():
                where = int(i[np.argmax(bad)])
                raise self.error(f"{name}: index {where} ({form}) is outside 0..{n - 1}")
            at = at * n + i
        if m.per != "all":
            copy = self.ids if m.per == "lane" else self.blocks - self.first
            at = at + copy * (len(m.data) // m.copies)
        return m, at if mask is None else np.where(mask, at, 0)

    def load(self, e: Load, env: Index, mask: Lanes | None) -> Lanes:
        m, at = self.locate(e.buffer, e.index, env, mask)
        on = at if mask is None else at[mask]
        if m.written is not None and not m.written[on].all():
            raise self.error(f"{e.buffer} is read before it is written")
        if m.tracked:
            ids = self.ids if mask is None else self.ids[mask]
            k = m.marks
            self.check(m, on, ids, "read")
            now = k["read"][on] == self.stamp
            k["reader"][on] = np.where(now & (k["reader"][on] != ids), -2, ids)
            several = k["reader"][on] != ids  # lanes that read the same element just now
            k["reader"][on[several]] = -2
            k["read"][on] = self.stamp
        return m.data[at]

    def store(
        self, name: str, index: tuple[Ix, ...], value: Lanes, env: Index, mask: Lanes | None
    ) -> None:
        m, at = self.locate(name, index, env, mask)
        value = np.broadcast_to(value, self.ids.shape)
        ids = self.ids
        if mask is not None:
            at, value, ids = at[mask], value[mask], ids[mask]
        if m.tracked:
            if len(np.unique(at)) != len(at):
                raise self.error(f"several threads write the same element of {name}: a race")
            self.check(m, at, ids, "written")
            k = m.marks
            others = (k["read"][at] == self.stamp) & (k["reader"][at] != ids)
            if others.any():
                raise self.error(f"{name} is written while another thread reads it: a race")
            k["wrote"][at], k["writer"][at] = self.stamp, ids
            if "owner" in k:
                k["owner"][at] = self.blocks if mask is None else self.blocks[mask]
        m.data[at] = value
        if m.written is not None:
            m.written[at] = True

    def check(self, m: _Memory, at: Lanes, ids: Lanes, how: str) -> None:
        """Complain if another thread of this nest, or another block, wrote what is touched now."""
        k = m.marks
        if ((k["wrote"][at] == self.stamp) & (k["writer"][at] != ids)).any():
            raise self.error(f"{m.buffer.name} is {how} while another thread writes it: a race")
        if "owner" in k:
            mine = self.blocks[ids]
            if ((k["owner"][at] >= 0) & (k["owner"][at] != mine)).any():
                raise self.error(f"{m.buffer.name} is {how} where another block writes: a race")

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

    def eval(self, e: Expr, env: Index, refs: dict[str, Lanes], mask: Lanes | None) -> Lanes:
        def go(x: Expr) -> Lanes:
            return self.eval(x, env, refs, mask)

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
                return _unary(op, go(a))
            case Binary(op, a, b):
                return _binary(op, go(a), go(b), a.dtype)
            case Fma(a, b, c):
                return _fma(go(a), go(b), go(c))
            case Dot(var, n, a, b, c):
                total = go(c)
                for i in range(n):
                    inner = {**env, var: i}
                    left = self.eval(a, inner, refs, mask)
                    total = _fma(left, self.eval(b, inner, refs, mask), total)
                return total
            case Select(cond, a, b):
                taken = np.broadcast_to(go(cond), self.ids.shape)
                sides = []
                for way, x in ((taken, a), (~taken, b)):
                    active = way if mask is None else way & mask
                    sides.append(self.eval(x, env, refs, None if active.all() else active))
                return np.where(taken, *sides)
            case Cast(a, dtype):
                return _cast(go(a), dtype)
            case Bitcast(a, dtype):
                return np.ascontiguousarray(go(a)).view(dtype.numpy)


def _threads(body: Block) -> int:
    """A bound on the threads that a block starts at once."""
    most = 1
    for s in body:
        inner: list[Block] = []
        if isinstance(s, For):
            inner = [s.body]
            if s.kind == "thread":
                size = s.extent.const if s.extent.is_const else 1024
                most = max(most, size * _threads(s.body))
                continue
        elif isinstance(s, If):
            inner = [s.then, s.orelse]
        most = max([most, *map(_threads, inner)])
    return most


# ---------------------------------------------------------------- the interpreter's operations on arrays


def _scalars(f: Any, dtype: Any, *arrays: Lanes) -> Lanes:
    """The interpreter's own scalar operation, element by element."""
    wide = np.broadcast_arrays(*arrays)
    flat = [f(*values) for values in zip(*[w.reshape(-1) for w in wide], strict=True)]
    return np.array(flat, dtype).reshape(wide[0].shape)


def _unary(op: str, a: Lanes) -> Lanes:
    if op == "erf":
        return _scalars(lambda v: interp.unary("erf", v), a.dtype, a)
    return interp.unary_lanes(op, a)


def _binary(op: str, a: Lanes, b: Lanes, dtype: DType) -> Lanes:
    if dtype.is_integer and op in ("div", "mod", "pow"):
        return _scalars(lambda x, y: interp.binary(op, x, y, dtype), dtype.numpy, a, b)
    return np.asarray(interp.binary(op, a, b, dtype))


def _fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    if c.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    return np.asarray(a * b + c)


def _cast(v: Lanes, dtype: DType) -> Lanes:
    if dtype.is_integer and v.dtype.kind == "f":
        info = np.iinfo(str(dtype.numpy))
        whole = np.nan_to_num(
            np.trunc(v.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf
        )
        low, high = whole <= info.min, whole >= info.max
        inside = np.where(low | high, 0.0, whole).astype(dtype.numpy)
        return np.where(low, info.min, np.where(high, info.max, inside)).astype(dtype.numpy)
    return v != 0 if dtype.kind == "bool" else v.astype(dtype.numpy)
