"""A chain of nodes that makes maps, one band of rows after the other.

In: a graph, nodes of a chain (maps are of rank 4, their rows dim 2; heads of attention, dim 1, are cut alike). Out: a
graph in which the chain stands once for each band of its result, with what lies between its nodes only as high as a
band needs it.
Invariant: exact; every element is computed by the operations that computed it before, those near the edge of a
band twice. Bands are read from slices and joined by a concatenation, which move no data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.graph.ir import Attrs, Graph, Node, TensorType
from tilewright.registry import operator

#: Dims of a map, which of them the rows are, and along which attention has its heads.
RANK, ROWS, HEADS = 4, 2, 1

#: First row and the one after the last.
Span = tuple[int, int]

#: What comes between the name of a node and the number of its band.
_BAND = "/band"


@dataclass(frozen=True, slots=True)
class Need:
    """What a node needs to make some rows: rows of operands that it needs in part, its attributes then."""

    spans: Mapping[str, Span]
    attrs: Attrs


def need(graph: Graph, node: Node, span: Span, dim: int = ROWS) -> Need | None:
    """What `node` needs for `span` of its result along `dim`; None where that cannot be told."""
    if len(node.outputs) != 1 or graph.types[node.outputs[0]].rank != RANK:
        return None
    op = operator(node.op)
    types = [graph.types[i] if i else None for i in node.inputs]
    if dim == ROWS and op.rows is not None:
        rows = op.rows(types, node.attrs, *span)
        if rows is None or rows.first >= rows.end or node.inputs[0] in node.inputs[1:]:
            return None
        return Need({node.inputs[0]: (rows.first, rows.end)}, rows.attrs)
    if op.trait != "elementwise" and (op.apart is None or dim >= op.apart(types, node.attrs)):
        return None
    shape = graph.types[node.outputs[0]].shape
    spans: dict[str, Span] = {}
    for name in filter(None, node.inputs):
        given = graph.types[name].shape
        at = len(given) - RANK + dim
        if at >= 0 and given[at] == shape[dim] > 1:
            if (
                len(given) > RANK
                or np.broadcast_shapes(given[: at + 1], shape[: dim + 1]) != shape[: dim + 1]
            ):
                return None
            spans[name] = span
    return Need(spans, node.attrs)


def spans(
    graph: Graph, nodes: Sequence[Node], band: Span, dim: int = ROWS
) -> dict[str, Span] | None:
    """What is needed of everything that the chain makes or reads in part, for `band` of what its last node makes; None
    where that cannot be told."""
    out = {nodes[-1].outputs[0]: band}
    made = {n.outputs[0] for n in nodes}
    for node in reversed(nodes):
        wanted = need(graph, node, out[node.outputs[0]], dim)
        if wanted is None or any(i in made and i not in wanted.spans for i in node.inputs):
            return None
        for name, (first, end) in wanted.spans.items():
            low, high = out.get(name, (first, end))
            out[name] = (min(low, first), max(high, end))
    return out


def layer_of(node: str) -> tuple[str, bool]:
    """The name of a node without that of its band, and whether it has one."""
    name, mark, number = node.rpartition(_BAND)
    return (name, True) if mark and number.isdigit() else (node, False)


def bands(height: int, rows: int) -> list[Span]:
    """Bands of `rows` rows, the last one as high as is left."""
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def heights(height: int, counts: Iterable[int]) -> list[int]:
    """Rows that make so many bands of about the same height."""
    return sorted({-(-height // count) for count in counts if count <= height})


@dataclass(frozen=True, slots=True)
class Bands:
    """A chain in bands: how many there are, the rows that are made of each value in all and of a band at most, and
    `extra`, the operations beyond those of the whole chain."""

    count: int
    made: Mapping[str, int]
    tallest: Mapping[str, int]
    extra: float


def in_bands(graph: Graph, nodes: Sequence[Node], rows: int) -> Bands | None:
    """What it means to cut a chain into bands of `rows` rows; None if that cannot be done."""
    made = dict.fromkeys([n.outputs[0] for n in nodes], 0)
    tallest = dict.fromkeys(made, 0)
    pieces = bands(graph.types[nodes[-1].outputs[0]].shape[ROWS], rows)
    for band in pieces:
        known = spans(graph, nodes, band)
        if known is None:
            return None
        for value in made:
            high = known[value][1] - known[value][0]
            made[value] += high
            tallest[value] = max(tallest[value], high)
    extra = sum(
        _work(graph, n) * (made[n.outputs[0]] / graph.types[n.outputs[0]].shape[ROWS] - 1)
        for n in nodes
    )
    return Bands(len(pieces), made, tallest, extra)


def _work(graph: Graph, node: Node) -> int:
    op = operator(node.op)
    types = [graph.types[i] if i else None for i in node.inputs]
    return (
        op.flops(types, node.attrs) if op.flops is not None else graph.types[node.outputs[0]].size
    )


def cut(graph: Graph, nodes: Sequence[Node], rows: int, heads: int = 0) -> Graph:
    """`graph` with the chain `nodes` in bands of `rows` rows of its result, for `heads` parts of dim 1 at a time if
    that is not 0.

    The nodes are in order, nothing but the last one's result is needed outside of them, and `spans` knows them.
    """
    if heads:
        cutter = _Cutter(graph, nodes, HEADS)
        graph, chains = cutter.run(heads), cutter.chains
    else:
        chains = [list(nodes)]
    for chain in chains:
        if rows < graph.types[chain[-1].outputs[0]].shape[ROWS]:
            graph = _Cutter(graph, chain, ROWS).run(rows)
    return graph


class _Cutter:
    def __init__(self, graph: Graph, nodes: Sequence[Node], dim: int) -> None:
        self.g = graph
        self.nodes = nodes
        self.dim = dim
        self.out = graph.clone()
        self.made: list[Node] = []
        self.chains: list[list[Node]] = []
        """Of each band."""
        self.slices: dict[tuple[str, Span], str] = {}

    def run(self, rows: int) -> Graph:
        result = self.nodes[-1].outputs[0]
        parts = [
            self.band(k, span)
            for k, span in enumerate(bands(self.g.types[result].shape[self.dim], rows))
        ]
        name = f"{self.nodes[-1].name}/bands"
        self.made.append(Node(name, "concat", tuple(parts), (result,), {"axis": self.dim}))
        chain = {id(n) for n in self.nodes}
        self.out.nodes = []
        for n in self.g.nodes:
            if n is self.nodes[-1]:
                self.out.nodes += self.made
            elif id(n) not in chain:
                self.out.nodes.append(n)
        self.out.drop_unused()
        return self.out

    def band(self, k: int, span: Span) -> str:
        """Append the chain for one band; the name of its result."""
        known = spans(self.g, self.nodes, span, self.dim)
        assert known is not None
        here: dict[str, str] = {}
        chain: list[Node] = []
        for node in self.nodes:
            value = node.outputs[0]
            wanted = need(self.g, node, known[value], self.dim)
            assert wanted is not None
            inputs: list[str] = []
            for name in node.inputs:
                if name in here:  # all of the band, or a part of it
                    first, end = wanted.spans[name]
                    start = known[name][0]
                    name = self.rows(here[name], (first - start, end - start))
                elif name in wanted.spans:
                    name = self.rows(name, wanted.spans[name])
                inputs.append(name)
            t = self.g.types[value]
            high = known[value][1] - known[value][0]
            made = self.out.fresh(f"{value}.band{k}")
            self.out.types[made] = _with(t, self.dim, high)
            here[value] = made
            chain.append(
                node.with_(
                    name=f"{node.name}{_BAND}{k}", inputs=tuple(inputs), outputs=(made,),
                    attrs=wanted.attrs,
                )
            )  # fmt: skip
            self.made.append(chain[-1])
        self.chains.append(chain)
        return here[self.nodes[-1].outputs[0]]

    def rows(self, name: str, span: Span) -> str:
        """Rows `span` of a value."""
        t = self.out.types[name]
        dim = t.rank - RANK + self.dim
        if span == (0, t.shape[dim]):
            return name
        if (name, span) not in self.slices:
            starts, ends = [0] * t.rank, list(t.shape)
            starts[dim], ends[dim] = span
            value = self.out.fresh(f"{name}.rows{span[0]}")
            self.out.types[value] = _with(t, dim, span[1] - span[0])
            attrs = {"starts": tuple(starts), "ends": tuple(ends), "steps": (1,) * t.rank}
            self.made.append(Node(f"rows {value}", "slice", (name,), (value,), attrs))
            self.slices[name, span] = value
        return self.slices[name, span]


def _with(t: TensorType, dim: int, extent: int) -> TensorType:
    return TensorType(t.dtype, (*t.shape[:dim], extent, *t.shape[dim + 1 :]))
