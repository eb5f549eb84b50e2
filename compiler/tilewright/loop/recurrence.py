"""Loops of recurrent cells: time runs serially inside one kernel, the state stays in its scratch.

In: a `KernelBuilder` whose inputs are x[T, N, G*H] (the input's part of every gate, biases included),
r[G, H, H] (element [g, k, j] takes state k to unit j of gate g), h0[N, H]?, lengths[N]?, then what a cell
has of its own. Where r holds integers, `Bytes` of a step stand for h. Out: elements of y[T + S, N, H]: the state h after every step, then the last of all S states.
Invariant: sequences are independent, so blocks of `ROWS` of them share every weight that is loaded; a
sequence that is over keeps its state and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tilewright.core.dtypes import I32, I64, DType
from tilewright.core.index import Ix
from tilewright.loop.builder import (
    KernelBuilder,
    Local,
    Reader,
    add,
    binary,
    cast,
    const,
    div,
    fma,
    from_index,
    maximum,
    minimum,
    mul,
    select,
    sub,
    unary,
)
from tilewright.loop.ir import Expr

#: Sequences that one pass over the weights serves.
ROWS = 4


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation function of ONNX with its parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0


def activate(f: Activation, x: Expr) -> Expr:
    """`f` of `x`, a float that is cheap to compute twice."""
    t = x.dtype
    alpha, beta, zero, one = (const(v, t) for v in (f.alpha, f.beta, 0.0, 1.0))
    match f.name:
        case "Sigmoid":
            return unary("sigmoid", x)
        case "Tanh":
            return unary("tanh", x)
        case "Relu":
            return maximum(x, zero)
        case "Affine":
            return fma(alpha, x, beta)
        case "LeakyRelu":
            return select(binary("lt", x, zero), mul(alpha, x), x)
        case "ThresholdedRelu":
            return select(binary("gt", x, alpha), x, zero)
        case "ScaledTanh":
            return mul(alpha, unary("tanh", mul(beta, x)))
        case "HardSigmoid":
            return minimum(maximum(fma(alpha, x, beta), zero), one)
        case "Elu":
            grown = mul(alpha, sub(unary("exp", minimum(x, zero)), one))
            return select(binary("lt", x, zero), grown, x)
        case "Softsign":
            return div(x, add(one, unary("abs", x)))
        case "Softplus":
            tail = unary("log", add(one, unary("exp", unary("neg", unary("abs", x)))))
            return add(maximum(x, zero), tail)
        case _:
            raise AssertionError(f.name)


@dataclass(slots=True)
class Bytes:
    """The state in whole steps of its own range, what a step is worth, and what weights [G*H] are worth."""

    h: Local
    step: Expr
    scale: Reader


@dataclass(slots=True)
class Cell:
    """One block of sequences on its way through time; made by `steps`."""

    k: KernelBuilder
    x: Reader
    r: Reader
    lengths: Reader | None
    functions: Sequence[Activation]
    clip: float
    base: Ix
    """Number of the block's first sequence."""
    rows: int
    t: Ix
    h: Local
    new: Local
    """The state after this step; it becomes `h` when all units are done."""
    bytes: Bytes | None = None
    """The state of this step in bytes, where weights are integers."""

    @property
    def dtype(self) -> DType:
        return self.x.dtype

    @property
    def units(self) -> int:
        return self.r.shape[2]

    @contextmanager
    def each(self) -> Iterator[tuple[Ix, Ix]]:
        """Every sequence of the block and every unit."""
        with self.k.loop("b", self.rows) as b, self.k.loop("j", self.units) as j:
            yield b, j

    def sums(
        self, gates: Sequence[int], state: Local, b: Ix, j: Ix, own: bool = True
    ) -> list[Expr]:
        """Per gate the state's part, plus the input's part where it is its `own`."""
        if self.bytes is not None:
            return self.whole_sums(gates, self.bytes, b, j)
        sums = [self.k.local("a", self.dtype) for _ in gates]
        for g, a in zip(gates, sums, strict=True):
            self.k.set(a, self.input(g, b, j) if own else const(0.0, self.dtype))
        self.accumulate(dict(zip(gates, sums, strict=True)), state, b, j)
        return [a() for a in sums]

    def whole_sums(self, gates: Sequence[int], state: Bytes, b: Ix, j: Ix) -> list[Expr]:
        """The same of bytes: products are summed in i32."""
        sums = [self.k.local("a", I32) for _ in gates]
        for a in sums:
            self.k.set(a, const(0, I32))
        with self.k.loop("k", self.units) as i:
            for g, a in zip(gates, sums, strict=True):
                self.k.set(a, fma(state.h(b, i), cast(self.r(g, i, j), I32), a()))
        return [
            fma(
                cast(a(), self.dtype),
                mul(state.step, state.scale(g * self.units + j)),
                self.input(g, b, j),
            )
            for g, a in zip(gates, sums, strict=True)
        ]

    def accumulate(self, sums: dict[int, Local], state: Local, b: Ix, j: Ix) -> None:
        """Add the product of `state` and the weights of every gate to its sum."""
        with self.k.loop("k", self.units) as i:
            for g, a in sums.items():
                self.k.set(a, fma(state(b, i), self.r(g, i, j), a()))

    def input(self, gate: int, b: Ix, j: Ix) -> Expr:
        """The input's part of a gate."""
        return self.x(self.t, self.base + b, gate * self.units + j)

    def gate(self, number: int, v: Expr) -> Expr:
        """Activation `number` of a value that is clipped first."""
        if self.clip:
            lo, hi = const(-self.clip, self.dtype), const(self.clip, self.dtype)
            v = minimum(maximum(v, lo), hi)
        return self.k.let("gate", activate(self.functions[number], self.k.let("v", v)))

    def deliver(self, b: Ix, j: Ix, state: Expr, kept: Sequence[tuple[Local, Expr]] = ()) -> None:
        """The new state of a unit, and of its further states `kept`."""
        k, at = self.k, (b, j)
        shown = state
        if self.lengths is not None:
            length = cast(self.lengths(self.base + b), I64)
            alive = k.let("alive", binary("lt", from_index(self.t, I64), length))
            state = k.let("state", state)
            shown = select(alive, state, const(0.0, self.dtype))
            state = select(alive, state, self.h(*at))
            kept = [(local, select(alive, v, local(*at))) for local, v in kept]
        else:
            shown = state = k.let("state", state)
        for local, v in kept:
            k.set(local, v, *at)
        k.set(self.new, state, *at)
        k.emit((self.t, self.base + b, j), shown)


def unroll_time(
    k: KernelBuilder,
    functions: Sequence[Activation],
    clip: float,
    reverse: bool,
    more: Sequence[Reader | None],
    scratch: int,
    step: Callable[[Cell, Sequence[Local]], None],
    scale: Reader | None = None,
) -> None:
    """All steps of all sequences. `more`: initial values of states besides h (None: zeros); `step` gets
    those states, then `scratch` further buffers of one number per sequence and unit. `scale`: what integer
    weights are worth; the state's range is that of all sequences then, which are one block."""
    x, r, h0, lengths = k.inputs[:4]
    assert x is not None and r is not None
    steps, count = x.shape[:2]
    rows = min(count, ROWS) if scale is None else count
    blocks, rest = divmod(count, rows) if rows else (0, 0)
    for start, number, size in ((0, blocks, rows), (blocks * rows, 1, rest)):
        if not size or not number:
            continue
        with k.loop("n", number) as n:
            shape = (size, r.shape[2])
            new = k.local("new", x.dtype, shape)
            states = [k.local(name, x.dtype, shape) for name in ("h", "c")[: 1 + len(more)]]
            extra = [k.local("e", x.dtype, shape) for _ in range(scratch)]
            base = start + n * size
            cell = Cell(k, x, r, lengths, functions, clip, base, size, Ix(0), states[0], new)
            for state, initial in zip(states, (h0, *more), strict=True):
                with k.loop("bi", size) as b, k.loop("ji", r.shape[2]) as j:
                    zero = const(0.0, x.dtype)
                    k.set(state, zero if initial is None else initial(base + b, j), b, j)
            whole = None if scale is None else k.local("q", I32, shape)
            with k.loop("t", steps) as t:
                cell.t = steps - 1 - t if reverse else t
                if whole is not None and scale is not None:
                    cell.bytes = _to_bytes(cell, whole, scale)
                step(cell, [*states[1:], *extra])
                with k.loop("bc", size) as b, k.loop("jc", r.shape[2]) as j:
                    k.set(states[0], new(b, j), b, j)
            for i, state in enumerate(states):
                with k.loop("bf", size) as b, k.loop("jf", r.shape[2]) as j:
                    k.emit((Ix(steps + i), base + b, j), state(b, j))


def _to_bytes(cell: Cell, whole: Local, scale: Reader) -> Bytes:
    """Quantise the state as DynamicQuantizeLinear does; `whole` gets bytes less their zero point."""
    k, t, (rows, units) = cell.k, cell.dtype, cell.h.buffer.shape
    zero = const(0.0, t)
    low, high = k.local("low", t), k.local("high", t)
    k.set(low, zero)
    k.set(high, zero)
    with k.loop("br", rows) as b, k.loop("jr", units) as j:
        v = k.let("v", cell.h(b, j))
        k.set(low, minimum(low(), v))
        k.set(high, maximum(high(), v))
    span = k.let("span", div(sub(high(), low()), const(255.0, t)))
    step = k.let("step", select(binary("eq", span, zero), const(1.0, t), span))
    most = const(255.0, t)
    origin = k.let("origin", minimum(unary("round", div(unary("neg", low()), step)), most))
    with k.loop("bq", rows) as b, k.loop("jq", units) as j:
        steps = add(unary("round", div(cell.h(b, j), step)), origin)
        k.set(whole, cast(sub(minimum(maximum(steps, zero), most), origin), I32), b, j)
    return Bytes(whole, step, scale)


def rnn_step(cell: Cell, states: Sequence[Local]) -> None:
    """h = f(x + h R)."""
    with cell.each() as (b, j):
        (a,) = cell.sums((0,), cell.h, b, j)
        cell.deliver(b, j, cell.gate(0, a))


def lstm_step(cell: Cell, states: Sequence[Local], peephole: Reader | None, coupled: bool) -> None:
    """Gates in ONNX's order: input, output, forget, cell; `coupled`: the forget gate is 1 - input."""
    k, c, units = cell.k, states[0], cell.units
    one = const(1.0, cell.dtype)

    def seen(gate: int, a: Expr, at: Expr, j: Ix) -> Expr:
        return a if peephole is None else fma(peephole(gate * units + j), at, a)

    with cell.each() as (b, j):
        ai, ao, af, ac = cell.sums((0, 1, 2, 3), cell.h, b, j)
        before = k.let("before", c(b, j))
        i = cell.gate(0, seen(0, ai, before, j))
        f = k.let("f", sub(one, i)) if coupled else cell.gate(0, seen(2, af, before, j))
        after = k.let("after", fma(f, before, mul(i, cell.gate(1, ac))))
        o = cell.gate(0, seen(1, ao, after, j))
        cell.deliver(b, j, mul(o, activate(cell.functions[2], after)), [(c, after)])


def gru_step(cell: Cell, states: Sequence[Local], bias: Reader | None, linear: bool) -> None:
    """Gates in ONNX's order: update, reset, candidate. `linear`: the reset gate scales the candidate's sum
    over the state, `bias` included, instead of the state."""
    k, one = cell.k, const(1.0, cell.dtype)

    def mixed(z: Expr, candidate: Expr, before: Expr) -> Expr:
        return fma(z, before, mul(sub(one, z), candidate))

    if linear:
        with cell.each() as (b, j):
            sums = [k.local("a", cell.dtype) for _ in range(3)]
            for g in (0, 1):
                k.set(sums[g], cell.input(g, b, j))
            k.set(sums[2], const(0.0, cell.dtype) if bias is None else bias(j))
            cell.accumulate(dict(enumerate(sums)), cell.h, b, j)
            z, r = cell.gate(0, sums[0]()), cell.gate(0, sums[1]())
            candidate = cell.gate(1, fma(r, sums[2](), cell.input(2, b, j)))
            cell.deliver(b, j, mixed(z, candidate, cell.h(b, j)))
        return
    update, scaled = states
    with cell.each() as (b, j):
        az, ar = cell.sums((0, 1), cell.h, b, j)
        k.set(update, cell.gate(0, az), b, j)
        k.set(scaled, mul(cell.gate(0, ar), cell.h(b, j)), b, j)
    with cell.each() as (b, j):
        (a,) = cell.sums((2,), scaled, b, j)
        candidate = cell.gate(1, a)
        cell.deliver(b, j, mixed(k.let("z", update(b, j)), candidate, cell.h(b, j)))
