"""Evaluate nodes whose inputs are all constants.

y = add(2, 3)   ->   const y = 5
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Graph, Node
from tilewright.registry import operator


def fold_constants(graph: Graph) -> Graph:
    """Run the reference function of every node that depends on constants only."""
    g = graph.clone()
    kept: list[Node] = []
    for node in g.nodes:
        if not all(not i or i in g.constants for i in node.inputs):
            kept.append(node)
            continue
        with np.errstate(all="ignore"):
            values = operator(node.op).reference(
                [g.constants[i] if i else None for i in node.inputs], node.attrs
            )
        for name, value in zip(node.outputs, values, strict=True):
            g.constants[name] = np.ascontiguousarray(value).reshape(np.asarray(value).shape)
    g.nodes = kept
    return g
