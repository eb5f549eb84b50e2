"""Compute equal things once: nodes with equal operator, inputs and attributes, and equal constants.

a = relu(x); b = relu(x); c = add(a, b)   ->   a = relu(x); c = add(a, a)
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Graph, Node


def eliminate_duplicates(graph: Graph) -> Graph:
    """Replace every later duplicate by the first."""
    g = graph.clone()
    same: dict[str, str] = {}
    by_value: dict[object, str] = {}
    for name, array in g.constants.items():
        key = (g.types[name], np.ascontiguousarray(array).tobytes())
        first = by_value.setdefault(key, name)
        if first != name:
            same[name] = first
    seen: dict[object, Node] = {}
    kept: list[Node] = []
    for node in g.nodes:
        inputs = tuple(same.get(i, i) for i in node.inputs)
        call = (node.op, inputs, tuple(sorted(node.attrs.items())))
        first_node = seen.setdefault(call, node)
        if first_node is node:
            kept.append(node.with_(inputs=inputs))
        else:
            same.update(zip(node.outputs, first_node.outputs, strict=True))
    g.nodes = kept
    g.outputs = [same.get(o, o) for o in g.outputs]
    g.drop_unused()
    return g
