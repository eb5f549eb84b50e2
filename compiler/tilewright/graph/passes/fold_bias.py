"""Let a contraction add a constant per channel itself.

add(matmul(a, b), c)      ->   matmul(a, b, c)           c constant along the output channels
sub(conv(x, w, b), c)     ->   conv(x, w, b - c)

Sums of two constants are taken in float64 and rounded once.
"""

from __future__ import annotations

from tilewright.graph.ir import Array, Graph, Node
from tilewright.graph.passes._values import (
    channel_vector,
    constant_bias,
    is_contraction,
    only_use,
    with_bias,
)


def fold_bias(graph: Graph) -> Graph:
    """Fold where the contraction has no other consumer; the node takes the sum's name."""
    g = graph.clone()
    consumers = g.consumers()
    made: dict[str, int] = {}
    kept: list[Node] = []
    for node in g.nodes:
        for source, other, sign in _operands(node):
            at = made.get(source)
            producer = kept[at] if at is not None else None
            if producer is None or at is None or not is_contraction(producer):
                continue
            if g.types[source] != g.types[node.outputs[0]] or not only_use(g, consumers, source):
                continue
            bias = _sum(g, producer, other, sign)
            if bias is not None:
                kept[at] = with_bias(g, producer, bias, node.outputs[0])
                made[node.outputs[0]] = at
                break
        else:
            made.update((o, len(kept)) for o in node.outputs)
            kept.append(node)
    g.nodes = kept
    g.drop_unused()
    return g


def _operands(node: Node) -> list[tuple[str, str, float]]:
    """(value, constant, sign) in the ways the node can be read."""
    if node.op == "add":
        a, b = node.inputs
        return [(a, b, 1.0), (b, a, 1.0)]
    return [(node.inputs[0], node.inputs[1], -1.0)] if node.op == "sub" else []


def _sum(g: Graph, producer: Node, other: str, sign: float) -> Array | None:
    vector, bias = channel_vector(g, other, producer), constant_bias(g, producer)
    return None if vector is None or bias is None else bias + sign * vector
