"""Evaluate nodes whose inputs are all constants.

y = add(2, 3)   ->   const y = 5

Exact: the value is that of the operator's reference function.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Graph, Node
from tilewright.registry import operator

#: Larger results are left to run time: they would only make the artifact big.
MAX_ELEMENTS = 1 << 28


def fold_constants(graph: Graph) -> Graph:
    """Run the reference function of every node that depends on constants only."""
    g = graph.clone()
    kept: list[Node] = []
    for node in g.nodes:
        known = all(not i or i in g.constants for i in node.inputs)
        if not known or sum(g.types[o].size for o in node.outputs) > MAX_ELEMENTS:
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
