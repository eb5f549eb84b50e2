"""Compute a node in another way, where someone who measured says so.

In: an optimised graph and a choice per node. Out: a graph in which those nodes are replaced by the nodes
of their variant (see `registry.variants`). Not exact: variants round differently.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.graph.ir import Graph, Node
from tilewright.registry import variants

#: (graph, node) -> name of the variant to use, or None for the operator's own way.
Chooser = Callable[[Graph, Node], str | None]


def choose_variants(graph: Graph, choose: Chooser) -> Graph:
    """Replace nodes by the variants that `choose` names; one that does not apply is left out."""
    out = graph.clone()
    nodes: list[Node] = []
    known = variants()
    for node in graph.nodes:
        name = choose(out, node) if node.op in known else None
        rewrite = known.get(node.op, {}).get(name) if name is not None else None
        made = rewrite(out, node) if rewrite is not None else None
        nodes.extend([node] if made is None else made)
    out.nodes = nodes
    out.drop_unused()
    return out
