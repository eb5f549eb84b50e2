"""Decide how every value lies in memory, and insert the copies that this needs.

In: an optimised graph. Out: the graph with `copy` nodes, and a `Storage` for every value.
Layouts are physical only: the graph keeps its logical shapes. Three decisions are made here:
1. order: values around convolutions become channels-last, found by propagating operators' wishes
   through everything that does not care;
2. halo: padding, a convolution's or a node of its own, becomes a border around its input, written once by a
   `fill` step, so that no kernel ever tests for the edge of an image;
3. aliasing: view operators and concatenation move no data; their values are windows of another.
Invariant: every value's storage is a strided window (root, offset, strides) of one allocation.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from math import copysign, isnan

from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.registry import Border, LayoutWish, Operator, operator

Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Physical form of an allocation: dims from outermost to innermost, border per dim, its value."""

    order: tuple[int, ...]
    halo: Halo
    fill: float = 0.0

    @property
    def has_halo(self) -> bool:
        return any(lo or hi for lo, hi in self.halo)


@dataclass(frozen=True, slots=True)
class Storage:
    """A value's window of allocation `root`: element [i...] lies at offset + sum(i * strides).

    `halo` is the border that may be read around the window, in elements per dim.
    """

    root: str
    offset: int
    strides: tuple[int, ...]
    halo: Halo


@dataclass(slots=True)
class Placement:
    """The result: the graph with copies, layouts of allocations, windows of all values."""

    graph: Graph
    layouts: dict[str, Layout] = field(default_factory=dict[str, Layout])
    storage: dict[str, Storage] = field(default_factory=dict[str, Storage])
    aliased: set[str] = field(default_factory=set[str])
    """Outputs of nodes that need no kernel."""
    output_names: list[str] = field(default_factory=list[str])
    """The model's own names of the graph outputs."""
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict[str, tuple[str, int, int]])
    """Values that are written straight into a concatenation: (whole, axis, where along it)."""
    shifts: dict[str, tuple[str, int, int]] = field(default_factory=dict[str, tuple[str, int, int]])
    """Those of `parts` whose storage begins where the whole's does: indices are shifted instead."""

    def elements(self, root: str) -> int:
        """Size of an allocation in elements, border included."""
        t = self.graph.types[root]
        n = 1
        for extent, (lo, hi) in zip(t.shape, self.layouts[root].halo, strict=True):
            n *= extent + lo + hi
        return n


def natural(rank: int) -> Layout:
    """Row-major without a border."""
    return Layout(tuple(range(rank)), ((0, 0),) * rank)


def assign_layouts(graph: Graph, rigid: Set[str] = frozenset()) -> Placement:
    """Lay out all values of `graph`; see the module docstring. Nodes in `rigid` are no views."""
    return _Assigner(graph, rigid).run()


class _Assigner:
    def __init__(self, graph: Graph, rigid: Set[str]) -> None:
        self.g = graph.clone()
        self.rigid = rigid
        self.place = Placement(self.g)
        self.fixed = {*graph.inputs, *graph.constants}
        self.borders: dict[str, Halo] = {}
        """Borders of views, which are those of what they are views of."""
        self.padded: dict[str, Border] = {}
        """Results that are the input of their node with a border that it has in memory."""

    def run(self) -> Placement:
        g = self.g
        self.place.output_names = list(g.outputs)
        self._separate_outputs()
        orders = self._orders()
        for name, t in g.types.items():
            order = orders.get(name, tuple(range(t.rank)))
            self.place.layouts[name] = Layout(order, ((0, 0),) * t.rank)
        self._grant_wishes()
        self._concatenate()
        self._resolve()
        return self.place

    # ---- graph outputs

    def _separate_outputs(self) -> None:
        """Every graph output becomes a value of its own that a kernel can write directly."""
        g = self.g
        seen: set[str] = set()
        producers, consumers = g.producers(), g.consumers()
        for k, name in enumerate(g.outputs):
            node = producers.get(name)
            own = node is not None and node.op != "concat" and operator(node.op).trait != "view"
            if own and name not in seen and not consumers.get(name):
                seen.add(name)
                continue
            copy = self._insert_copy(name, len(g.nodes), f"{name}.out")
            g.outputs[k] = copy
            seen.add(copy)

    def _insert_copy(self, source: str, position: int, hint: str) -> str:
        g = self.g
        out = g.fresh(hint)
        g.types[out] = g.types[source]
        g.nodes.insert(position, Node(f"copy {source}", "copy", (source,), (out,)))
        return out

    # ---- dimension order

    def _orders(self) -> dict[str, tuple[int, ...]]:
        """Channels-last for every value connected to a wish for it through indifferent operators."""
        g = self.g
        parent: dict[str, str] = {}

        def find(x: str) -> str:
            while parent.setdefault(x, x) != x:
                parent[x] = parent[parent[x]]
                x = parent[x]
            return x

        wanted: dict[str, tuple[int, ...]] = {}
        outputs = set(g.outputs)
        for node in g.nodes:
            op = operator(node.op)
            wish = self._wish(node, op)
            for i, order in wish.orders.items():
                if node.inputs[i] not in self.fixed:
                    wanted[node.inputs[i]] = order
            if wish.out_order and node.outputs[0] not in outputs:
                wanted[node.outputs[0]] = wish.out_order
            if op.trait == "view" or node.op == "matmul" or _plain(wish.out_order):
                continue  # its result need not lie as its operands do
            free = [
                v
                for v in (*node.inputs, *node.outputs)
                if v and v not in self.fixed and v not in outputs
            ]
            out_rank = g.types[node.outputs[0]].rank
            same = [v for v in free if g.types[v].rank == out_rank]
            for v in same[1:]:
                parent[find(v)] = find(same[0])
        by_root: dict[str, tuple[int, ...]] = {}
        for v, order in wanted.items():
            if order != tuple(range(len(order))):
                by_root[find(v)] = order
        found: dict[str, tuple[int, ...]] = {}
        for v in list(parent):
            order = by_root.get(find(v), ())
            if order and len(order) == g.types[v].rank:
                found[v] = order
        for v, order in wanted.items():
            found.setdefault(v, order)
        return found

    def _wish(self, node: Node, op: Operator) -> LayoutWish:
        if op.wishes is None:
            return LayoutWish()
        types = [self.g.types[i] if i else None for i in node.inputs]
        return op.wishes(types, node.attrs)

    # ---- borders and contiguity

    def _grant_wishes(self) -> None:
        """Widen borders where a value can carry them, insert copies where it cannot."""
        g = self.g
        shared: dict[tuple[str, tuple[int, ...], Halo, float], str] = {}
        for node in list(g.nodes):
            self._pad(node, operator(node.op))
            wish = self._wish(node, operator(node.op))
            for i in sorted({*wish.orders, *wish.halos}):
                name = node.inputs[i]
                if name in g.constants:
                    continue
                rank = g.types[name].rank
                order = wish.orders.get(i, self.place.layouts[name].order)
                halo = tuple(wish.halos.get(i, ((0, 0),) * rank))
                if self._grant(name, order, halo, wish.fill):
                    continue
                key = (name, order, halo, wish.fill)
                if key not in shared:
                    at = next(k for k, n in enumerate(g.nodes) if n is node or n == node)
                    copy = self._insert_copy(name, at, f"{name}.laid")
                    self.place.layouts[copy] = Layout(order, halo, wish.fill)
                    shared[key] = copy
                k = g.nodes.index(node)
                inputs = list(node.inputs)
                inputs[i] = shared[key]
                node = node.with_(inputs=tuple(inputs))
                g.nodes[k] = node

    def _pad(self, node: Node, op: Operator) -> None:
        """Let the input of a node that only adds a border have it, if it can."""
        border = op.border(node.attrs) if op.border is not None else None
        if border is None or node.outputs[0] in self.g.outputs or node.name in self.rigid:
            return
        source = node.inputs[0]
        if self._grant(source, self.place.layouts[source].order, border.halo, border.fill):
            self.padded[node.outputs[0]] = border

    def _is_view(self, node: Node) -> bool:
        """Whether no kernel writes the result of `node`."""
        return operator(node.op).trait == "view" or node.outputs[0] in self.padded

    def _grant(self, name: str, order: tuple[int, ...], halo: Halo, fill: float) -> bool:
        """Whether the value can serve as it is (its own border is widened if need be)."""
        g = self.g
        wants_halo = any(lo or hi for lo, hi in halo)
        producer = g.producers().get(name)
        if wants_halo and self._grant_through(name, producer, order, halo, fill):
            return True
        movable = producer is not None and not self._is_view(producer) and name not in g.outputs
        if not wants_halo:
            return self._innermost_is_unit(name, order)
        if not movable:
            return False
        have = self.place.layouts[name]
        if have.order != order:
            return False
        if have.has_halo and not same_number(have.fill, fill):
            return False
        self.place.layouts[name] = Layout(order, _wider(have.halo, halo), fill)
        return True

    def _grant_through(
        self, name: str, producer: Node | None, order: tuple[int, ...], halo: Halo, fill: float
    ) -> bool:
        """Whether a view can have its border from what it is a view of: at edges that both have."""
        if producer is None or not producer.inputs or producer.name in self.rigid:
            return False
        if name in self.g.outputs:
            return False
        source, view = producer.inputs[0], operator(producer.op).view
        t = self.g.types[name]
        wanted = halo
        if producer.outputs[0] in self.padded:
            border = self.padded[producer.outputs[0]]
            wanted = tuple((a + c, b + d) for (a, b), (c, d) in zip(border.halo, halo, strict=True))
            if not same_number(border.fill, fill):
                return False
        else:
            strides = self._strides_now(source) if view is not None else None
            if view is None or strides is None or source in self.g.constants:
                return False
            got = view(self.g.types[source], strides, producer.attrs, t)
            if got is None or not _at_edges(halo, got.edges):
                return False
        if not self._grant(source, order, wanted, fill):
            return False
        self.borders[name] = _wider(self.borders.get(name, halo), halo)
        return True

    def _innermost_is_unit(self, name: str, order: tuple[int, ...]) -> bool:
        strides = self._strides_now(name)
        return strides is not None and (
            strides[order[-1]] == 1 or self.g.types[name].shape[order[-1]] == 1
        )

    def _strides_now(self, name: str) -> tuple[int, ...] | None:
        """Strides of a value under the layouts decided so far, looking through views."""
        producer = self.g.producers().get(name)
        t = self.g.types[name]
        if producer is not None and producer.outputs[0] in self.padded:
            return self._strides_now(producer.inputs[0])
        if producer is not None and operator(producer.op).trait == "view":
            inner = self._strides_now(producer.inputs[0])
            view = operator(producer.op).view
            source = self.g.types[producer.inputs[0]]
            if inner is None or view is None or producer.name in self.rigid:
                return None
            got = view(source, inner, producer.attrs, t)
            if got is not None:
                return got.strides
        return strides_of(t, self.place.layouts[name])

    # ---- concatenation without copies

    def _concatenate(self) -> None:
        """Let producers write straight into the concatenated value; copy what cannot."""
        g = self.g
        taken: set[str] = set()
        for node in list(g.nodes):
            if node.op != "concat":
                continue
            out = node.outputs[0]
            inputs = list(node.inputs)
            for i, name in enumerate(inputs):
                producer = g.producers().get(name)
                ok = (
                    producer is not None
                    and not self._is_view(producer)
                    and name not in taken
                    and name not in g.outputs
                    and not self.place.layouts[name].has_halo
                    and inputs.count(name) == 1
                )
                if not ok:
                    at = g.nodes.index(node)
                    name = self._insert_copy(name, at, f"{name}.part")
                    inputs[i] = name
                    node = self._replace(node, node.with_(inputs=tuple(inputs)))
                taken.add(name)
                self.place.layouts[name] = replace(
                    natural(g.types[name].rank), order=self.place.layouts[out].order
                )

    def _replace(self, old: Node, new: Node) -> Node:
        self.g.nodes[self.g.nodes.index(old)] = new
        return new

    # ---- windows

    def _resolve(self) -> None:
        g, place = self.g, self.place
        parts = place.parts
        for node in g.nodes:
            if node.op == "concat":
                axis, start = int(node.attrs["axis"]), 0  # type: ignore[arg-type]
                for name in node.inputs:
                    parts[name] = (node.outputs[0], axis, start)
                    start += g.types[name].shape[axis]
                place.aliased.add(node.outputs[0])

        def own(name: str) -> Storage:
            if name in parts:
                whole, axis, start = parts[name]
                s = window(whole)
                return Storage(
                    s.root,
                    s.offset + start * s.strides[axis],
                    s.strides,
                    ((0, 0),) * len(s.strides),
                )
            layout = place.layouts[name]
            strides = strides_of(g.types[name], layout)
            offset = sum(lo * s for (lo, _), s in zip(layout.halo, strides, strict=True))
            return Storage(name, offset, strides, layout.halo)

        def window(name: str) -> Storage:
            if name not in place.storage:
                place.storage[name] = own(name)
            return place.storage[name]

        for name in (*g.inputs, *g.constants):
            window(name)
        for node in g.nodes:
            op = operator(node.op)
            if node.outputs[0] in self.padded:
                source, out = window(node.inputs[0]), node.outputs[0]
                halo = self.padded[node.outputs[0]].halo
                corner = sum(lo * s for (lo, _), s in zip(halo, source.strides, strict=True))
                around = self.borders.get(out, ((0, 0),) * len(halo))
                place.storage[out] = Storage(
                    source.root, source.offset - corner, source.strides, around
                )
                place.aliased.add(out)
                continue
            if op.trait == "view" and op.view is not None and node.name not in self.rigid:
                source = window(node.inputs[0])
                t = g.types[node.outputs[0]]
                view = op.view(g.types[node.inputs[0]], source.strides, node.attrs, t)
                if (
                    view is not None
                    and node.outputs[0] not in parts
                    and (node.outputs[0] not in g.outputs)
                ):
                    halo = self.borders.get(node.outputs[0], ((0, 0),) * t.rank)
                    place.storage[node.outputs[0]] = Storage(
                        source.root, source.offset + view.offset, view.strides, halo
                    )
                    place.aliased.add(node.outputs[0])
                    continue
            for out in node.outputs:
                window(out)


def _wider(a: Halo, b: Halo) -> Halo:
    """The border that holds both."""
    return tuple((max(p, r), max(q, s)) for (p, q), (r, s) in zip(a, b, strict=True))


def same_number(a: float, b: float) -> bool:
    """Whether two values of a border have the same bits, as far as a float has them."""
    return (a == b and copysign(1, a) == copysign(1, b)) or (isnan(a) and isnan(b))


def _at_edges(halo: Halo, edges: Sequence[tuple[bool, bool]]) -> bool:
    """Whether a border lies only where a view begins or ends with what it is a view of."""
    if len(edges) != len(halo):
        return False
    return all(
        (a or not lo) and (b or not hi) for (lo, hi), (a, b) in zip(halo, edges, strict=True)
    )


def _plain(order: tuple[int, ...] | None) -> bool:
    """Whether an operator asks for the order of the dims themselves, whatever lies around it."""
    return order is not None and order == tuple(range(len(order)))


def strides_of(t: TensorType, layout: Layout) -> tuple[int, ...]:
    """Strides of an allocation in elements, in logical dim order."""
    strides = [0] * t.rank
    step = 1
    for dim in reversed(layout.order):
        strides[dim] = step
        lo, hi = layout.halo[dim]
        step *= t.shape[dim] + lo + hi
    return tuple(strides)
