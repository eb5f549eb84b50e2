"""Code that checks every access before it makes it.

In: a finished kernel. Out: LLVM IR of a function that takes one more pointer, to a `Fault` record, and returns at
the first index outside its buffer or value outside its promised range, before the access.
Invariant: what is checked are the indices as the loop IR states them, one dim after the other, for every lane;
indices that are constants are checked now. Nothing is left out because the verifier has proved it: that
proof is what the checks are for. Where nothing is wrong, results are those of the code without checks.

The record (16 bytes at `ModulePlan.fault_at` in the arena): i32 number of the site + `FIRST_SITE` or 0, i64 index.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.codegen.addressing import Slot
from tilewright.codegen.kernel import Emitter
from tilewright.codegen.values import Value
from tilewright.core.index import Ix, bounds, coefficient, substitute
from tilewright.errors import TargetError
from tilewright.loop.ir import Dot, For, Kernel, Load
from tilewright.loop.rewrite import loads
from tilewright.schedule.target import Target

#: `NAME_run` returns this plus the number of the site (`runtime.model.FIRST_FAULT`); smaller numbers have
#: meanings of their own.
FIRST_SITE = 16
#: Bytes of the record in the arena.
RECORD_BYTES = 16


@dataclass(slots=True)
class Sites:
    """What can be wrong where, numbered; the same text has one number."""

    texts: dict[str, int] = field(default_factory=dict[str, int])

    def number(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def require_checkable(target: Target) -> None:
    """Raise `TargetError` where checks cannot be compiled in."""
    if target.gpu is not None:
        raise TargetError(
            f"code for {target.name} has no checked mode: run it with `--device emulator`, which checks every "
            "access of every thread"
        )


def emit_checked(kernel: Kernel, target: Target, sites: Sites) -> tuple[str, list[str]]:
    """LLVM IR of `kernel` as an internal function `(pointers..., fault, begin, end)`, and its declarations."""
    emitter = _Checked(kernel, target, sites)
    return emitter.function(), list(emitter.declarations)


class _Checked(Emitter):
    def __init__(self, kernel: Kernel, target: Target, sites: Sites) -> None:
        super().__init__(kernel, target)
        self.sites = sites
        self.title = kernel.name
        self.here = "body"
        self.found: list[tuple[str, int, str]] = []  # (block, code, index) that lead to the trap
        self.open_extent: Ix | None = None

    # ---- the function around it

    def parameters(self) -> list[str]:
        return ["ptr noalias nonnull %fault"]

    def begin(self, label: str) -> None:
        self.here = label
        super().begin(label)

    def ending(self) -> list[str]:
        """The block that all failed checks lead to: the first one is written down, and the call is over."""
        if not self.found:
            return []
        w = self.word
        codes = ", ".join(f"[ {code}, %{block} ]" for block, code, _ in self.found)
        values = ", ".join(f"[ {value}, %{block} ]" for block, _, value in self.found)
        wide = f"  %trap.wide = {'sext i32' if w == 'i32' else 'bitcast i64'} %trap.index to i64"
        return [
            "trap:",
            f"  %trap.code = phi i32 {codes}",
            f"  %trap.index = phi {w} {values}",
            wide,
            "  %trap.old = load i32, ptr %fault, align 8"
            if self.target.board is not None
            else "  %trap.pair = cmpxchg ptr %fault, i32 0, i32 %trap.code monotonic monotonic, align 8\n"
            "  %trap.old = extractvalue { i32, i1 } %trap.pair, 0",
            "  %trap.first = icmp eq i32 %trap.old, 0",
            "  br i1 %trap.first, label %trap.note, label %trap.end",
            "trap.note:",
            "  store i32 %trap.code, ptr %fault, align 8",
            "  %trap.at = getelementptr i8, ptr %fault, i32 8",
            "  store i64 %trap.wide, ptr %trap.at, align 8",
            "  br label %trap.end",
            "trap.end:",
            "  ret void",
        ]

    # ---- what is checked

    def load(self, e: Load) -> Value:
        self.check("reads", self.slots[e.buffer], e.index)
        return super().load(e)

    def store(self, buffer: str, index: tuple[Ix, ...], value: Value) -> None:
        self.check("writes", self.slots[buffer], index)
        super().store(buffer, index, value)

    def dot(self, e: Dot) -> Value:
        """Instructions read several products at once: the first and the last are checked before."""
        for load in (*loads(e.a), *loads(e.b)):
            for i in {0, e.extent - 1}:
                self.scope.index[e.var] = Ix(i)
                self.check("reads", self.slots[load.buffer], load.index)
            del self.scope.index[e.var]
        return super().dot(e)

    def let(self, name: str, value: Value, bound: tuple[int, int] | None) -> None:
        if bound is not None:
            low, high = bound
            text = f"{self.title}: `{name}` is outside its range of {low} to {high}"
            wide = self.cast(value, self.index_type)
            count = 1 if wide.lanes == 1 else self.vector.count if self.vector else wide.lanes
            for i in range(count):
                one = wide if wide.lanes == 1 else self.extract(wide, i)
                moved = self.op(f"sub {self.word} {one.ssa}, {low}")
                self.require(moved, high - low + 1, text, one.ssa)
        super().let(name, value, bound)

    def open_vector_loop(self, loop: For, extent: Ix) -> None:
        outer, self.open_extent = self.open_extent, extent
        super().open_vector_loop(loop, extent)
        self.open_extent = outer

    def check(self, verb: str, slot: Slot, index: tuple[Ix, ...]) -> None:
        """Every dim of an access, in every lane that counts."""
        for d, (form, n) in enumerate(zip(index, slot.buffer.shape, strict=True)):
            text = f"{self.title} {verb} {slot.buffer.name} outside dim {d}, which has {n} elements"
            form = substitute(form, self.scope.index)
            for one, idle in self.lanes_of(form):
                self.within(one, n, text, idle)

    def lanes_of(self, form: Ix) -> list[tuple[Ix, str]]:
        """An index in the lanes that count (first and last where it grows evenly), and what tells that a
        lane does not count after all."""
        varying = self.lane_names(form)
        if not varying:
            return [(form, "")]
        vec = self.vector
        assert vec is not None
        even = varying == {vec.var} and coefficient(form, vec.var) is not None
        if isinstance(vec.active, int):
            if even:
                return [(substitute(form, {vec.var: Ix(i)}), "") for i in {0, vec.active - 1}]
            return [(self.lane_offset(form, i), "") for i in range(vec.active)]
        extent = self.open_extent  # lanes under a mask
        assert extent is not None
        if even:
            low, _ = bounds(extent, self.scope.ranges)
            idle = "" if low is not None and low >= 1 else self.lane_idles(extent, 0)
            ends = (Ix(0), extent - 1)
            return [(substitute(form, {vec.var: i}), idle) for i in ends]
        return [(self.lane_offset(form, i), self.lane_idles(extent, i)) for i in range(vec.lanes)]

    def lane_idles(self, extent: Ix, lane: int) -> str:
        return self.op(f"icmp sle {self.word} {self.index(extent)}, {lane}")

    def within(self, form: Ix, n: int, text: str, idle: str) -> None:
        """Go on only if `form` is in 0 .. n - 1, or `idle` holds."""
        key = ("within", form, n)
        if (form.is_const and 0 <= form.const < n) or key in self.scope.cache:
            return
        at = self.index(form)
        self.require(at, n, text, at, idle)
        if not idle:
            self.scope.cache[key] = at

    def require(self, value: str, n: int, text: str, shown: str, idle: str = "") -> None:
        """Go on only if `value` is in 0 .. n - 1; else report `text` with the number `shown`."""
        good, after = self.op(f"icmp ult {self.word} {value}, {n}"), self.label("in")
        if idle:
            good = self.op(f"or i1 {good}, {idle}")
        self.found.append((self.here, FIRST_SITE + self.sites.number(text), shown))
        self.emit(f"br i1 {good}, label %{after}, label %trap")
        self.begin(after)
