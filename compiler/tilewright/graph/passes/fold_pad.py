"""Let a convolution or pooling pad its own input.

    conv2d(pad(x, p, 0), pads=q)      ->   conv2d(x, pads=p+q)         also depthwise
    max_pool2d(pad(x, p, -inf))       ->   max_pool2d(x, pads=p)       also of 0, if no x is below 0
    avg_pool2d(pad(x, p, 0))          ->   avg_pool2d(x, pads=p, count_include_pad)

Exact: the border that the operator reads by itself holds the same values, or values that cannot win.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tilewright.core.attributes import ints
from tilewright.graph.ir import Attrs, Graph, Node
from tilewright.graph.passes._values import non_negative


def fold_pad(graph: Graph) -> Graph:
    """Fold constant padding of the spatial dims."""
    g = graph.clone()
    made = g.producers()
    g.nodes = [_folded(n, made) for n in g.nodes]
    return g


def _folded(node: Node, made: Mapping[str, Node]) -> Node:
    pad = made.get(node.inputs[0]) if node.inputs else None
    if pad is None or not _spatial(pad):
        return node
    attrs = _padded(node, pad, non_negative(made.get(pad.inputs[0])))
    if attrs is None:
        return node
    return node.with_(inputs=(pad.inputs[0], *node.inputs[1:]), attrs=attrs)


def _padded(node: Node, pad: Node, non_negative_input: bool) -> Attrs | None:
    """The node's attributes once it pads for `pad`, or None if its own padding is another."""
    value = pad.attrs["value"]
    if node.op not in ("conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d"):
        return None
    before, after = ints(pad.attrs, "before"), ints(pad.attrs, "after")
    own = ints(node.attrs, "pads")
    added = (before[2], before[3], after[2], after[3])
    pads = tuple(a + b for a, b in zip(own, added, strict=True))
    attrs: Attrs = {**node.attrs, "pads": pads}
    if node.op == "max_pool2d":
        if value == -math.inf:
            return attrs
        # A 0 that loses against every element: each window must still see one.
        inside = all(p < k for p, k in zip(pads, ints(node.attrs, "kernel") * 2, strict=True))
        plain = all(d == 1 for d in ints(node.attrs, "dilations"))
        return attrs if value == 0 and non_negative_input and inside and plain else None
    if value != 0:
        return None
    if node.op == "avg_pool2d":
        # what it averages over must not change: the padding counts, so its own must, too
        counts = bool(node.attrs["count_include_pad"]) or not any(own)
        return {**attrs, "count_include_pad": True} if counts else None
    return attrs


def _spatial(pad: Node) -> bool:
    """Whether `pad` is a constant border around the two spatial dims only."""
    if pad.op != "pad" or pad.attrs["mode"] != "constant":
        return False
    before, after = ints(pad.attrs, "before"), ints(pad.attrs, "after")
    return len(before) == 4 and before[:2] == after[:2] == (0, 0) and min(*before, *after) >= 0
