"""Let contractions of signed bytes count their pixels from 0: sum (x + 128) w - 128 sum w.

contraction(x, w, b)  ->  contraction(x, w, b - 128 sum w) {raised}     x of i8, w and b constant

`vpdpbusd` of x86-64 wants unsigned pixels; without this it would be corrected once for each product. Exact:
32-bit sums wrap. Only where runs of four bytes lie side by side, which is what the instruction adds up.
"""

from __future__ import annotations

import numpy as np

from tilewright.core.dtypes import I8
from tilewright.graph.ir import Array, Graph, Node

_RUN = 4


def raise_bytes(graph: Graph) -> Graph:
    """Raise every contraction that may be; for targets with unsigned times signed products."""
    g = graph.clone()
    g.nodes = [_raised(g, node) or node for node in g.nodes]
    g.drop_unused()
    return g


def _raised(g: Graph, node: Node) -> Node | None:
    if node.op not in ("conv2d", "matmul") or node.attrs.get("raised", False):
        return None
    x, w, bias = (*node.inputs, "")[:3]
    weights = g.constants.get(w)
    if weights is None or weights.dtype != np.int8 or g.types[x].dtype is not I8:
        return None
    conv = node.op == "conv2d"
    if weights.shape[1 if conv else -2] % _RUN or (bias and bias not in g.constants):
        return None
    axes: tuple[int, ...] = (1, 2, 3) if conv else (-2,)
    less: Array = 128 * weights.astype(np.int64).sum(axes, keepdims=not conv)
    whole = (g.constants[bias].astype(np.int64) if bias else 0) - less
    name = g.add_constant(f"{node.outputs[0]}.bias", np.asarray(whole).astype(np.int32))
    return node.with_(inputs=(x, w, name), attrs={**node.attrs, "raised": True})
