"""Let a convolution or pooling pad its own input.

    conv2d(pad(x, p, 0), pads=q)   ->   conv2d(x, pads=p+q)      also depthwise, and max pooling of -inf

Exact: the border that the layout pass provides holds the same values.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Graph, Node

#: consumer -> the value its own padding reads
_PADDED_WITH = {"conv2d": 0.0, "depthwise_conv2d": 0.0, "max_pool2d": -np.inf}


def fold_pad(graph: Graph) -> Graph:
    """Fold constant padding of the spatial dims."""
    g = graph.clone()
    made = g.producers()
    g.nodes = [_folded(n, made.get(n.inputs[0]) if n.inputs else None) for n in g.nodes]
    return g


def _folded(node: Node, pad: Node | None) -> Node:
    if pad is None or node.op not in _PADDED_WITH or not _spatial(pad, _PADDED_WITH[node.op]):
        return node
    before, after = _ints(pad, "before"), _ints(pad, "after")
    top, left, bottom, right = _ints(node, "pads")
    pads = (top + before[2], left + before[3], bottom + after[2], right + after[3])
    return node.with_(inputs=(pad.inputs[0], *node.inputs[1:]), attrs={**node.attrs, "pads": pads})


def _spatial(pad: Node, value: float) -> bool:
    """Whether `pad` is a constant border of `value` around the two spatial dims only."""
    if pad.op != "pad" or pad.attrs["mode"] != "constant" or pad.attrs["value"] != value:
        return False
    before, after = _ints(pad, "before"), _ints(pad, "after")
    return len(before) == 4 and before[:2] == after[:2] == (0, 0) and min(*before, *after) >= 0


def _ints(node: Node, name: str) -> tuple[int, ...]:
    value = node.attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)
