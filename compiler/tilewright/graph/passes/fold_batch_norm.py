"""Fold batch normalisation and scaling per channel into the contraction before them.

    batch_norm(conv(x, w, b))  ->  conv(x, w * a, (b - mean) * a + bias)     a = scale / sqrt(var + eps)
    conv(x, w, b) * c          ->  conv(x, w * c, b * c)                     c constant per channel
    batch_norm(x) elsewhere    ->  x * a + (bias - mean * a)

Weights are rescaled in float64 and rounded once; those that other nodes read too are copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.graph.ir import Array, Graph, Node
from tilewright.graph.passes._values import (
    channel_vector,
    constant_bias,
    is_contraction,
    only_use,
    with_bias,
)

#: x * factor + shift per channel, in float64
Scaling = tuple[Array, Array]


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold where the contraction has no other consumer; otherwise spell batch_norm out."""
    g = graph.clone()
    consumers = g.consumers()
    made: dict[str, int] = {}
    kept: list[Node] = []
    for node in g.nodes:
        for source, other in _operands(node):
            at = made.get(source)
            if at is None or not _foldable(g, consumers, kept[at], source, node):
                continue
            scaling = _scaling(g, node, other, kept[at])
            if scaling is not None:
                kept[at] = _fold(g, kept[at], scaling, node.outputs[0])
                made[node.outputs[0]] = at
                break
        else:
            params = _normalization(g, node)
            new = [node] if params is None else _spelled_out(g, node, params)
            kept += new
            made.update((o, len(kept) - 1) for o in node.outputs)
    g.nodes = kept
    g.drop_unused()
    return g


def _operands(node: Node) -> list[tuple[str, str]]:
    """(value, constant) in the ways the node can be read."""
    if node.op == "mul":
        return [node.inputs[:2], node.inputs[1::-1]]  # type: ignore[list-item]
    return [node.inputs[:2]] if node.op in ("div", "batch_norm") else []  # type: ignore[list-item]


def _normalization(g: Graph, node: Node) -> Scaling | None:
    """Factor and shift of a batch_norm with constant parameters."""
    if node.op != "batch_norm":
        return None
    params = [g.constants.get(i) for i in node.inputs[1:5]]
    if any(p is None for p in params):
        return None
    scale, bias, mean, var = (np.asarray(p, np.float64) for p in params)
    factor = scale / np.sqrt(var + float(node.attrs["epsilon"]))  # type: ignore[arg-type]
    return factor, bias - mean * factor


def _scaling(g: Graph, node: Node, other: str, producer: Node) -> Scaling | None:
    if node.op == "batch_norm":
        # its channels are dim 1, those of a matrix product the last one
        fits = producer.op != "matmul" or g.types[producer.outputs[0]].rank == 2
        return _normalization(g, node) if fits else None
    vector = channel_vector(g, other, producer)
    if vector is None:
        return None
    with np.errstate(divide="ignore"):
        factor = vector if node.op == "mul" else 1 / vector
    return (factor, np.zeros_like(factor)) if np.isfinite(factor).all() else None


def _foldable(
    g: Graph, consumers: Mapping[str, Sequence[Node]], producer: Node, source: str, node: Node
) -> bool:
    return (
        is_contraction(producer)
        and g.types[source] == g.types[node.outputs[0]]
        and g.types[source].dtype.is_float
        and producer.inputs[1] in g.constants
        and constant_bias(g, producer) is not None
        and only_use(g, consumers, source)
    )


def _fold(g: Graph, node: Node, scaling: Scaling, output: str) -> Node:
    factor, shift = scaling
    w = g.constants[node.inputs[1]]
    scaled = (w.astype(np.float64) * _along_weights(node, w, factor)).astype(w.dtype)
    node = node.with_(
        inputs=(
            node.inputs[0],
            g.add_constant(f"{node.inputs[1]}.scaled", scaled),
            *node.inputs[2:],
        )
    )
    bias = constant_bias(g, node)
    assert bias is not None  # _foldable
    if len(node.inputs) < 3 and not shift.any():
        return node.with_(outputs=(output,))
    return with_bias(g, node, bias * factor + shift, output)


def _along_weights(node: Node, w: Array, factor: Array) -> Array:
    """The factor of each output channel, in a shape that broadcasts to the weights."""
    if node.op == "matmul":
        return factor
    if node.op == "conv_transpose2d":  # [C, O/g, KH, KW]: the first dim says which group
        group = int(node.attrs["group"])  # type: ignore[arg-type]
        return np.repeat(factor.reshape(group, -1), w.shape[0] // group, axis=0)[:, :, None, None]
    return factor.reshape(-1, 1, 1, 1)


def _spelled_out(g: Graph, node: Node, scaling: Scaling) -> list[Node]:
    t = g.types[node.inputs[0]]
    shape = (-1,) + (1,) * max(t.rank - 2, 0)
    out = node.outputs[0]
    a, b = (
        g.add_constant(f"{out}.{what}", v.reshape(shape).astype(t.dtype.numpy))
        for what, v in zip(("factor", "shift"), scaling, strict=True)
    )
    middle = g.fresh(f"{out}.scaled")
    g.types[middle] = t
    return [
        Node(node.name, "mul", (node.inputs[0], a), (middle,)),
        Node(node.name, "add", (middle, b), node.outputs),
    ]
