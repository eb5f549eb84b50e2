"""What several passes need to say about values: who equals whom, and which vector scales channels.

Invariant: the outputs of a graph keep their names whatever a pass does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.graph.ir import Array, Graph, Node

#: contraction -> dim of its output that its output channels run along
_CHANNELS = {"conv2d": 1, "depthwise_conv2d": 1, "conv_transpose2d": 1, "matmul": -1}


def forward(g: Graph, same: Mapping[str, str]) -> None:
    """Let every use of a key of `same` read the value it stands for; the key's own node is gone.

    A graph output keeps its name: the value it equals is renamed, or copied where that has a name it
    must keep (a graph input, a constant, another output).
    """
    final: dict[str, str] = {}
    for name in same:
        end = same[name]
        while end in same:
            end = same[end]
        final[name] = end
    renamed: dict[str, str] = {}
    copies: list[Node] = []
    for out in g.outputs:
        source = final.get(out, out)
        if source == out:
            continue
        if source in renamed or source in (*g.inputs, *g.outputs) or source in g.constants:
            copies.append(Node(f"output {out}", "copy", (renamed.get(source, source),), (out,)))
        else:
            renamed[source] = out

    def name_of(name: str) -> str:
        name = final.get(name, name)
        return renamed.get(name, name)

    g.nodes = [
        n.with_(inputs=tuple(map(name_of, n.inputs)), outputs=tuple(map(name_of, n.outputs)))
        if any(name_of(v) != v for v in (*n.inputs, *n.outputs))
        else n
        for n in g.nodes
    ]
    g.nodes += copies


def channel_vector(g: Graph, name: str, contraction: Node) -> Array | None:
    """A constant operand as float64[channels] of a contraction's output, if it is the same elsewhere.

    The constant must broadcast to the output, and vary along the channels only.
    """
    value = g.constants.get(name)
    shape = g.types[contraction.outputs[0]].shape
    if value is None or value.ndim > len(shape) or value.dtype.kind != "f":
        return None
    channel = _CHANNELS[contraction.op] % len(shape)
    full = (1,) * (len(shape) - value.ndim) + value.shape
    if any(n != 1 for d, n in enumerate(full) if d != channel):
        return None
    if full[channel] not in (1, shape[channel]):
        return None
    flat = np.broadcast_to(value.reshape(-1), (shape[channel],)).astype(np.float64)
    return np.asarray(flat)


def is_contraction(node: Node | None) -> bool:
    """Whether channel vectors can be folded into the node's weights and bias."""
    return node is not None and node.op in _CHANNELS


def only_use(g: Graph, consumers: Mapping[str, Sequence[Node]], name: str) -> bool:
    """Whether one node alone reads the value, and nobody outside sees it."""
    return len(consumers.get(name, ())) == 1 and name not in g.outputs


def constant_bias(g: Graph, node: Node) -> Array | None:
    """A contraction's bias in float64 (0 if it has none); None if it is not a constant."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(())
    bias = g.constants.get(node.inputs[2])
    return None if bias is None else bias.astype(np.float64)


def with_bias(g: Graph, node: Node, bias: Array, output: str) -> Node:
    """The contraction with another bias (float64), computing the value `output`."""
    t = g.types[node.outputs[0]]
    if bias.ndim == 0:
        bias = np.broadcast_to(bias, (t.shape[_CHANNELS[node.op]],))
    name = g.add_constant(f"{output}.bias", bias.astype(t.dtype.numpy))
    return node.with_(inputs=(*node.inputs[:2], name), outputs=(output,))


def non_negative(node: Node | None) -> bool:
    """Whether every element of the node's result is at least 0 (or NaN)."""
    if node is None:
        return False
    if node.op == "clip":
        low = node.attrs["min"]
        return isinstance(low, int | float) and low >= 0
    return node.op in ("relu", "sigmoid", "softmax", "abs", "exp", "sqrt", "hard_sigmoid")
