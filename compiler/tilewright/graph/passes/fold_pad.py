"""Let a convolution or pooling pad its own input.

    conv2d(pad(x, p, 0), pads=q)   ->   conv2d(x, pads=p+q)      also depthwise, and max pooling of -inf
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
    kept: list[Node] = []
    for node in g.nodes:
        pad = made.get(node.inputs[0]) if node.inputs else None
        if node.op in _PADDED_WITH and pad is not None and _spatial(pad, _PADDED_WITH[node.op]):
            before, after = pad.attrs["before"], pad.attrs["after"]
            top, left, bottom, right = node.attrs["pads"]  # type: ignore[misc]
            pads = (top + before[2], left + before[3], bottom + after[2], right + after[3])  # type: ignore[index]
            node = node.with_(
                inputs=(pad.inputs[0], *node.inputs[1:]), attrs={**node.attrs, "pads": pads}
            )
        kept.append(node)
    g.nodes = kept
    return g


def _spatial(pad: Node, value: float) -> bool:
    """Whether `pad` is a constant border of `value` around the two spatial dims only."""
    if pad.op != "pad" or pad.attrs["mode"] != "constant" or pad.attrs["value"] != value:
        return False
    before, after = pad.attrs["before"], pad.attrs["after"]
    assert isinstance(before, tuple) and isinstance(after, tuple)
    return (
        len(before) == 4
        and before[:2] == after[:2] == (0, 0)
        and min(*before, *after) >= 0
    )
