"""Builds unscheduled kernels: what an operator file's `lower` writes into.

In: calls from operator files. Out: a `Kernel` of plain loops.
Invariant: every index that enters the IR is simplified under the ranges of the enclosing loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tilewright.core.dtypes import BOOL, F32, I64, DType
from tilewright.core.index import IntLike, Ix, bounds, ix, simplify
from tilewright.loop.ir import (
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Let,
    Load,
    Ref,
    Select,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    dense,
)


@dataclass(slots=True)
class Reader:
    """A tensor as an operator sees it: logical `shape`, `dtype`, and elements by logical index."""

    shape: tuple[int, ...]
    dtype: DType
    read: Callable[[tuple[Ix, ...]], Expr]

    def __call__(self, *index: IntLike) -> Expr:
        """The element at `index` (one entry per dim)."""
        assert len(index) == len(self.shape), (index, self.shape)
        return self.read(tuple(ix(i) for i in index))

    def broadcast(self, index: Sequence[Ix]) -> Expr:
        """The element that NumPy broadcasting pairs with output element `index`."""
        tail = index[len(index) - len(self.shape) :]
        return self.read(
            tuple(Ix(0) if n == 1 else i for n, i in zip(self.shape, tail, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Local:
    """A scratch buffer of the kernel under construction."""

    buffer: Buffer

    def __call__(self, *index: IntLike) -> Load:
        return Load(self.buffer.name, tuple(ix(i) for i in index), self.buffer.dtype)


class KernelBuilder:
    """Collects statements. Operator files use:

    inputs[i]        `Reader` of input i (None if absent)
    out_shape        logical shape of output 0, `out_dtype` its dtype
    emit(idx, v)     deliver element `idx` of output 0 (fused followers are applied here)
    result(*idx)     an element of output 0 that was delivered before (operators that are `alone`)
    loop(name, n)    `with k.loop("i", 10) as i:` opens a loop
    local(...)       scratch; `set` and `add` write it, calling it reads it
    """

    def __init__(
        self,
        inputs: Sequence[Reader | None] = (),
        out_shape: tuple[int, ...] = (),
        out_dtype: DType = F32,
        emit: Callable[[tuple[Ix, ...], Expr], None] | None = None,
    ) -> None:
        self.inputs = list(inputs)
        self.out_shape = out_shape
        self.out_dtype = out_dtype
        self._emit = emit
        self.result: Reader | None = None
        self._blocks: list[list[Stmt]] = [[]]
        self.ranges: dict[str, tuple[int, int]] = {}
        self._names: dict[str, int] = {}

    # ---- structure

    def fresh(self, hint: str) -> str:
        """A name not used in this kernel yet: `hint`, then `hint_1`, ..."""
        n = self._names.get(hint, 0)
        self._names[hint] = n + 1
        return hint if n == 0 else f"{hint}_{n}"

    @contextmanager
    def loop(self, name: str, extent: IntLike) -> Iterator[Ix]:
        """Open a loop from 0 to `extent` - 1; yields the index. A loop of one iteration vanishes."""
        size = simplify(ix(extent), self.ranges)
        if size.is_const and size.const == 1:
            yield Ix(0)
            return
        var = self.fresh(name)
        _, hi = bounds(size, self.ranges)
        assert hi is not None, f"loop {name} has no bound"
        self.ranges[var] = (0, max(hi - 1, 0))
        self._blocks.append([])
        yield ix(var)
        body = tuple(self._blocks.pop())
        self.stmt(For(var, size, body))

    @contextmanager
    def when(self, cond: Expr) -> Iterator[None]:
        """Open a conditional block."""
        self._blocks.append([])
        yield
        body = tuple(self._blocks.pop())
        self.stmt(If(cond, body))

    def stmt(self, statement: Stmt) -> None:
        """Append a statement to the open block."""
        self._blocks[-1].append(statement)

    def finish(self) -> Block:
        """The statements built so far."""
        assert len(self._blocks) == 1
        return tuple(self._blocks[0])

    # ---- data

    def local(self, name: str, dtype: DType, shape: tuple[int, ...] = ()) -> Local:
        """Scratch: a scalar (shape `()`) that schedules turn into registers, or a small array."""
        buffer = dense(self.fresh(name), dtype, shape, "register" if shape == () else "local")
        self.stmt(Alloc(buffer))
        return Local(buffer)

    def set(self, local: Local, value: Expr, *index: IntLike) -> None:
        """Write scratch element `index`."""
        self.stmt(Store(local.buffer.name, self.simplify(index), value))

    def let(self, name: str, value: Expr) -> Ref:
        """Name a value so that it is computed once."""
        unique = self.fresh(name)
        self.stmt(Let(unique, value))
        return Ref(unique, value.dtype)

    def index(self, value: Expr, extent: int, wrap: bool = True) -> Ix:
        """A data-dependent index, clamped into 0 .. extent-1 (`wrap`: negatives count from the end)."""
        v = value if value.dtype is I64 else Cast(value, I64)
        if wrap:
            v = Select(Binary("lt", v, Const(0, I64)), Binary("add", v, Const(extent, I64)), v)
        v = Binary("min", Binary("max", v, Const(0, I64)), Const(extent - 1, I64))
        name = self.fresh("at")
        self.stmt(Let(name, v, (0, extent - 1)))
        self.ranges[name] = (0, extent - 1)
        return ix(name)

    def simplify(self, index: Sequence[IntLike]) -> tuple[Ix, ...]:
        """Simplify index forms under the ranges of the open loops."""
        return tuple(simplify(ix(i), self.ranges) for i in index)

    def emit(self, index: Sequence[IntLike], value: Expr) -> None:
        """Deliver element `index` of output 0."""
        assert self._emit is not None
        self._emit(self.simplify(index), value)


# ---------------------------------------------------------------- expression helpers


def const(value: float | int | bool, dtype: DType = F32) -> Const:
    """A literal."""
    return Const(value, dtype)


def unary(op: UnaryOp, a: Expr) -> Unary:
    return Unary(op, a)


def binary(op: BinaryOp, a: Expr, b: Expr) -> Binary:
    assert a.dtype is b.dtype, f"{op} of {a.dtype} and {b.dtype}"
    return Binary(op, a, b)


def add(a: Expr, b: Expr) -> Expr:
    return binary("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return binary("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return binary("mul", a, b)


def div(a: Expr, b: Expr) -> Expr:
    return binary("div", a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    return binary("max", a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    return binary("min", a, b)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    return Fma(a, b, c)


def cast(a: Expr, dtype: DType) -> Expr:
    """Numeric conversion, a no-op where the type already fits."""
    return a if a.dtype is dtype else Cast(a, dtype)


def select(cond: Expr, a: Expr, b: Expr) -> Expr:
    assert cond.dtype is BOOL
    return Select(cond, a, b)


def from_index(i: IntLike, dtype: DType) -> Expr:
    """An index form as a value."""
    return FromIndex(ix(i), dtype)


def index_in(i: IntLike, lo: int, hi: int) -> Expr:
    """The condition lo <= i < hi."""
    v = FromIndex(ix(i), I64)
    return Binary("and", Binary("ge", v, Const(lo, I64)), Binary("lt", v, Const(hi, I64)))
