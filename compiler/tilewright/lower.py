"""Turn a fused group into a kernel: operator definitions in, one loop nest with its followers out.

In: a `Group`, the `Placement` of all values, the constants. Out: an unscheduled `Kernel` and where each
of its parameters lives.
Invariant: operator files speak logical indices; here they become indices of strided windows. Types that
only store values are decoded where elements are read, and every value of such a type is rounded to it, in
a kernel or between two: operators see the types of their arithmetic alone. Nothing is scheduled here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.fuse import Group
from tilewright.graph.ir import Node, TensorType
from tilewright.graph.layout import Placement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import (
    Buffer,
    Const,
    Expr,
    Kernel,
    Load,
    Param,
    Ref,
    Role,
    Store,
    dense,
)
from tilewright.loop.rewrite import simplify_kernel
from tilewright.loop.storage import decode, encode, rounded
from tilewright.registry import Operator, operator

#: Bits of a row that one or two stores write, on most devices.
_SHORT_ROW = 512


@dataclass(frozen=True, slots=True)
class Argument:
    """What a parameter is bound to: value `value` of the graph, `offset` elements into its root."""

    value: str
    offset: int
    role: Role


@dataclass(slots=True)
class Lowered:
    """An unscheduled kernel with its arguments, in parameter order."""

    kernel: Kernel
    arguments: list[Argument] = field(default_factory=list[Argument])


def lower_group(place: Placement, group: Group) -> Lowered:
    """The unscheduled kernel of a group."""
    return _Lowerer(place, group).run()


def lower_fill(place: Placement, value: str) -> Lowered | None:
    """The kernel that writes the border of allocation `value`, or None if it has none.

    It runs before all others that write there. So where short rows (pixels of a few channels) have a border each,
    everything is written: whole vectors instead of an element here and there.
    """
    layout = place.layouts[value]
    if not layout.has_halo:
        return None
    t = place.graph.types[value]
    shape = [t.shape[d] + sum(layout.halo[d]) for d in layout.order]
    k = KernelBuilder()
    buffer = dense("y", t.dtype.storage, tuple(shape))
    stored = np.asarray(layout.fill).astype(t.dtype.numpy).view(t.dtype.storage.numpy)
    fill = Const(stored.item(), t.dtype.storage)
    inner = [(0, n) for n in shape]
    if any(layout.halo[layout.order[-1]]) and shape[-1] * buffer.dtype.bits <= _SHORT_ROW:
        _fill_box(k, buffer, inner, fill)
        return Lowered(_finished(k, buffer), [Argument(value, 0, "out")])
    for axis, d in enumerate(layout.order):  # one slab per border, later axes inside earlier ones
        lo, hi = layout.halo[d]
        for start, count in ((0, lo), (shape[axis] - hi, hi)):
            if count:
                spans = [*inner[:axis], (start, count), *inner[axis + 1 :]]
                _fill_box(k, buffer, spans, fill)
        inner[axis] = (lo, t.shape[d])
    return Lowered(_finished(k, buffer), [Argument(value, 0, "out")])


def _finished(k: KernelBuilder, buffer: Buffer) -> Kernel:
    return simplify_kernel(Kernel("fill", (Param(buffer, "out"),), k.finish()))


def _fill_box(k: KernelBuilder, buffer: Buffer, spans: Sequence[tuple[int, int]], v: Expr) -> None:
    def nest(i: int, index: tuple[Ix, ...]) -> None:
        if i == len(spans):
            k.stmt(Store(buffer.name, k.simplify(index), v))
            return
        start, count = spans[i]
        with k.loop(f"i{i}", count) as at:
            nest(i + 1, (*index, at + start))

    nest(0, ())


class _Lowerer:
    def __init__(self, place: Placement, group: Group) -> None:
        self.place = place
        self.g = place.graph
        self.group = group
        self.params: list[Param] = []
        self.arguments: list[Argument] = []
        self.known: dict[str, Buffer] = {}
        self.k = KernelBuilder()

    def run(self) -> Lowered:
        node = self.group.anchor
        op = operator(node.op)
        out_type = self.worked(node.outputs[0])
        readers = [self.reader(i) if i else None for i in node.inputs]
        self.k = KernelBuilder(readers, out_type.shape, out_type.dtype, self.deliver)
        if op.alone:
            self.k.result = Reader(out_type.shape, out_type.dtype, self.delivered)
        if op.lower is not None:
            op.lower(self.k, node.attrs)
        elif op.compute is not None:
            self.injective(op, node, readers, out_type)
        else:
            raise ModelError(f"node `{node.name}` ({node.op}): the operator has no lowering")
        kernel = Kernel(_symbol(self.group), tuple(self.params), self.k.finish())
        return Lowered(simplify_kernel(kernel), self.arguments)

    def injective(
        self, op: Operator, node: Node, readers: list[Reader | None], t: TensorType
    ) -> None:
        """One loop per dim in the order of the output's memory, then one expression."""
        assert op.compute is not None
        storage = self.place.storage[self.group.output]
        order = sorted(range(t.rank), key=lambda d: -storage.strides[d])
        compute = op.compute

        def nest(depth: int, index: dict[int, Ix]) -> None:
            if depth == t.rank:
                at = tuple(index[d] for d in range(t.rank))
                self.deliver(at, compute(readers, at, node.attrs, t, self.k))
                return
            d = order[depth]
            with self.k.loop(f"i{d}", t.shape[d]) as i:
                nest(depth + 1, {**index, d: i})

        nest(0, {})

    # ---- inputs

    def worked(self, name: str) -> TensorType:
        """The type of a value as operators see it."""
        t = self.g.types[name]
        return TensorType(t.dtype.work, t.shape)

    def reader(self, name: str) -> Reader:
        t = self.worked(name)
        constant = self.g.constants.get(name)
        if constant is not None and constant.size == 1:
            literal = Const(constant.reshape(-1).astype(t.dtype.numpy)[0].item(), t.dtype)
            return Reader(t.shape, t.dtype, lambda _: literal)
        return Reader(t.shape, t.dtype, lambda index: self.load(name, index))

    def load(self, name: str, index: tuple[Ix, ...]) -> Expr:
        buffer, order, shift = self.window(name, "const" if name in self.g.constants else "in")
        at = tuple(index[d] + shift[d] for d in order)
        bits = Load(buffer.name, self.k.simplify(at), buffer.dtype)
        return decode(bits, self.g.types[name].dtype)

    def window(self, name: str, role: Role) -> tuple[Buffer, list[int], tuple[int, ...]]:
        """The parameter for a value: its buffer, the order of its dims, the shift by its border."""
        t = self.g.types[name]
        if role == "const":
            order = list(range(t.rank))
            shift = (0,) * t.rank
            if name not in self.known:
                self.known[name] = dense(f"w{len(self.params)}", t.dtype.storage, t.shape, "const")
                self.add(self.known[name], Argument(name, 0, role))
            return self.known[name], order, shift
        s = self.place.storage[name]
        halo = s.halo if role == "in" else ((0, 0),) * t.rank
        order = sorted(range(t.rank), key=lambda d: (-abs(s.strides[d]), d))
        shift = tuple(lo for lo, _ in halo)
        sizes = list(t.shape)
        if name in self.place.shifts:  # a part that begins at a place known at run time
            whole, axis, start = self.place.shifts[name]
            shift = (*shift[:axis], shift[axis] + start, *shift[axis + 1 :])
            sizes[axis] = self.g.types[whole].shape[axis]
        if name not in self.known:
            shape = tuple(sizes[d] + sum(halo[d]) for d in order)
            strides = tuple(
                0 if n == 1 else s.strides[d] for n, d in zip(shape, order, strict=True)
            )
            offset = s.offset - sum(lo * st for (lo, _), st in zip(halo, s.strides, strict=True))
            prefix = "x" if role == "in" else "y"
            buffer = Buffer(
                f"{prefix}{len(self.params)}", t.dtype.storage, shape, strides, "global"
            )
            self.known[name] = buffer
            self.add(buffer, Argument(name, offset, role))
        return self.known[name], order, shift

    def add(self, buffer: Buffer, argument: Argument) -> None:
        self.params.append(Param(buffer, argument.role))
        self.arguments.append(argument)

    # ---- the result and its followers

    def deliver(self, index: tuple[Ix, ...], value: Expr) -> None:
        """Apply the followers to one element and store it."""
        values = {self.group.anchor.outputs[0]: value}
        uses: dict[str, int] = {}
        for n in self.group.nodes[1:]:
            for i in n.inputs:
                uses[i] = uses.get(i, 0) + 1
        last = value
        for node in self.group.nodes:
            name = node.outputs[0]
            if node is not self.group.anchor:
                op = operator(node.op)
                assert op.compute is not None
                readers = [self.follower_input(i, values) if i else None for i in node.inputs]
                last = op.compute(readers, index, node.attrs, self.worked(name), self.k)
            if uses.get(name, 0) > 0:
                last = rounded(last, self.g.types[name].dtype)
                if not isinstance(last, Const | Ref | Load):
                    last = self.k.let("v", last)
            values[name] = last
        buffer, order, shift = self.window(self.group.output, "out")
        at = tuple(index[d] + shift[d] for d in order)
        last = encode(last, self.g.types[self.group.output].dtype)
        self.k.stmt(Store(buffer.name, self.k.simplify(at), last))

    def delivered(self, index: tuple[Ix, ...]) -> Expr:
        """An element of the result as it was stored."""
        buffer, order, shift = self.window(self.group.output, "out")
        at = tuple(index[d] + shift[d] for d in order)
        bits = Load(buffer.name, self.k.simplify(at), buffer.dtype)
        return decode(bits, self.g.types[self.group.output].dtype)

    def follower_input(self, name: str, values: dict[str, Expr]) -> Reader:
        if name in values:
            value = values[name]
            return Reader(self.g.types[name].shape, value.dtype, lambda _: value)
        return self.reader(name)


def _symbol(group: Group) -> str:
    """A readable C identifier for a group's kernel."""
    return "_".join([group.anchor.op, *[n.op for n in group.nodes[1:4]]])


def fingerprint(kernel: Kernel) -> str:
    """Content hash of a kernel without its name: equal kernels are compiled once."""
    return hashlib.sha256(repr(replace(kernel, name="")).encode()).hexdigest()[:16]
