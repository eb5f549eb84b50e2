"""Evaluate nodes whose inputs are all constants.

y = add(2, 3)   ->   const y = 5

Exact: the value is that of the operator's reference function.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.evaluate import MAX_BYTES, MAX_WEIGHTS, evaluate, is_worth_computing
from tilewright.graph.ir import Graph, Node
from tilewright.registry import operator


def fold_constants(graph: Graph) -> Graph:
    """Run the reference function of every node that depends on constants only."""
    g = graph.clone()
    kept: list[Node] = []
    room = MAX_BYTES
    for node in g.nodes:
        op = operator(node.op)
        types = [g.types[i] if i else None for i in node.inputs]
        results = [g.types[o] for o in node.outputs]
        known = all(not i or i in g.constants for i in node.inputs)
        growth = sum(t.bytes for t in results) - sum(t.bytes for t in types if t is not None)
        worth = is_worth_computing(op, types, node.attrs, results, MAX_WEIGHTS)
        if not known or growth > room or not worth:
            kept.append(node)
            continue
        room -= max(growth, 0)
        values = evaluate(op, [g.constants[i] if i else None for i in node.inputs], node.attrs)
        for name, value in zip(node.outputs, values, strict=True):
            g.constants[name] = np.ascontiguousarray(value).reshape(np.asarray(value).shape)
    g.nodes = kept
    return g
