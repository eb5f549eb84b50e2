"""Let convolutions of bytes read a multiple of four channels, for instructions that add up four products.

conv2d(x, w, b)  ->  conv2d(x, [w, 0], b) {more_channels}      x and w of bytes, one group, w constant

The channels that x lacks are a border with zero weights: whoever writes x leaves room between its pixels,
and nothing is copied. Exact. First layers (three channels of a photograph, one of a spectrogram) gain.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import DType
from tilewright.graph.ir import Graph, Node

_RUN = 4


def pad_channels(graph: Graph, pays: Callable[[DType, DType], bool]) -> Graph:
    """Pad where `pays` says of the types of x and w that the target has an instruction for them."""
    g = graph.clone()
    g.nodes = [_padded(g, node, pays) or node for node in g.nodes]
    g.drop_unused()
    return g


def _padded(g: Graph, node: Node, pays: Callable[[DType, DType], bool]) -> Node | None:
    if node.op != "conv2d" or integer(node.attrs, "group") != 1:
        return None
    x, w, *bias = node.inputs
    weights = g.constants.get(w)
    if weights is None or not pays(g.types[x].dtype, g.types[w].dtype):
        return None
    more = -weights.shape[1] % _RUN
    if more == 0 or g.types[x].shape[1] != weights.shape[1]:
        return None
    wide = np.pad(weights, ((0, 0), (0, more), (0, 0), (0, 0)))
    name = g.add_constant(f"{w}.padded", wide)
    return node.with_(inputs=(x, name, *bias), attrs={**node.attrs, "more_channels": more})
