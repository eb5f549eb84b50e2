"""Bugs planted in the compiler, to see whether the tests find them.

In: the name of a mutant. Out: the compiler with one bug more, for a while.
Invariant: a mutant is one wrong line, in place while its context is open, in this process and in the worker.
`testing.mutation_table` searches for all of them.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tilewright.core import index as indices
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Extremum, Ix, ix
from tilewright.loop.ir import Block, For, If, Kernel, Load, dense_strides
from tilewright.loop.rewrite import accesses, map_block, map_loads, walk
from tilewright.schedule.trace import primitives

Patch = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug: `what` is wrong; the attribute `where` (module:object.attribute) becomes `patch` of it.

    `operators`: those that are searched, which must be able to show it. `drawing`: schedules are drawn with the bug,
    too, since it accepts what is not legal.
    """

    name: str
    what: str
    where: str
    patch: Patch
    operators: tuple[str, ...] = ("matmul", "add", "reduce_sum", "conv2d")
    drawing: bool = False
    target: str = "x86-64-v4"


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """The compiler with one bug more."""
    mutant = next(m for m in MUTANTS if m.name == name)
    module, _, path = mutant.where.partition(":")
    if module == "primitive":
        table: Any = primitives()
        old = table[path]
        table[path] = mutant.patch(old)
        try:
            yield
        finally:
            table[path] = old
        return
    holder: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for p in parents:
        holder = getattr(holder, p)
    old = getattr(holder, attribute)
    setattr(holder, attribute, mutant.patch(old))
    try:
        yield
    finally:
        setattr(holder, attribute, old)


# ---------------------------------------------------------------- bugs in primitives


def _after(change: Callable[[Kernel], Kernel]) -> Patch:
    """A primitive whose result is changed."""

    def patch(old: Callable[..., Kernel]) -> Callable[..., Kernel]:
        return lambda *args: change(old(*args))

    return patch


def _extents(change: Callable[[For], Ix | None]) -> Callable[[Kernel], Kernel]:
    """Other extents for some loops."""

    def stmt(s: Any) -> Any:
        if isinstance(s, For):
            new = change(s)
            return s if new is None else replace(s, extent=new)
        return s

    return lambda kernel: replace(kernel, body=map_block(kernel.body, stmt=stmt))


def _has_min(f: For) -> Extremum | None:
    return next((a for a, _ in f.extent.terms if isinstance(a, Extremum)), None)


def _whole_pieces(f: For) -> Ix | None:
    """The full factor instead of the minimum: too much in the last piece."""
    found = _has_min(f)
    return None if found is None else found.a if found.a.is_const else found.b


def _short_tail(f: For) -> Ix | None:
    return None if _has_min(f) is None else f.extent - 1


def _drop_tail(old: Callable[..., Kernel]) -> Callable[..., Kernel]:
    """split that forgets what a factor does not divide."""

    def split(kernel: Kernel, var: str, factor: int, outer: str, inner: str) -> Kernel:
        made: Kernel = old(kernel, var, factor, outer, inner)

        def fewer(f: For) -> Ix | None:
            if f.var == outer and f.extent.is_const and f.extent.const > 1 and tails:
                return f.extent - 1
            return None

        tails = any(
            isinstance(s, For) and s.var == inner and not s.extent.is_const for s in walk(made.body)
        )
        return _extents(fewer)(made)

    return split


def _wrong_factor(old: Callable[..., Kernel]) -> Callable[..., Kernel]:
    """split whose pieces overlap by one."""

    def split(kernel: Kernel, var: str, factor: int, outer: str, inner: str) -> Kernel:
        made: Kernel = old(kernel, var, factor, outer, inner)
        if factor < 2:
            return made

        def index(i: Ix) -> Ix:
            c = indices.coefficient(i, outer)
            return i - ix(outer) if c and c % factor == 0 and indices.coefficient(i, inner) else i

        return replace(made, body=map_block(made.body, index=index))

    return split


def _first_group_lost(old: Any) -> Any:
    """stage without what initialises the scratch."""
    return lambda block: old(block)[1:] if len(old(block)) > 2 else old(block)


def _no_check(old: Any) -> Any:
    return lambda *args, **kwargs: None


def _shared_serial(old: Any) -> Any:
    """Threads share the iterations of a last loop that nobody made parallel."""

    def parallel_loop(kernel: Kernel) -> For | None:
        *_, last = kernel.body
        return last if isinstance(last, For) else None

    return parallel_loop


def _no_barriers(old: Any) -> Any:
    return lambda kernel: frozenset()


def _swapped_stage_index(old: Any) -> Any:
    """Loads of staged scratch with their last two dims exchanged."""

    def expand(block: Block, names: set[str], at: tuple[Ix, ...]) -> Block:
        made = old(block, names, at)

        def swap(e: Any) -> Any:
            return map_loads(
                e,
                lambda x: (
                    Load(x.buffer, (*x.index[:-2], x.index[-1], x.index[-2]), x.dtype)
                    if x.buffer in names and len(at) > 1
                    else x
                ),
            )

        return map_block(made, expr=swap)

    return expand


def _identity_one(old: Any) -> Any:
    def identity(op: str, dtype: Any) -> Any:
        made = old(op, dtype)
        return replace(made, value=1) if op == "add" else made

    return identity


def _lanes_without_rest(kernel: Kernel) -> Kernel:
    """lanes that forgets what its width does not divide."""

    def clean(block: Block) -> Block:
        out: list[Any] = []
        for s in block:
            if isinstance(s, For):
                s = replace(s, body=clean(s.body))
                wide = [x for x in block if isinstance(x, For) and x.kind == "vector"]
                loads_more = s.kind == "vector" and s.var.endswith("_lane") and _reads_input(s)
                if (
                    loads_more
                    and len(wide) > 1
                    and s.extent.is_const
                    and s.extent.const & (s.extent.const - 1)
                ):
                    continue
            elif isinstance(s, If):
                s = replace(s, then=clean(s.then), orelse=clean(s.orelse))
            out.append(s)
        return tuple(out)

    return replace(kernel, body=clean(kernel.body))


def _reads_input(s: For) -> bool:
    return any(not store and "lanes" not in b for b, _, store in accesses(s.body))


def _fuse_wrong(old: Any) -> Any:
    """fuse that divides by one too many."""

    def fuse(kernel: Kernel, outer: str, inner: str, name: str) -> Kernel:
        made: Kernel = old(kernel, outer, inner, name)

        def index(i: Ix) -> Ix:
            out = Ix(i.const)
            for atom, c in i.terms:
                if isinstance(atom, indices.FloorDiv) and atom.num == ix(name) and atom.den > 1:
                    atom = indices.FloorDiv(atom.num, atom.den + 1)
                out = out + Ix(0, ((atom, c),))
            return out

        return replace(made, body=map_block(made.body, index=index))

    return fuse


# ---------------------------------------------------------------- bugs in loop passes


def _no_last_branch(old: Any) -> Any:
    """Tails of parallel loops are not executed."""

    def tails(kernel: Kernel) -> Kernel:
        made: Kernel = old(kernel)

        def stmt(s: Any) -> Any:
            return replace(s, orelse=()) if isinstance(s, If) and s.orelse else s

        return replace(made, body=map_block(made.body, stmt=stmt))

    return tails


def _scaled_exp(old: Any) -> Any:
    return (*old[:-1], old[-1] * 1.5)


# ---------------------------------------------------------------- bugs in code generation


def _swap_operands(old: Any) -> Any:
    def binary(self: Any, op: str, a: Any, b: Any) -> Any:
        return old(self, op, b, a) if op == "sub" else old(self, op, a, b)

    return binary


def _min_is_max(old: Any) -> Any:
    return lambda self, op, a, b: old(self, "max" if op == "min" else "min", a, b)


def _loose_less(old: Any) -> Any:
    return lambda self, op, a, b: old(self, {"lt": "le", "gt": "ge"}.get(op, op), a, b)


def _select_swapped(old: Any) -> Any:
    return lambda self, cond, a, b: (
        old(self, cond, b, a) if a.dtype is not BOOL else old(self, cond, a, b)
    )


def _no_mask_store(old: Any) -> Any:
    return lambda self, ptr, v, active, align=0: old(self, ptr, v, None, align)


def _no_mask_load(old: Any) -> Any:
    return lambda self, ptr, dtype, lanes, active, align=0: old(
        self, ptr, dtype, lanes, None, align
    )


def _aligned_load(old: Any) -> Any:
    def load(self: Any, ptr: str, dtype: Any, lanes: int, active: Any, align: int = 0) -> Any:
        return old(self, ptr, dtype, lanes, active, lanes * dtype.bytes if lanes > 1 else align)

    return load


def _blend_short(old: Any) -> Any:
    return lambda self, before, new, active: old(
        self, before, new, max(active - 1, 1) if isinstance(active, int) else active
    )


def _dense_strides(old: Any) -> Any:
    """Rows follow each other whatever the strides say."""

    def offset(self: Any, slot: Any, index: tuple[Ix, ...]) -> Any:
        if slot.scratch or any(s == 0 for s in slot.strides):
            return old(self, slot, index)
        if sorted(slot.strides, reverse=True) != list(slot.strides):
            return old(self, slot, index)
        return old(self, replace(slot, strides=dense_strides(slot.buffer.shape)), index)

    return offset


def _one_less(old: Any) -> Any:
    def serial(self: Any, loop: Any, begin: str, end: str) -> Any:
        return old(self, loop, begin, str(int(end) - 1) if end.isdigit() and int(end) > 2 else end)

    return serial


def _rounding_cast(old: Any) -> Any:
    """Floats to integers by rounding, not by cutting."""

    def cast(self: Any, v: Any, dtype: Any) -> Any:
        if v.dtype.is_float and dtype.is_integer:
            v = self.unary("round", v)
        return old(self, v, dtype)

    return cast


def _fma_without_sum(old: Any) -> Any:
    def fma(self: Any, a: Any, b: Any, c: Any) -> Any:
        return old(self, a, b, a) if c.dtype.is_float else old(self, a, b, c)

    return fma


def _late_begin(old: Any) -> Any:
    def serial(self: Any, loop: Any, begin: str, end: str) -> Any:
        return old(
            self, loop, "1" if begin == "0" and end.isdigit() and int(end) > 1 else begin, end
        )

    return serial


def _wrong_layout(old: Any) -> Any:
    """Packed constants in the order of their dims as they were."""

    def pack_array(array: Any, pack: Any) -> Any:
        made = old(array, pack)
        return made.reshape(made.shape[::-1]).T if made.ndim > 1 else made

    return pack_array


def _shared_scratch(old: Any) -> Any:
    """Two buffers of scratch in one place."""

    def alloc(self: Any, buffer: Any) -> Any:
        old(self, buffer)
        mine = self.slots[buffer.name]
        for name, slot in self.slots.items():
            same = slot.scratch and slot.size == mine.size and slot.buffer.dtype is buffer.dtype
            if name != buffer.name and same:
                self.slots[buffer.name] = replace(mine, pointer=slot.pointer)

    return alloc


def _sign_lost(old: Any) -> Any:
    return lambda self, v, a: v


def _neg_zero(old: Any) -> Any:
    """Negation as 0 - x."""

    def unary(self: Any, op: str, a: Any) -> Any:
        if op == "neg" and a.dtype.is_float:
            return self.binary("sub", self.splat(self.constant(0.0, a.dtype), a.lanes), a)
        return old(self, op, a)

    return unary


def _constant_cut(old: Any) -> Any:
    """Literals with two digits."""

    def constant(self: Any, v: Any, dtype: Any) -> Any:
        if dtype.is_float and isinstance(v, float) and math.isfinite(v) and abs(v) < 1e30:
            v = float(f"{v:.2e}")
        return old(self, v, dtype)

    return constant


_EMIT = "tilewright.codegen.kernel:Emitter"
_BUILD = "tilewright.codegen.values:Builder"
_ROWS = ("softmax", "reduce_sum", "layer_norm")

MUTANTS: tuple[Mutant, ...] = (
    Mutant("split-drops-tail", "split forgets the last, shorter piece", "primitive:split", _drop_tail),
    Mutant("split-short-tail", "the last piece is one iteration short", "primitive:split", _after(_extents(_short_tail))),
    Mutant("split-long-tail", "the last piece is as long as the others", "primitive:split", _after(_extents(_whole_pieces))),
    Mutant("split-overlap", "pieces begin one iteration early", "primitive:split", _wrong_factor),
    Mutant("fuse-wrong-divisor", "the outer index of fused loops is divided by one too many", "primitive:fuse", _fuse_wrong),
    Mutant("stage-no-init", "staged sums are not initialised", "tilewright.schedule.primitives.stage:_groups", _first_group_lost),
    Mutant("stage-swapped", "staged sums are read with two dims exchanged", "tilewright.schedule.primitives.stage:_expand", _swapped_stage_index),
    Mutant("vectorize-unchecked", "vectorize accepts loops whose iterations depend on each other", "tilewright.schedule.primitives.vectorize:carried", _no_check, ("reduce_sum", "cumulative_sum", "matmul", "softmax"), drawing=True),
    Mutant("reorder-unchecked", "reorder exchanges loops whose iterations depend on each other", "tilewright.schedule.primitives.reorder:reordering", _no_check, ("nonzero", "max_pool2d_index", "cumulative_sum", "scatter_nd"), drawing=True),
    Mutant("threads-share-serial", "threads share the iterations of a loop that depend on each other", "tilewright.codegen.kernel:parallel_loop", _shared_serial, ("cumulative_sum", "cumulative_prod", "scatter_elements")),
    Mutant("barrier-left-out", "threads do not wait for what others write", "tilewright.loop.simt:barriers", _no_barriers, ("matmul", "softmax", "reduce_sum", "conv2d"), target="cuda-sm80"),
    Mutant("lanes-identity", "partial sums begin at 1", "tilewright.schedule.primitives.lanes:identity", _identity_one, _ROWS),
    Mutant("rfactor-identity", "chains of a sum begin at 1", "tilewright.schedule.primitives.rfactor:identity", _identity_one, ("reduce_sum", "reduce_mean", "matmul")),
    Mutant("lanes-no-rest", "partial sums leave out what the width does not divide", "primitive:lanes", _after(_lanes_without_rest), _ROWS),
    Mutant("tails-no-last", "the tail of a parallel loop is not executed", "tilewright.tune.admit:specialize_tails", _no_last_branch, ("add", "copy", "relu")),
    Mutant("exp-coefficient", "one coefficient of exp is wrong", "tilewright.loop.passes.expand_math:_EXP", _scaled_exp, ("exp", "sigmoid", "softmax")),
    Mutant("sub-swapped", "operands of a subtraction are exchanged", f"{_BUILD}.binary", _swap_operands, ("sub", "softmax", "layer_norm")),
    Mutant("min-is-max", "minimum and maximum are exchanged", f"{_BUILD}._extremum", _min_is_max, ("min", "clip", "relu")),
    Mutant("less-or-equal", "less means less or equal", f"{_BUILD}._compare", _loose_less, ("lt", "gt", "argmax", "where")),
    Mutant("select-swapped", "a choice takes the other side", f"{_BUILD}.select", _select_swapped, ("where", "leaky_relu", "elu")),
    Mutant("fma-no-sum", "sums start anew at every product", f"{_BUILD}.fma", _fma_without_sum, ("matmul", "conv2d")),
    Mutant("round-not-cut", "floats become integers by rounding", f"{_BUILD}.cast", _rounding_cast, ("cast",)),
    Mutant("neg-zero", "the negative of 0 is 0", f"{_BUILD}.unary", _neg_zero, ("neg",)),
    Mutant("literals-cut", "literals have three digits", f"{_BUILD}.constant", _constant_cut, ("gelu", "erf", "tanh", "exp")),
    Mutant("store-unmasked", "partial vectors are stored whole", f"{_BUILD}.store_vector", _no_mask_store),
    Mutant("load-unmasked", "partial vectors are loaded whole", f"{_BUILD}.load_vector", _no_mask_load),
    Mutant("load-aligned", "vectors are loaded as if aligned", f"{_BUILD}.load_vector", _aligned_load),
    Mutant("blend-short", "one lane too few of a partial vector is kept in scratch", f"{_BUILD}.blend", _blend_short, ("matmul", "reduce_sum", "softmax", "conv2d")),
    Mutant("dense-rows", "rows are taken to follow each other whatever the strides say", "tilewright.codegen.addressing:Addressing.offset", _dense_strides),
    Mutant("loop-ends-early", "loops leave out their last iteration", f"{_EMIT}.serial", _one_less),
    Mutant("loop-begins-late", "loops leave out their first iteration", f"{_EMIT}.serial", _late_begin),
    Mutant("packed-order", "packed weights lie in the order they had", "tilewright.testing.native:pack_array", _wrong_layout, ("matmul", "conv2d")),
    Mutant("scratch-aliased", "two buffers of scratch share their place", f"{_EMIT}.alloc", _shared_scratch, ("softmax", "layer_norm", "instance_norm")),
)  # fmt: skip
