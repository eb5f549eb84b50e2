"""Index forms and memory addresses as LLVM instructions.

In: index forms (`core.index`) at a point of a kernel, and buffers with strides. Out: operands as
wide as a pointer, and pointers. Invariant: the variable part of an address is computed once per point and shared by its
neighbours; the constant part is added last, where x86 and ARM fold it into the access.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.codegen import values
from tilewright.codegen.values import Value, memory_type
from tilewright.core.dtypes import I32, I64, DType
from tilewright.core.index import (
    Atom,
    Extremum,
    FloorDiv,
    Ix,
    Mod,
    bounds,
    coefficient,
    simplify,
    substitute,
    variables,
)
from tilewright.loop.ir import Buffer


@dataclass(slots=True)
class Slot:
    """Where a buffer lives: pointer SSA name and strides in elements (padded for scratch); `private`: lanes
    beyond the last iteration of a vector loop hold nothing (`codegen.lanes`)."""

    buffer: Buffer
    pointer: str
    strides: tuple[int, ...]
    scratch: bool
    size: int = 0
    private: bool = False


@dataclass(slots=True)
class Vector:
    """The vector loop being emitted: its variable, `active` iterations in `lanes` lanes."""

    var: str
    active: values.Active
    lanes: int

    @property
    def count(self) -> int:
        """Lanes that may count."""
        return self.active if isinstance(self.active, int) else self.lanes


@dataclass(slots=True)
class Scope:
    """What is known at the current point; copied on entry to a block."""

    index: dict[str, Ix] = field(default_factory=dict[str, Ix])  # variable -> constant or itself
    ssa: dict[str, str] = field(default_factory=dict[str, str])  # variable -> SSA name
    lanes: dict[str, Value] = field(default_factory=dict[str, Value])  # per-lane index variables
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    refs: dict[str, Value] = field(default_factory=dict[str, Value])
    cache: dict[object, str] = field(default_factory=dict[object, str])

    def child(self) -> Scope:
        return Scope(
            dict(self.index), dict(self.ssa), dict(self.lanes), dict(self.ranges), dict(self.refs),
            dict(self.cache),
        )  # fmt: skip


class Addressing(values.Builder):
    """Adds scopes, index arithmetic and addresses to the instruction builder."""

    def __init__(self, pointer_bytes: int = 8) -> None:
        super().__init__()
        self.index_type = I64 if pointer_bytes == 8 else I32
        self.word = self.index_type.name
        self.slots: dict[str, Slot] = {}
        self.vector: Vector | None = None
        self.scope = Scope()

    def index(self, form: Ix) -> str:
        """An index form as an operand as wide as a pointer (constant or SSA name)."""
        form = substitute(form, self.scope.index)
        if form.is_const:
            return str(form.const)
        out = self.linear(form.terms)
        if form.const:
            out = self.op(f"add nsw {self.word} {out}, {form.const}")
        return out

    def linear(self, terms: tuple[tuple[Atom, int], ...]) -> str:
        key = ("linear", terms)
        if key in self.scope.cache:
            return self.scope.cache[key]
        total = ""
        for atom, coef in terms:
            v = self.atom(atom)
            term = v if coef == 1 else self.op(f"mul nsw {self.word} {v}, {coef}")
            total = term if not total else self.op(f"add nsw {self.word} {total}, {term}")
        self.scope.cache[key] = total
        return total

    def atom(self, atom: Atom) -> str:
        if isinstance(atom, str):
            return self.scope.ssa[atom]
        if atom in self.scope.cache:
            return self.scope.cache[atom]
        w = self.word
        match atom:
            case FloorDiv(num, den) | Mod(num, den):
                a = self.index(num)
                lo, _ = bounds(num, self.scope.ranges)
                div = isinstance(atom, FloorDiv)
                if lo is not None and lo >= 0:
                    out = self.op(f"{'udiv' if div else 'urem'} {self.word} {a}, {den}")
                else:  # floor semantics for negatives
                    r = self.op(f"srem {self.word} {a}, {den}")
                    neg = self.op(f"icmp slt {self.word} {r}, 0")
                    if div:
                        q = self.op(f"sdiv {self.word} {a}, {den}")
                        out = self.op(
                            f"sub {self.word} {q}, {self.op(f'zext i1 {neg} to {self.word}')}"
                        )
                    else:
                        up = self.op(f"add {self.word} {r}, {den}")
                        out = self.op(f"select i1 {neg}, {self.word} {up}, {self.word} {r}")
            case Extremum(op, x, y):
                a, b = self.index(x), self.index(y)
                out = self.op(f"call {w} @llvm.s{op}.{w}({w} {a}, {w} {b})")
                self.declare(f"declare {w} @llvm.s{op}.{w}({w}, {w})")
        self.scope.cache[atom] = out
        return out

    def offset(self, slot: Slot, index: tuple[Ix, ...]) -> Ix:
        """Element offset of an access with constants substituted.

        Simplifying joins the quotient and remainder of a fused loop where memory is contiguous.
        """
        out = Ix(0)
        for i, s in zip(index, slot.strides, strict=True):
            out = out + i * s
        return simplify(substitute(out, self.scope.index), self.scope.ranges)

    def address(self, slot: Slot, offset: Ix) -> str:
        """Pointer to an element: variable part first (shared by neighbours), constant part last."""
        size = slot.buffer.dtype.bytes
        base = slot.pointer
        if offset.terms:
            key = ("address", slot.pointer, offset.terms)
            if key not in self.scope.cache:
                variable = self.linear(offset.terms)
                kind = memory_type(slot.buffer.dtype)
                self.scope.cache[key] = self.op(
                    f"getelementptr inbounds {kind}, ptr {base}, {self.word} {variable}"
                )
            base = self.scope.cache[key]
        if offset.const:
            return self.op(f"getelementptr i8, ptr {base}, {self.word} {offset.const * size}")
        return base

    def alignment(self, slot: Slot, offset: Ix) -> int:
        """Bytes that the address of an element is a multiple of; 0: of its size, more is not asked."""
        del slot, offset
        return 0

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

    def unmasked(self, slot: Slot, index: tuple[Ix, ...]) -> bool:
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

    def from_index(self, form: Ix, dtype: DType) -> Value:
        form = substitute(form, self.scope.index)
        varying = self.lane_names(form)
        if not varying:
            return self.cast(Value(self.index(form), self.index_type, 1), dtype)
        vec = self.vector
        assert vec is not None
        coef = coefficient(form, vec.var) if varying == {vec.var} else None
        if coef is None:
            lanes = [self.index(self.lane_offset(form, i)) for i in range(vec.count)]
            wide = self.pack_lanes([Value(s, self.index_type, 1) for s in lanes], vec.lanes)
            return self.cast(wide, dtype)
        base = self.splat(
            Value(self.index(substitute(form, {vec.var: Ix(0)})), self.index_type, 1), vec.lanes
        )
        ramp = ", ".join(f"{self.word} {i * coef}" for i in range(vec.lanes))
        out = self.op(f"add {base.type} {base.ssa}, <{ramp}>")
        return self.cast(Value(out, self.index_type, vec.lanes), dtype)
