"""Fold batch normalisation and per-channel scaling into the contraction before them.

    batch_norm(conv(x, w, b))  ->  conv(x, w * a, (b - mean) * a + bias)     a = scale / sqrt(var + eps)
    conv(x, w, b) * c + d      ->  conv(x, w * c, b * c + d)                 c, d constant per channel
    batch_norm(x) elsewhere    ->  x * a + (bias - mean * a)

Weights are rescaled in float64 and rounded once.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Array, Graph, Node

#: contraction -> dim of its weights along the output channels (per group where groups exist)
_OUTPUT_DIM = {"conv2d": 0, "depthwise_conv2d": 0, "conv_transpose2d": 1, "matmul": -1}


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold where the contraction has no other consumer; otherwise spell batch_norm out."""
    g = graph.clone()
    consumers = g.consumers()
    made: dict[str, Node] = {}
    kept: list[Node] = []
    for node in g.nodes:
        scaling = _scaling(g, node)
        if scaling is not None:
            source, factor, shift = scaling
            producer = made.get(source)
            alone = len(consumers.get(source, [])) == 1 and source not in g.outputs
            if producer is not None and alone and _foldable(g, producer):
                folded = _fold(g, producer, factor, shift).with_(outputs=node.outputs)
                kept[kept.index(producer)] = folded
                made[node.outputs[0]] = folded
                continue
            if node.op == "batch_norm":
                kept += _spelled_out(g, node, source, factor, shift)
                continue
        kept.append(node)
        made.update((o, node) for o in node.outputs)
    g.nodes = kept
    g.drop_unused()
    return g


def _scaling(g: Graph, node: Node) -> tuple[str, Array, Array] | None:
    """(x, factor, shift) per channel in float64, if the node is x * factor + shift."""
    if node.op == "batch_norm":
        params = [g.constants.get(i) for i in node.inputs[1:5]]
        if any(p is None for p in params):
            return None
        scale, bias, mean, var = (np.asarray(p, np.float64) for p in params)
        factor = scale / np.sqrt(var + float(node.attrs["epsilon"]))  # type: ignore[arg-type]
        return node.inputs[0], factor, bias - mean * factor
    if node.op not in ("mul", "add", "sub", "div"):
        return None
    for x, c in ((0, 1), (1, 0)) if node.op in ("mul", "add") else ((0, 1),):
        value = g.constants.get(node.inputs[c])
        t = g.types[node.inputs[x]]
        if value is None or not t.dtype.is_float or t.shape != g.types[node.outputs[0]].shape:
            continue
        channels = _per_channel(value, t.shape)
        if channels is None:
            continue
        one, zero = np.ones_like(channels), np.zeros_like(channels)
        match node.op:
            case "mul":
                return node.inputs[x], channels, zero
            case "div":
                return node.inputs[x], 1 / channels, zero
            case "add":
                return node.inputs[x], one, channels
            case _:
                return node.inputs[x], one, -channels
    return None


def _per_channel(value: Array, shape: tuple[int, ...]) -> Array | None:
    """The constant as a vector over the channel dim (1, or the last of a matrix), or None."""
    if len(shape) != 4:
        return None
    full = (1,) * (len(shape) - value.ndim) + value.shape
    if any(n != 1 for d, n in enumerate(full) if d != 1):
        return None
    return np.broadcast_to(value.reshape(-1).astype(np.float64), (shape[1],))


def _foldable(g: Graph, node: Node) -> bool:
    if node.op not in ("conv2d", "depthwise_conv2d", "conv_transpose2d"):
        return False
    if node.op == "conv_transpose2d" and node.attrs["group"] != 1:
        return False
    return all(i in g.constants for i in node.inputs[1:] if i)


def _fold(g: Graph, node: Node, factor: Array, shift: Array) -> Node:
    w = g.constants[node.inputs[1]]
    bend = [1] * w.ndim
    bend[_OUTPUT_DIM[node.op]] = -1
    has_bias = len(node.inputs) > 2 and node.inputs[2] != ""
    bias = g.constants[node.inputs[2]] if has_bias else np.zeros(len(factor))
    inputs = [node.inputs[0], node.inputs[1]]
    if not (factor == 1).all():
        scaled = (w.astype(np.float64) * factor.reshape(bend)).astype(w.dtype)
        inputs[1] = g.add_constant(f"{node.inputs[1]}.scaled", scaled)
    moved = (bias.astype(np.float64) * factor + shift).astype(w.dtype)
    inputs.append(g.add_constant(f"{node.outputs[0]}.bias", moved))
    return node.with_(inputs=tuple(inputs))


def _spelled_out(g: Graph, node: Node, x: str, factor: Array, shift: Array) -> list[Node]:
    t = g.types[x]
    bend = (1, -1) + (1,) * (t.rank - 2)
    dtype = t.dtype.numpy
    a = g.add_constant(f"{node.outputs[0]}.factor", factor.reshape(bend).astype(dtype))
    b = g.add_constant(f"{node.outputs[0]}.shift", shift.reshape(bend).astype(dtype))
    middle = g.fresh(f"{node.outputs[0]}.scaled")
    g.types[middle] = t
    return [
        Node(node.name, "mul", (x, a), (middle,)),
        Node(node.name, "add", (middle, b), node.outputs),
    ]
