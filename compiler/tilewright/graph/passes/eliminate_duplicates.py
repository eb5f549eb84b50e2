"""Compute equal things once: nodes with equal operator, inputs and attributes, and equal constants.

a = relu(x); b = relu(x); c = add(a, b)   ->   a = relu(x); c = add(a, a)

Exact.
"""

from __future__ import annotations

import hashlib

from tilewright.graph.ir import Graph, Node
from tilewright.graph.passes._values import forward


def eliminate_duplicates(graph: Graph) -> Graph:
    """Replace every later duplicate by the first."""
    g = graph.clone()
    same = _equal_constants(g)
    seen: dict[object, Node] = {}
    kept: list[Node] = []
    for node in g.nodes:
        inputs = tuple(same.get(i, i) for i in node.inputs)
        # as text, because 0.0 == -0.0 and 1 == True
        call = (node.op, inputs, repr(sorted(node.attrs.items())))
        first = seen.setdefault(call, node)
        # the copy that gives a graph output its own name is not a duplicate of another one
        if first is node or node.op == "copy" or len(first.outputs) != len(node.outputs):
            kept.append(node.with_(inputs=inputs))
        else:
            same.update(zip(node.outputs, first.outputs, strict=True))
    g.nodes = kept
    forward(g, same)
    g.drop_unused()
    return g


def _equal_constants(g: Graph) -> dict[str, str]:
    """Later constant -> the first of equal bytes; only constants of one type are compared."""
    by_type: dict[object, list[str]] = {}
    for name in g.constants:
        if name not in g.outputs:
            by_type.setdefault(g.types[name], []).append(name)
    same: dict[str, str] = {}
    for names in by_type.values():
        if len(names) == 1:
            continue
        by_value: dict[bytes, str] = {}
        for name in names:
            digest = hashlib.sha256(g.constants[name].tobytes()).digest()
            first = by_value.setdefault(digest, name)
            if first != name:
                same[name] = first
    return same
