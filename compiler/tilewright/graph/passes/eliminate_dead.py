"""Remove nodes and constants that no output depends on."""

from __future__ import annotations

from tilewright.graph.ir import Graph


def eliminate_dead(graph: Graph) -> Graph:
    """Keep what the outputs need."""
    g = graph.clone()
    needed = set(g.outputs)
    kept = []
    for node in reversed(g.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed.update(i for i in node.inputs if i)
    g.nodes = kept[::-1]
    g.drop_unused()
    return g
