"""Loop IR -> the text of one LLVM function.

In: a finished kernel (tails specialised, vector math expanded) and a `Target`. Out: LLVM IR text.
Invariant: straight translation. Loops marked `unroll` are emitted once per iteration with a constant
index, loops marked `vector` once with every value a vector; nothing here chooses a schedule. Register
buffers become stack slots that LLVM's SROA turns into SSA values, because all their indices are
constants by then. No access is wider than the schedule proved legal: partial vectors are masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tilewright.codegen import values
from tilewright.codegen.values import Value, llvm_type, memory_type
from tilewright.core.dtypes import I64, DType
from tilewright.core.index import (
    Atom,
    Extremum,
    FloorDiv,
    Ix,
    Mod,
    bounds,
    coefficient,
    substitute,
    variables,
)
from tilewright.errors import IRError
from tilewright.loop.ir import (
    Alloc,
    Binary,
    Bitcast,
    Block,
    Buffer,
    Cast,
    Const,
    Expr,
    Fma,
    For,
    FromIndex,
    If,
    Kernel,
    Let,
    Load,
    Ref,
    Select,
    Store,
    Unary,
)
from tilewright.schedule.target import Target

#: Scratch larger than this would not be safe on a device's stack.
MAX_STACK_BYTES = 1 << 18


@dataclass(slots=True)
class _Slot:
    """Where a buffer lives: pointer SSA name and strides in elements (padded for scratch)."""

    buffer: Buffer
    pointer: str
    strides: tuple[int, ...]
    scratch: bool
    size: int = 0


@dataclass(slots=True)
class _Vector:
    """The vector loop being emitted: its variable, `active` iterations in `lanes` lanes."""

    var: str
    active: int
    lanes: int


@dataclass(slots=True)
class _Scope:
    """What is known at the current point; copied on entry to a block."""

    index: dict[str, Ix] = field(default_factory=dict[str, Ix])  # variable -> constant or itself
    ssa: dict[str, str] = field(default_factory=dict[str, str])  # variable -> i64 SSA name
    lanes: dict[str, Value] = field(default_factory=dict[str, Value])  # per-lane index variables
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    refs: dict[str, Value] = field(default_factory=dict[str, Value])
    cache: dict[object, str] = field(default_factory=dict[object, str])

    def child(self) -> _Scope:
        return _Scope(
            dict(self.index), dict(self.ssa), dict(self.lanes), dict(self.ranges), dict(self.refs),
            dict(self.cache),
        )  # fmt: skip


def parallel_loop(kernel: Kernel) -> For | None:
    """The kernel's parallel loop: the only statement of its body, or there is none."""
    if (
        len(kernel.body) == 1
        and isinstance(kernel.body[0], For)
        and kernel.body[0].kind == "parallel"
    ):
        return kernel.body[0]
    return None


def parallel_extent(kernel: Kernel) -> int:
    """Iterations of the parallel loop (1 if there is none)."""
    loop = parallel_loop(kernel)
    return loop.extent.const if loop is not None else 1


def emit_kernel(kernel: Kernel, target: Target) -> tuple[str, list[str]]:
    """LLVM IR of `kernel` as an internal function `(pointers..., i64 begin, i64 end)`.

    Returns the function's text and the declarations it needs. Raises `IRError` for what the loop
    passes should have removed (unexpanded math, vector loops of unknown extent).
    """
    emitter = _Emitter(kernel, target)
    return emitter.function(), list(emitter.declarations)


class _Emitter(values.Builder):
    def __init__(self, kernel: Kernel, target: Target) -> None:
        super().__init__()
        self.kernel = kernel
        self.target = target
        self.entry: list[str] = []
        self.slots: dict[str, _Slot] = {}
        self.vector: _Vector | None = None
        self.scope = _Scope()
        self.memo: dict[int, Value] = {}
        self.stack = 0

    # ---- function

    def function(self) -> str:
        params: list[str] = []
        for p in self.kernel.params:
            b = p.buffer
            self.slots[b.name] = _Slot(b, f"%{b.name}", b.strides, False)
            ahead = ((n - 1) * max(s, 0) for n, s in zip(b.shape, b.strides, strict=True))
            span = 1 + sum(ahead)
            access = "writeonly" if p.role == "out" and not self._reads(b.name) else ""
            access = "readonly" if p.role != "out" else access
            params.append(
                f"ptr noalias nonnull {access} align {b.dtype.bytes} "
                f"dereferenceable({span * b.dtype.bytes}) %{b.name}"
            )
        params += ["i64 %begin", "i64 %end"]
        loop = parallel_loop(self.kernel)
        if loop is not None:
            self.serial(loop, "%begin", "%end")
        else:
            self.block(self.kernel.body)
        head = f"define internal void @{self.kernel.name}({', '.join(params)}) #0 {{\nentry:"
        return "\n".join(
            [head, *self.entry, "  br label %body", "body:", *self.lines, "  ret void", "}"]
        )

    def _reads(self, name: str) -> bool:
        return name in values.loaded_buffers(self.kernel.body)

    # ---- statements

    def block(self, stmts: Block) -> None:
        outer = self.scope
        self.scope = outer.child()
        for stmt in stmts:
            self.memo = {}
            self.statement(stmt)
        self.scope = outer

    def statement(self, stmt: object) -> None:
        match stmt:
            case For():
                self.loop(stmt)
            case Store(buffer, index, value):
                self.store(buffer, index, self.eval(value))
            case Let(name, value, bound):
                self.let(name, self.eval(value), bound)
            case If(cond, then, orelse):
                self.branch(cond, then, orelse)
            case Alloc(buffer):
                self.alloc(buffer)
            case _:
                raise IRError(f"{self.kernel.name}: no code generation for {stmt}")

    def let(self, name: str, value: Value, bound: tuple[int, int] | None) -> None:
        self.scope.refs[name] = value
        if bound is None:
            return
        self.scope.ranges[name] = bound
        if value.lanes == 1:
            self.scope.ssa[name] = value.ssa
        else:
            self.scope.lanes[name] = value

    def alloc(self, buffer: Buffer) -> None:
        shape = buffer.shape
        if shape and shape[-1] > 1:  # whole vectors may be read and written in the last row
            shape = (*shape[:-1], values.round_up(shape[-1], self.target.lanes(buffer.dtype.bytes)))
        strides: list[int] = []
        size = 1
        for n in reversed(shape):
            strides.insert(0, size)
            size *= n
        self.stack += size * buffer.dtype.bytes
        if self.stack > MAX_STACK_BYTES:
            raise IRError(
                f"{self.kernel.name}: scratch {buffer.name} needs {self.stack} bytes of stack"
            )
        ptr = self.fresh(buffer.name)
        kind = memory_type(buffer.dtype)
        self.entry.append(f"  {ptr} = alloca [{size} x {kind}], align 64")
        self.slots[buffer.name] = _Slot(buffer, ptr, tuple(strides), True, size)

    def branch(self, cond: Expr, then: Block, orelse: Block) -> None:
        c = self.eval(cond)
        if c.lanes != 1:
            raise IRError(f"{self.kernel.name}: a condition varies across a vector")
        yes, no, end = self.label("then"), self.label("else"), self.label("endif")
        self.emit(f"br i1 {c.ssa}, label %{yes}, label %{no if orelse else end}")
        self.begin(yes)
        self.block(then)
        self.emit(f"br label %{end}")
        if orelse:
            self.begin(no)
            self.block(orelse)
            self.emit(f"br label %{end}")
        self.begin(end)

    def loop(self, loop: For) -> None:
        extent = substitute(loop.extent, self.scope.index)
        if loop.kind in ("unroll", "vector") and not extent.is_const:
            raise IRError(f"{self.kernel.name}: {loop.kind} loop {loop.var} has extent {extent}")
        if loop.kind == "unroll":
            for i in range(extent.const):
                with self.bound_index(loop.var, Ix(i)):
                    self.block(loop.body)
        elif loop.kind == "vector":
            self.vector_loop(loop.var, extent.const, loop.body)
        elif extent.is_const and extent.const <= 1:
            if extent.const == 1:
                with self.bound_index(loop.var, Ix(0)):
                    self.block(loop.body)
        else:
            self.serial(loop, "0", self.index(extent))

    @contextmanager
    def bound_index(self, var: str, value: Ix) -> Iterator[None]:
        outer = self.scope
        self.scope = outer.child()
        self.scope.index[var] = value
        yield
        self.scope = outer

    def vector_loop(self, var: str, extent: int, body: Block) -> None:
        if extent == 1:
            with self.bound_index(var, Ix(0)):
                self.block(body)
            return
        assert self.vector is None, f"vector loop {var} inside another"
        self.vector = _Vector(var, extent, values.next_power_of_two(extent))
        outer = self.scope
        self.scope = outer.child()
        self.scope.ranges[var] = (0, extent - 1)
        self.block(body)
        self.scope = outer
        self.vector = None

    def serial(self, loop: For, begin: str, end: str) -> None:
        """A counted loop tested at the bottom; guarded unless it surely runs."""
        head, body, exit_ = self.label("pre"), self.label("loop"), self.label("exit")
        sure = begin.isdigit() and end.isdigit()
        if sure:
            self.emit(f"br label %{head}")
        else:
            guard = self.fresh("run")
            self.emit(f"{guard} = icmp slt i64 {begin}, {end}")
            self.emit(f"br i1 {guard}, label %{head}, label %{exit_}")
        self.begin(head)
        self.emit(f"br label %{body}")
        self.begin(body)
        i, nxt, more = self.fresh(loop.var), self.fresh("next"), self.fresh("more")
        at = len(self.lines)
        outer = self.scope
        self.scope = outer.child()
        _, hi = bounds(loop.extent, outer.ranges)
        self.scope.ranges[loop.var] = (0, (hi if hi is not None else 1 << 40) - 1)
        self.scope.ssa[loop.var] = i
        self.scope.index.pop(loop.var, None)
        self.block(loop.body)
        self.scope = outer
        latch = self.label("latch")
        self.emit(f"br label %{latch}")
        self.begin(latch)
        self.lines.insert(at, f"  {i} = phi i64 [ {begin}, %{head} ], [ {nxt}, %{latch} ]")
        self.emit(f"{nxt} = add nuw nsw i64 {i}, 1")
        self.emit(f"{more} = icmp slt i64 {nxt}, {end}")
        self.emit(f"br i1 {more}, label %{body}, label %{exit_}, !llvm.loop !0")
        self.begin(exit_)

    # ---- index arithmetic

    def index(self, form: Ix) -> str:
        """An index form as an i64 operand (constant or SSA name)."""
        form = substitute(form, self.scope.index)
        if form.is_const:
            return str(form.const)
        out = self.linear(form.terms)
        if form.const:
            out = self.op(f"add nsw i64 {out}, {form.const}")
        return out

    def linear(self, terms: tuple[tuple[Atom, int], ...]) -> str:
        key = ("linear", terms)
        if key in self.scope.cache:
            return self.scope.cache[key]
        total = ""
        for atom, coef in terms:
            v = self.atom(atom)
            term = v if coef == 1 else self.op(f"mul nsw i64 {v}, {coef}")
            total = term if not total else self.op(f"add nsw i64 {total}, {term}")
        self.scope.cache[key] = total
        return total

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return self.scope.ssa[atom]
        if atom in self.scope.cache:
            return self.scope.cache[atom]
        match atom:
            case FloorDiv(num, den) | Mod(num, den):
                a = self.index(num)
                lo, _ = bounds(num, self.scope.ranges)
                div = isinstance(atom, FloorDiv)
                if lo is not None and lo >= 0:
                    out = self.op(f"{'udiv' if div else 'urem'} i64 {a}, {den}")
                else:  # floor semantics for negatives
                    r = self.op(f"srem i64 {a}, {den}")
                    neg = self.op(f"icmp slt i64 {r}, 0")
                    if div:
                        q = self.op(f"sdiv i64 {a}, {den}")
                        out = self.op(f"sub i64 {q}, {self.op(f'zext i1 {neg} to i64')}")
                    else:
                        up = self.op(f"add i64 {r}, {den}")
                        out = self.op(f"select i1 {neg}, i64 {up}, i64 {r}")
            case Extremum(op, x, y):
                a, b = self.index(x), self.index(y)
                out = self.op(f"call i64 @llvm.s{op}.i64(i64 {a}, i64 {b})")
                self.declare(f"declare i64 @llvm.s{op}.i64(i64, i64)")
        self.scope.cache[atom] = out
        return out

    # ---- memory

    def offset(self, slot: _Slot, index: tuple[Ix, ...]) -> Ix:
        """Element offset of an access with constants substituted."""
        out = Ix(0)
        for i, s in zip(index, slot.strides, strict=True):
            out = out + i * s
        return substitute(out, self.scope.index)

    def address(self, slot: _Slot, offset: Ix) -> str:
        """Pointer to an element: variable part first (shared by neighbours), constant part last."""
        size = slot.buffer.dtype.bytes
        base = slot.pointer
        if offset.terms:
            key = ("address", slot.pointer, offset.terms)
            if key not in self.scope.cache:
                variable = self.linear(offset.terms)
                kind = memory_type(slot.buffer.dtype)
                self.scope.cache[key] = self.op(
                    f"getelementptr inbounds {kind}, ptr {base}, i64 {variable}"
                )
            base = self.scope.cache[key]
        if offset.const:
            return self.op(f"getelementptr i8, ptr {base}, i64 {offset.const * size}")
        return base

    def lane_names(self, form: Ix) -> set[str]:
        """Variables of `form` that differ from lane to lane of the current vector loop."""
        if self.vector is None:
            return set()
        varying = {self.vector.var, *self.scope.lanes}
        return {v for v in variables(form) if v in varying}

    def lane_offset(self, offset: Ix, lane: int) -> Ix:
        """`offset` in one lane: the vector variable is constant, per-lane indices are extracted."""
        assert self.vector is not None
        offset = substitute(offset, {self.vector.var: Ix(lane)})
        mapping: dict[str, Ix] = {}
        for name in self.lane_names(offset):
            v = self.scope.lanes[name]
            unique = f"{name}@{lane}"
            if unique not in self.scope.ssa:
                self.scope.ssa[unique] = self.op(f"extractelement {v.type} {v.ssa}, i32 {lane}")
                self.scope.ranges[unique] = self.scope.ranges[name]
            mapping[name] = Ix(0, ((unique, 1),))
        return substitute(offset, mapping)

    def unmasked(self, slot: _Slot, index: tuple[Ix, ...]) -> bool:
        """Whether all lanes of a unit-stride access surely lie inside the buffer's last row."""
        vec = self.vector
        assert vec is not None
        if vec.active == vec.lanes:
            return True
        last = substitute(index[-1], self.scope.index)
        _, hi = bounds(last - Ix(0, ((vec.var, 1),)), self.scope.ranges)
        row = slot.buffer.shape[-1]
        if slot.scratch:  # rows of scratch are padded to whole vectors
            row = slot.strides[-2] if len(slot.strides) > 1 else slot.size
        return slot.strides[-1] == 1 and hi is not None and hi + vec.lanes <= row

    def load(self, e: Load) -> Value:
        slot = self.slots[e.buffer]
        dtype = slot.buffer.dtype
        offset = self.offset(slot, e.index)
        varying = self.lane_names(offset)
        if not varying:
            return self.load_scalar(slot, offset)
        vec = self.vector
        assert vec is not None
        unit = varying == {vec.var} and coefficient(offset, vec.var) == 1
        if unit:
            ptr = self.address(slot, substitute(offset, {vec.var: Ix(0)}))
            full = self.unmasked(slot, e.index)
            return self.load_vector(ptr, dtype, vec.lanes, None if full else vec.active)
        lanes = [self.load_scalar(slot, self.lane_offset(offset, i)) for i in range(vec.active)]
        return self.pack_lanes(lanes, vec.lanes)

    def load_scalar(self, slot: _Slot, offset: Ix) -> Value:
        return self.load_vector(self.address(slot, offset), slot.buffer.dtype, 1, None)

    def store(self, buffer: str, index: tuple[Ix, ...], value: Value) -> None:
        slot = self.slots[buffer]
        offset = self.offset(slot, index)
        varying = self.lane_names(offset)
        if not varying:
            if value.lanes > 1:
                raise IRError(f"{self.kernel.name}: a vector is stored to one element of {buffer}")
            self.store_vector(self.address(slot, offset), value, None)
            return
        vec = self.vector
        assert vec is not None
        value = self.splat(value, vec.lanes)
        if varying == {vec.var} and coefficient(offset, vec.var) == 1:
            ptr = self.address(slot, substitute(offset, {vec.var: Ix(0)}))
            partial = vec.active < vec.lanes
            if partial and slot.buffer.space == "register" and self.unmasked(slot, index):
                # Blend with what is there: SROA sees through this, not through a masked store.
                value = self.blend(
                    self.load_vector(ptr, value.dtype, vec.lanes, None), value, vec.active
                )
                partial = False
            self.store_vector(ptr, value, vec.active if partial else None)
            return
        for i in range(vec.active):
            ptr = self.address(slot, self.lane_offset(offset, i))
            self.store_vector(ptr, self.extract(value, i), None)

    # ---- expressions

    def eval(self, e: Expr) -> Value:
        """Value of an expression; a shared node (same object) is computed once per statement."""
        got = self.memo.get(id(e))
        if got is None:
            got = self.memo[id(e)] = self._eval(e)
        return got

    def _eval(self, e: Expr) -> Value:
        match e:
            case Const(literal, dtype):
                return self.constant(literal, dtype)
            case FromIndex(index, dtype):
                return self.from_index(index, dtype)
            case Ref(name, _):
                return self.scope.refs[name]
            case Load():
                return self.load(e)
            case Unary(op, a):
                return self.unary(op, self.eval(a))
            case Binary(op, a, b):
                return self.binary(op, *self.align(self.eval(a), self.eval(b)))
            case Fma(a, b, c):
                return self.fma(*self.align(self.eval(a), self.eval(b), self.eval(c)))
            case Select(cond, a, b):
                return self.select(*self.align(self.eval(cond), self.eval(a), self.eval(b)))
            case Cast(a, dtype):
                return self.cast(self.eval(a), dtype)
            case Bitcast(a, dtype):
                v = self.eval(a)
                out = self.op(f"bitcast {v.type} {v.ssa} to {llvm_type(dtype, v.lanes)}")
                return Value(out, dtype, v.lanes)

    def from_index(self, form: Ix, dtype: DType) -> Value:
        form = substitute(form, self.scope.index)
        varying = self.lane_names(form)
        if not varying:
            return self.cast(Value(self.index(form), I64, 1), dtype)
        vec = self.vector
        assert vec is not None
        coef = coefficient(form, vec.var) if varying == {vec.var} else None
        if coef is None:
            lanes = [self.index(self.lane_offset(form, i)) for i in range(vec.active)]
            wide = self.pack_lanes([Value(s, I64, 1) for s in lanes], vec.lanes)
            return self.cast(wide, dtype)
        base = self.splat(Value(self.index(substitute(form, {vec.var: Ix(0)})), I64, 1), vec.lanes)
        ramp = ", ".join(f"i64 {i * coef}" for i in range(vec.lanes))
        out = self.op(f"add {base.type} {base.ssa}, <{ramp}>")
        return self.cast(Value(out, I64, vec.lanes), dtype)
