"""Order and names of the nodes of an ONNX graph.

In: NodeProtos. Out: the same in topological order. Invariant: a cycle is an error, nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from tilewright.errors import ModelError


def node_name(n: onnx.NodeProto, i: int) -> str:
    return n.name or (n.output[0] if n.output else f"{n.op_type} #{i}")


def in_order(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Topological order (files are usually sorted already); a cycle is an error."""
    ready = set(known)
    made = {o for n in nodes for o in n.output}
    out: list[onnx.NodeProto] = []
    todo = list(nodes)
    while todo:
        later: list[onnx.NodeProto] = []
        for n in todo:
            if all(v in ready or v not in made for v in _values_read(n)):
                out.append(n)
                ready.update(n.output)
            else:
                later.append(n)
        if len(later) == len(todo):
            raise ModelError(
                f"node `{node_name(todo[0], 0)}` is part of a cycle: the file is damaged"
            )
        todo = later
    return out


def _values_read(n: onnx.NodeProto) -> list[str]:
    """Values a node reads, those its sub-graphs take from outside included."""
    out = [v for v in n.input if v]
    for a in n.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            inside = {o for m in a.g.node for o in m.output} | {t.name for t in a.g.initializer}
            inside |= {i.name for i in a.g.input}
            out += [v for m in a.g.node for v in _values_read(m) if v not in inside]
            out += [o.name for o in a.g.output if o.name not in inside]
    return out
