"""Loop IR -> the text of one LLVM function.

In: a finished kernel (tails specialised, vector math expanded) and a `Target`. Out: LLVM IR text.
Invariant: straight translation. Loops marked `unroll` are emitted once per iteration with a constant
index, loops marked `vector` once with every value a vector; nothing here chooses a schedule. Register
buffers become stack slots that LLVM's SROA turns into SSA values, because all their indices are
constants by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.codegen import ahead, values, x86
from tilewright.codegen.addressing import Slot, Vector
from tilewright.codegen.dot import emit_dot
from tilewright.codegen.lanes import lanes_are_private
from tilewright.codegen.memory import Memory
from tilewright.codegen.values import Value, llvm_type, memory_type
from tilewright.core.index import (
    Ix,
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
    Dot,
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
    span,
)
from tilewright.loop.rewrite import accesses, walk
from tilewright.schedule.target import Target

#: Scratch larger than this would not be safe on a device's stack.
MAX_STACK_BYTES = 1 << 18


#: Lanes of a vector whose number is known at run time, at most.
MAX_MASKED = 64


def parallel_loop(kernel: Kernel) -> For | None:
    """The kernel's parallel loop, one of them where the last iteration of a loop around it has code of its own."""
    found = (s for s in walk(kernel.body) if isinstance(s, For) and s.kind == "parallel")
    return next(found, None)


def parallel_extent(kernel: Kernel) -> int:
    """Iterations of the parallel loop, at most (1 if there is none)."""
    loop = parallel_loop(kernel)
    if loop is None:
        return 1
    sizes = {s.name: s.range for s in kernel.body if isinstance(s, Let) and s.range is not None}
    _, hi = bounds(loop.extent, sizes)
    assert hi is not None, f"{kernel.name}: the parallel loop has no bound"
    return hi


def emit_kernel(kernel: Kernel, target: Target) -> tuple[str, list[str]]:
    """LLVM IR of `kernel` as an internal function `(pointers..., begin, end)`.

    Returns the function's text and the declarations it needs. Raises `IRError` for what the loop
    passes should have removed (unexpanded math, vector loops of unknown extent).
    """
    emitter = Emitter(kernel, target)
    return emitter.function(), list(emitter.declarations)


class Emitter(Memory):
    def __init__(self, kernel: Kernel, target: Target) -> None:
        super().__init__(kernel, target)
        self.has_round = target.board is None  # FPv4 lacks it
        self.entry: list[str] = []
        self.memo: dict[int, Value] = {}
        self.stack = 0
        self.constants = {p.buffer.name for p in kernel.params if p.role == "const"}
        self.shared = parallel_loop(kernel)
        self.nest: list[tuple[str, int]] = []  # serial loops around, and how often they run at most

    # ---- function

    def function(self) -> str:
        params: list[str] = []
        for p in self.kernel.params:
            b = p.buffer
            self.slots[b.name] = Slot(b, f"%{b.name}", b.strides, False)
            ahead = ((n - 1) * max(s, 0) for n, s in zip(b.shape, b.strides, strict=True))
            span = 1 + sum(ahead)
            access = "writeonly" if p.role == "out" and not self._reads(b.name) else ""
            access = "readonly" if p.role != "out" else access
            params.append(
                f"ptr noalias nonnull {access} align {b.dtype.bytes} "
                f"dereferenceable({span * b.dtype.bytes}) %{b.name}"
            )
        params += [*self.parameters(), f"{self.word} %begin", f"{self.word} %end"]
        self.block(self.kernel.body)
        head = f"define internal void @{self.kernel.name}({', '.join(params)}) #0 {{\nentry:"
        return "\n".join(
            [
                head, *self.entry, "  br label %body", "body:", *self.lines, "  ret void",
                *self.ending(), "}",
            ]
        )  # fmt: skip

    def parameters(self) -> list[str]:
        """Parameters of the function after the buffers."""
        return []

    def ending(self) -> list[str]:
        """Blocks after the last one."""
        return []

    def last(self, loop: For) -> str:
        """Where this call's part of the parallel loop ends: the caller counts up to its bound."""
        if loop.extent.is_const:
            return "%end"
        w, extent = self.word, self.index(loop.extent)
        self.declare(f"declare {w} @llvm.smin.{w}({w}, {w})")
        return self.op(f"call {w} @llvm.smin.{w}({w} %end, {w} {extent})")

    def _reads(self, name: str) -> bool:
        return name in values.loaded_buffers(self.kernel.body)

    # ---- statements

    def block(self, stmts: Block) -> None:
        outer = self.scope
        self.scope = outer.child()
        for i, stmt in enumerate(stmts):
            self.memo = {}
            self.statement(stmt)
            if isinstance(stmt, Alloc):
                name = stmt.buffer.name
                self.slots[name].private = lanes_are_private(name, stmts[i + 1 :])
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
        value = self.cast(value, self.index_type)
        if value.lanes == 1:
            self.scope.ssa[name] = value.ssa
        else:
            self.scope.lanes[name] = value

    def alloc(self, buffer: Buffer) -> None:
        shape = values.scratch_shape(buffer.shape, self.target.lanes(buffer.dtype.bytes))
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
        self.entry.append(f"  {ptr} = alloca [{size} x {kind}], align {self.target.align}")
        self.slots[buffer.name] = Slot(buffer, ptr, tuple(strides), True, size)

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
        if self.shared is not None and (loop.var, loop.kind) == (self.shared.var, self.shared.kind):
            self.serial(loop, "%begin", self.last(loop))  # this call's part
        elif loop.kind == "vector" and not extent.is_const:
            self.open_vector_loop(loop, extent)
        elif loop.kind == "unroll" and extent.is_const:
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
        lanes = values.next_power_of_two(extent)
        if self.target.board is not None:  # Helium has no vectors of two numbers
            lanes = max(lanes, 4)
        self.vector = Vector(var, extent, lanes)
        outer = self.scope
        self.scope = outer.child()
        self.scope.ranges[var] = (0, extent - 1)
        self.block(body)
        self.scope = outer
        self.vector = None

    def open_vector_loop(self, loop: For, extent: Ix) -> None:
        """A vector loop whose extent is known at run time: under a mask where all accesses are to
        neighbours and the target has masks, else one iteration after the other."""
        _, most = bounds(extent, self.scope.ranges)
        lanes = values.next_power_of_two(most or 0)
        if not self.masked or not 1 < lanes <= MAX_MASKED or not self.neighbours(loop):
            self.serial(loop, "0", self.index(extent))
            return
        name = f"llvm.get.active.lane.mask.v{lanes}i1.{self.word}"
        kind = f"<{lanes} x i1>"
        self.declare(f"declare {kind} @{name}({self.word}, {self.word})")
        mask = self.op(f"call {kind} @{name}({self.word} 0, {self.word} {self.index(extent)})")
        self.vector = Vector(loop.var, mask, lanes)
        outer = self.scope
        self.scope = outer.child()
        self.scope.ranges[loop.var] = (0, lanes - 1)
        self.block(loop.body)
        self.scope = outer
        self.vector = None

    def neighbours(self, loop: For) -> bool:
        """Whether all accesses of a vector loop are to one element or to neighbouring ones."""
        if any(isinstance(s, Let) and s.range is not None for s in walk(loop.body)):
            return False
        for buffer, index, _ in accesses(loop.body):
            slot = self.slots[buffer]
            offset = self.offset(slot, index)
            coef = coefficient(offset, loop.var)
            if coef not in (0, 1) or (coef == 0 and loop.var in variables(offset)):
                return False
        return not any(isinstance(s, Store) and loop.var not in _names(s) for s in walk(loop.body))

    def serial(self, loop: For, begin: str, end: str) -> None:
        """A counted loop tested at the bottom; guarded unless it surely runs."""
        head, body, exit_ = self.label("pre"), self.label("loop"), self.label("exit")
        sure = begin.isdigit() and end.isdigit()
        if sure:
            self.emit(f"br label %{head}")
        else:
            guard = self.fresh("run")
            self.emit(f"{guard} = icmp slt {self.word} {begin}, {end}")
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
        self.nest.append((loop.var, hi if hi is not None else 1 << 40))
        if self.target.prefetch and self.target.family == "simd":
            self.prefetch(loop)
        self.block(loop.body)
        self.nest.pop()
        self.scope = outer
        latch = self.label("latch")
        self.emit(f"br label %{latch}")
        self.begin(latch)
        self.lines.insert(at, f"  {i} = phi {self.word} [ {begin}, %{head} ], [ {nxt}, %{latch} ]")
        self.emit(f"{nxt} = add nuw nsw {self.word} {i}, 1")
        self.emit(f"{more} = icmp slt {self.word} {nxt}, {end}")
        self.emit(f"br i1 {more}, label %{body}, label %{exit_}, !llvm.loop !0")
        self.begin(exit_)

    # ---- memory

    def prefetch(self, loop: For) -> None:
        """Ask for what the next block of constants that `loop` runs along will need (`codegen.ahead`)."""
        seen: set[str] = set()
        for e in ahead.inner_loads(loop.body):
            slot = self.slots[e.buffer]
            if slot.buffer.name in seen or slot.buffer.name not in self.constants:
                continue
            seen.add(slot.buffer.name)
            size = slot.buffer.dtype.bytes
            stream = ahead.Stream(self.offset(slot, e.index), span(slot.buffer) * size, size)
            found = ahead.hint(loop, self.nest, stream, self.target.line_bytes)
            if found is None:
                continue
            self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
            for i in range(
                found.lines
            ):  # not `inbounds`: the last block asks for what lies behind the constant
                at = self.index(found.at * size + i * self.target.line_bytes)
                ptr = self.op(f"getelementptr i8, ptr {slot.pointer}, {self.word} {at}")
                self.emit(f"call void @llvm.prefetch.p0(ptr {ptr}, i32 0, i32 2, i32 1)")

    # ---- expressions

    def eval(self, e: Expr) -> Value:
        """Value of an expression; a shared node (same object) is computed once per statement."""
        got = self.memo.get(id(e))
        if got is None:
            got = self.memo[id(e)] = self.looked_up(e) or self._eval(e)
        return got

    def looked_up(self, e: Expr) -> Value | None:
        """A few bits as floats, where vectors hold a table of them."""
        few = x86.lookup(e) if self.target.is_x86 and self.target.vector_bytes == 64 else None
        return None if few is None else x86.emit_lookup(self, few.table, self.eval(few.which))

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
                x, y, z = self.align(self.eval(a), self.eval(b), self.eval(c))
                small = x86.emit_fma(self, e, x, y, z) if self.target.is_x86 else None
                return small if small is not None else self.fma(x, y, z)
            case Dot():
                return self.dot(e)
            case Select(cond, a, b):
                return self.select(*self.align(self.eval(cond), self.eval(a), self.eval(b)))
            case Cast():
                return self.conversion(e)
            case Bitcast(a, dtype):
                v = self.eval(a)
                out = self.op(f"bitcast {v.type} {v.ssa} to {llvm_type(dtype, v.lanes)}")
                return Value(out, dtype, v.lanes)

    def conversion(self, e: Cast) -> Value:
        if not self.target.is_x86:
            return self.cast(self.eval(e.a), e.dtype)
        product = x86.high_product(e)
        if product is not None:
            a, b = self.align(self.eval(product.a), self.eval(product.b))
            if a.lanes >= 4:
                return x86.emit_high_product(self, a, b, product.rounding, product.plus)
        v = self.eval(e.a)
        if x86.converts(v, e.dtype):
            return x86.to_integer(self, v, e.dtype, x86.within(e.a, e.dtype))
        return self.cast(v, e.dtype)

    def dot(self, e: Dot) -> Value:
        """By an instruction of the target where there is one, else product by product."""
        total = self.eval(e.c)
        found = emit_dot(self, e, total, self.target.dots)
        if found is not None:
            return found
        for i in range(e.extent):
            self.scope.index[e.var] = Ix(i)
            memo, self.memo = self.memo, {}
            total = self.fma(*self.align(self.eval(e.a), self.eval(e.b), total))
            self.memo = memo
        del self.scope.index[e.var]
        return total


def _names(s: Store) -> set[str]:
    """Variables in the index of a store."""
    return {v for i in s.index for v in variables(i)}
