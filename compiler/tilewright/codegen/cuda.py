"""Loop IR with blocks and threads -> NVPTX LLVM IR -> PTX.

In: a finished kernel whose loops are bound to a GPU's axes (see docs/gpu.md), and a `Target` with `[gpu]`.
Out: PTX text and how to launch it.
Invariant: the grid and the blocks have one dim; a loop of blocks or a nest of threads finds its indices by
dividing. Scratch that the threads of a nest index by themselves becomes private; threads wait for each
other where `loop.barriers` says so. Loops that are narrower than the launch are guarded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import gcd, prod

from tilewright.codegen.addressing import Slot
from tilewright.codegen.kernel import Emitter
from tilewright.codegen.mma import emit_mma
from tilewright.codegen.values import memory_type
from tilewright.core.index import Ix, bounds, variables
from tilewright.errors import IRError
from tilewright.loop.barriers import barriers, runs
from tilewright.loop.ir import Alloc, Block, Buffer, For, If, Kernel, Let, Mma, span
from tilewright.loop.rewrite import accesses, loads, walk
from tilewright.schedule.target import Target

_TID = "llvm.nvvm.read.ptx.sreg.tid.x"
_CTAID = "llvm.nvvm.read.ptx.sreg.ctaid.x"
#: Threads that run together on every NVIDIA GPU so far.
_WARP = 32
#: Bytes of the widest access to memory.
_WIDEST = 16
_BARRIER = "llvm.nvvm.barrier.cta.sync.aligned.all"


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: blocks, threads per block, static shared memory in bytes."""

    blocks: int
    threads: int
    shared_bytes: int


def launch_of(kernel: Kernel) -> Launch:
    """The launch that covers every loop of blocks and nest of threads of a kernel."""
    shared = sum(
        span(s.buffer) * s.buffer.dtype.bytes
        for s in walk(kernel.body)
        if isinstance(s, Alloc) and s.buffer.space == "shared"
    )
    blocks, threads = _sizes(kernel.body, {}, 1)
    return Launch(blocks, threads, shared)


def _sizes(block: Block, ranges: dict[str, tuple[int, int]], outer: int) -> tuple[int, int]:
    blocks, threads = outer, 1
    for s in block:
        if isinstance(s, Let) and s.range is not None:
            ranges = {**ranges, s.name: s.range}
        for inner in (s.then, s.orelse) if isinstance(s, If) else ():
            b, t = _sizes(inner, ranges, outer)
            blocks, threads = max(blocks, b), max(threads, t)
        if not isinstance(s, For):
            continue
        if s.kind == "thread":
            threads = max(threads, prod(n for _, n in _nest(s, ranges)[0]))
            continue
        more = s.extent.const if s.kind == "block" else 1
        b, t = _sizes(s.body, {**ranges, s.var: (0, _most(s.extent, ranges) - 1)}, outer * more)
        blocks, threads = max(blocks, b), max(threads, t)
    return blocks, threads


def _most(extent: Ix, ranges: dict[str, tuple[int, int]]) -> int:
    _, hi = bounds(extent, ranges)
    if hi is None:
        raise IRError(f"a loop of {extent} iterations has no bound")
    return max(hi, 1)


def _nest(s: For, ranges: dict[str, tuple[int, int]]) -> tuple[list[tuple[For, int]], Block]:
    """Perfectly nested loops of threads with their largest extents, and what is inside."""
    nest = [(s, _most(s.extent, ranges))]
    ranges = {**ranges, s.var: (0, nest[-1][1] - 1)}
    body = s.body
    while len(body) == 1 and isinstance(body[0], For) and body[0].kind == "thread":
        nest.append((body[0], _most(body[0].extent, ranges)))
        ranges[body[0].var] = (0, nest[-1][1] - 1)
        body = body[0].body
    return nest, body


def emit_cuda(
    kernels: Sequence[Kernel], target: Target, aligned: Mapping[str, Sequence[int]] | None = None
) -> str:
    """LLVM IR of kernels as one module; each entry is called like its kernel.

    `aligned` has, by kernel, the bytes that the addresses of its parameters are multiples of.
    """
    declarations: dict[str, None] = {}
    parts: list[str] = []
    attributes: list[str] = []
    for i, kernel in enumerate(kernels):
        emitter = _CudaEmitter(kernel, target, f"#{i}", (aligned or {}).get(kernel.name, ()))
        text = emitter.function()
        declarations.update(emitter.declarations)
        parts += [*emitter.globals, text]
        attributes.append(
            f'attributes #{i} = {{ nounwind "target-cpu"="{target.cpu}" '
            f'"nvvm.maxntid"="{emitter.launch.threads}" '
            f'"nvvm.minctasm"="{_resident(emitter.launch)}" }}'
        )
    tail = ["!0 = distinct !{!0}"]  # LLVM leaves loops alone by its options; ptxas knows registers
    head = f'target triple = "{target.triple}"'
    return "\n\n".join([head, *declarations, *parts, *attributes, *tail]) + "\n"


def _resident(launch: Launch) -> int:
    """Blocks that must fit a multiprocessor: 512 threads with up to 128 registers each.

    Left alone, ptxas spills to fit more. Registers are given to whole warps."""
    return max(1, 512 // (-(-launch.threads // _WARP) * _WARP))


class _CudaEmitter(Emitter):
    def __init__(
        self, kernel: Kernel, target: Target, attributes: str, aligned: Sequence[int]
    ) -> None:
        # 32-bit indices: half the registers, and no tensor has 2^31 elements
        super().__init__(kernel, replace(target, pointer_bytes=4))
        self.launch = launch_of(kernel)
        self.shared = None  # no call of a kernel does part of a loop here
        self.attributes = attributes
        self.globals: list[str] = []
        self.private = _private_dims(kernel.body)
        found = [s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)]
        self.scratch = {b.name for b in found if b.space != "shared"}
        self.inside_threads = False
        self.tid = self.block_index = ""
        self.barriers = barriers(kernel)
        names = [p.buffer.name for p in kernel.params]
        self.aligned = dict(zip(names, aligned, strict=False))

    def function(self) -> str:
        params: list[str] = []
        for p in self.kernel.params:
            b = p.buffer
            self.slots[b.name] = Slot(b, f"%{b.name}", b.strides, False)
            access = "readonly " if p.role != "out" else ""
            align = max(self.aligned.get(b.name, 0), b.dtype.bytes)
            params.append(f"ptr noalias {access}align {align} %{b.name}")
        self.tid = self.special(_TID, self.launch.threads)
        self.block_index = self.special(_CTAID, self.launch.blocks)
        self.top(self.kernel.body)
        head = f"define ptx_kernel void @{self.kernel.name}({', '.join(params)}) {self.attributes} {{\nentry:"
        return "\n".join(
            [head, *self.entry, "  br label %body", "body:", *self.lines, "  ret void", "}"]
        )

    def special(self, name: str, count: int) -> str:
        """A special register whose value is below `count`."""
        self.declare(f"declare i32 @{name}()")
        return self.op(f"call range(i32 0, {count}) i32 @{name}()")

    # ---- grids

    def top(self, block: Block) -> None:
        """Statements outside all blocks: each loop of blocks, guarded where the grid is larger.

        What is bound to no block runs in the first one, what is bound to no thread in its first thread.
        """
        for is_grid, group in groupby(block, lambda s: isinstance(s, For) and s.kind == "block"):
            statements = tuple(group)
            if is_grid:
                for s in statements:
                    assert isinstance(s, For)
                    self.grid(s)
                continue
            emit = partial(self.block, statements)
            self.guarded(self.block_index, 1, self.launch.blocks, emit)

    def grid(self, s: For) -> None:
        nest = [s]
        while len(nest[-1].body) == 1 and isinstance(nest[-1].body[0], For):
            if nest[-1].body[0].kind != "block":
                break
            nest.append(nest[-1].body[0])
        sizes = [f.extent.const for f in nest]
        body = nest[-1].body

        def emit() -> None:
            self.indices([(f.var, n) for f, n in zip(nest, sizes, strict=True)], self.block_index)
            self.block(body)

        self.guarded(self.block_index, prod(sizes), self.launch.blocks, emit)

    def block(self, stmts: Block) -> None:
        """Statements; of those outside all threads the first thread runs what starts none."""
        if self.inside_threads:
            super().block(stmts)
            return
        outer = self.scope
        self.scope = outer.child()
        for run, together in runs(stmts):
            if together:
                for s in run:
                    self.memo = {}
                    self.statement(s)
            else:
                self.alone(run)
        self.scope = outer

    def alone(self, block: Block) -> None:
        """Statements without threads: the first thread runs them."""
        if id(block[0]) in self.barriers:
            self.barrier()
        self.inside_threads = True
        self.guarded(self.tid, 1, self.launch.threads, partial(self.block, block))
        self.inside_threads = False

    def statement(self, stmt: object) -> None:
        """A statement; a block's threads wait for each other before it where they must."""
        if not self.inside_threads:
            self.require_common(stmt)
            if id(stmt) in self.barriers:
                self.barrier()
        if isinstance(stmt, Mma):
            emit_mma(self, stmt)
        else:
            super().statement(stmt)

    def require_common(self, stmt: object) -> None:
        """What all threads compute may not come from scratch that only one of them has written."""
        value = stmt.value if isinstance(stmt, Let) else stmt.cond if isinstance(stmt, If) else None
        for x in loads(value) if value is not None else ():
            if x.buffer in self.scratch:
                raise IRError(
                    f"{self.kernel.name}: all threads read {x.buffer}, of which each has its own"
                )

    def barrier(self) -> None:
        self.declare(f"declare void @{_BARRIER}(i32)")
        self.emit(f"call void @{_BARRIER}(i32 0)")

    def indices(self, sizes: Sequence[tuple[str, int]], linear: str) -> None:
        """Split a linear index over loops, the innermost fastest."""
        rest = linear
        for i, (var, n) in reversed(list(enumerate(sizes))):
            self.scope.index.pop(var, None)
            self.scope.ranges[var] = (0, n - 1)
            if i == 0:
                self.scope.ssa[var] = rest
            else:
                self.scope.ssa[var] = self.op(f"urem i32 {rest}, {n}")
                rest = self.op(f"udiv i32 {rest}, {n}")

    def guarded(self, value: str, count: int, limit: int, emit: Callable[[], None]) -> None:
        """Run `emit` where `value` < `count`; `limit` bounds the value anyway."""
        outer = self.scope
        self.scope = outer.child()
        if count >= limit:
            emit()
        else:
            yes, end = self.label("active"), self.label("passive")
            self.emit(
                f"br i1 {self.op(f'icmp ult i32 {value}, {count}')}, label %{yes}, label %{end}"
            )
            self.begin(yes)
            emit()
            self.emit(f"br label %{end}")
            self.begin(end)
        self.scope = outer

    # ---- threads

    def loop(self, loop: For) -> None:
        if loop.kind == "block":
            raise IRError(f"{self.kernel.name}: blocks `{loop.var}` inside another loop")
        if loop.kind != "thread":
            super().loop(loop)
            return
        nest, body = _nest(loop, self.scope.ranges)
        self.inside_threads = True

        def emit() -> None:
            self.indices([(f.var, n) for f, n in nest], self.tid)
            self.narrow(nest, body)

        self.guarded(self.tid, prod(n for _, n in nest), self.launch.threads, emit)
        self.inside_threads = False

    def narrow(self, nest: Sequence[tuple[For, int]], body: Block) -> None:
        """Leave out the threads beyond extents that are not constant."""
        ends: list[str] = []
        for f, n in nest:
            if f.extent == Ix(n):
                continue
            yes, end = self.label("within"), self.label("beyond")
            fits = self.op(f"icmp slt i32 {self.scope.ssa[f.var]}, {self.index(f.extent)}")
            self.emit(f"br i1 {fits}, label %{yes}, label %{end}")
            self.begin(yes)
            self.scope = self.scope.child()
            ends.append(end)
        self.block(body)
        for end in reversed(ends):
            self.emit(f"br label %{end}")
            self.begin(end)

    # ---- memory

    def alignment(self, slot: Slot, offset: Ix) -> int:
        """What the base and the steps of the offset have in common: LLVM joins neighbours up to 16 bytes."""
        size = slot.buffer.dtype.bytes
        steps = (abs(c) * size for c in (offset.const, *(c for _, c in offset.terms)))
        common = gcd(self.aligned.get(slot.buffer.name, size), *steps)
        return common & -common

    def alloc(self, buffer: Buffer) -> None:
        if buffer.space == "shared":
            kind = memory_type(buffer.dtype)
            name = f"@{self.kernel.name}.{buffer.name}"
            size = span(buffer)
            line = (
                f"{name} = internal addrspace(3) global [{size} x {kind}] poison, align {_WIDEST}"
            )
            if line not in self.globals:  # a loop that is spelled out allocates it once
                self.globals.append(line)
            ptr = self.fresh(buffer.name)
            self.entry.append(f"  {ptr} = addrspacecast ptr addrspace(3) {name} to ptr")
            self.slots[buffer.name] = Slot(buffer, ptr, buffer.strides, True, size)
            self.aligned[buffer.name] = _WIDEST
            return
        dims = self.private.get(buffer.name, frozenset())
        if self.inside_threads or not dims:
            super().alloc(buffer)
            return
        kept = [i for i in range(len(buffer.shape)) if i not in dims]
        own = Buffer(
            buffer.name, buffer.dtype, tuple(buffer.shape[i] for i in kept), (), buffer.space
        )
        super().alloc(own)
        slot = self.slots[buffer.name]
        strides = [0] * len(buffer.shape)
        for i, s in zip(kept, slot.strides, strict=True):
            strides[i] = s
        self.slots[buffer.name] = replace(slot, buffer=buffer, strides=tuple(strides))


def _private_dims(body: Block) -> dict[str, frozenset[int]]:
    """Scratch buffer -> its dims that every access indexes with the thread's own loop variable."""
    threads = {s.var for s in walk(body) if isinstance(s, For) and s.kind == "thread"}
    names = {
        s.buffer.name for s in walk(body) if isinstance(s, Alloc) and s.buffer.space != "shared"
    }
    found: dict[str, frozenset[int]] = {}
    for name, index, _ in accesses(body):
        if name not in names:
            continue
        own = frozenset(
            d for d, form in enumerate(index)
            if form.const == 0 and len(form.terms) == 1 and form.terms[0][1] == 1
            and variables(form) <= threads and form.terms[0][0] in threads
        )  # fmt: skip
        found[name] = found.get(name, own) & own
    return found
