"""Order and names of the nodes of an ONNX graph.

In: NodeProtos. Out: those that the results need, in topological order.
Invariant: a cycle and a value defined twice are errors; a file that is in order stays in that order.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx

from tilewright.errors import ModelError
from tilewright.frontend import limits


def node_name(n: onnx.NodeProto) -> str:
    """What messages call a node: its name, or its first output where it has none."""
    return str(n.name) or next((str(o) for o in n.output if o), str(n.op_type))


def subgraphs(n: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs in the attributes of a node."""
    for a in n.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        elif a.type == onnx.AttributeProto.GRAPHS:
            yield from a.graphs


def in_order(
    nodes: Sequence[onnx.NodeProto], known: Collection[str], results: Iterable[str], depth: int = 0
) -> list[onnx.NodeProto]:
    """The nodes that `results` need, in topological order; `known` values are defined elsewhere."""
    limits.check_nodes(len(nodes))
    maker = _makers(nodes, known)
    reads = [_values_read(n, depth) for n in nodes]
    before = [sorted({maker[v] for v in r if v in maker}) for r in reads]
    needed = _reach([maker[v] for v in results if v in maker], before)
    waiting = {i: len(before[i]) for i in needed}
    after: dict[int, list[int]] = {i: [] for i in needed}
    for i in needed:
        for j in before[i]:
            after[j].append(i)
    ready = [i for i, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    out: list[onnx.NodeProto] = []
    while ready:
        i = heapq.heappop(ready)
        out.append(nodes[i])
        del waiting[i]
        for j in after[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                heapq.heappush(ready, j)
    if waiting:
        raise ModelError(
            f"node `{node_name(nodes[_on_cycle(waiting, before)])}` is part of a cycle: the file is "
            "damaged"
        )
    return out


def _makers(nodes: Sequence[onnx.NodeProto], known: Collection[str]) -> dict[str, int]:
    """Which node defines each value."""
    maker: dict[str, int] = {}
    for i, n in enumerate(nodes):
        for o in n.output:
            if not o:
                continue
            if o in maker or o in known:
                raise ModelError(
                    f"node `{node_name(n)}` ({n.op_type}) defines `{o}` a second time: the file is damaged"
                )
            maker[str(o)] = i
    return maker


def _reach(roots: Iterable[int], before: Sequence[Sequence[int]]) -> set[int]:
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo += before[i]
    return seen


def _on_cycle(waiting: Collection[int], before: Sequence[Sequence[int]]) -> int:
    """A node of a cycle: going backwards through waiting nodes must come back to one."""
    i = next(iter(waiting))
    seen: set[int] = set()
    while i not in seen:
        seen.add(i)
        i = next(j for j in before[i] if j in waiting)
    return i


def _values_read(n: onnx.NodeProto, depth: int) -> list[str]:
    """Values a node reads, those its sub-graphs take from outside included."""
    limits.check_depth(depth)
    out = [str(v) for v in n.input if v]
    for g in subgraphs(n):
        inside = {o for m in g.node for o in m.output}
        inside |= {t.name for t in g.initializer} | {i.name for i in g.input}
        out += [v for m in g.node for v in _values_read(m, depth + 1) if v not in inside]
        out += [str(o.name) for o in g.output if o.name not in inside]
    return out
