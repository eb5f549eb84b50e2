"""Let a matrix product add a constant bias itself.

add(matmul(a, b), c)   ->   matmul(a, b, c)      c constant, of shape [N] or broadcasting like it
"""

from __future__ import annotations

from tilewright.graph.ir import Graph, Node


def fold_bias(graph: Graph) -> Graph:
    """Fold where the product has no other consumer and no bias yet."""
    g = graph.clone()
    consumers = g.consumers()
    made: dict[str, Node] = {}
    kept: list[Node] = []
    for node in g.nodes:
        if node.op == "add":
            for x, c in (node.inputs, node.inputs[::-1]):
                producer = made.get(x)
                bias = g.constants.get(c)
                fits = (
                    producer is not None
                    and bias is not None
                    and producer.op == "matmul"
                    and len(producer.inputs) == 2
                    and len(consumers.get(x, [])) == 1
                    and x not in g.outputs
                    and g.types[x] == g.types[node.outputs[0]]
                    and bias.size == g.types[x].shape[-1]
                    and (bias.ndim == 0 or bias.shape[-1] == bias.size)
                )
                if fits and producer is not None and bias is not None:
                    flat = g.add_constant(f"{c}.bias", bias.reshape(-1))
                    inputs = (*producer.inputs, flat)
                    merged = producer.with_(inputs=inputs, outputs=node.outputs)
                    kept[kept.index(producer)] = merged
                    made[node.outputs[0]] = merged
                    break
            else:
                kept.append(node)
                made[node.outputs[0]] = node
            continue
        kept.append(node)
        made.update((o, node) for o in node.outputs)
    g.nodes = kept
    g.drop_unused()
    return g
