"""Let intermediate pixels be unsigned bytes where everybody who makes and reads them can.

rescale_stepwise(...) {i8}, conv2d(x, w, b)  ->  rescale_stepwise(...) {u8, all 128 higher}, conv2d(x, w, b - 128 sum w)

`vpdpbusd` of x86-64 wants unsigned pixels; a signed one has a bit flipped for every use (`raise_bytes`), which takes
as long as the product where there are few output channels. Exact: bytes are the same ones 128 higher, 32-bit sums
wrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import U8
from tilewright.graph.ir import Array, AttrValue, Graph, Node, TensorType

_MAKERS = ("rescale", "rescale_stepwise", "requantize", "quantized_add")
#: Contraction -> the dims of its weights that it sums over.
_SUMMED = {"conv2d": (1, 2, 3), "depthwise_conv2d": (1, 2, 3), "matmul": (0,)}
_UP = 128


def unsigned_bytes(graph: Graph) -> Graph:
    """Raise every value that may be; for targets with unsigned times signed products."""
    g = graph.clone()
    users = g.consumers()
    moved = {
        n.outputs[0]
        for n in g.nodes
        if n.op in _MAKERS
        and n.attrs["to"] == "i8"
        and not n.attrs.get("early", False)  # its zero point is rounded with the sum
        and _may(g, users, n.outputs[0])
    }
    for value in moved:
        g.types[value] = TensorType(U8, g.types[value].shape)
    g.nodes = [_reader(g, _maker(n, moved), moved) for n in g.nodes]
    g.drop_unused()
    return g


def _may(g: Graph, users: Mapping[str, Sequence[Node]], value: str) -> bool:
    """Whether some contraction gains, and no reader loses."""
    readers = users.get(value, [])
    if value in g.outputs or not any(n.op in ("conv2d", "matmul") for n in readers):
        return False
    return all(n.op == "quantized_add" or _contracts(g, n, value) for n in readers)


def _contracts(g: Graph, node: Node, value: str) -> bool:
    if node.op not in _SUMMED or node.inputs[0] != value or node.inputs.count(value) != 1:
        return False
    w, bias = (*node.inputs[1:], "")[:2]
    weights = g.constants.get(w)
    known = weights is not None and weights.dtype == np.int8 and (not bias or bias in g.constants)
    fits = weights is not None and weights.ndim == 1 + len(_SUMMED[node.op])
    return known and fits and not node.attrs.get("raised", False)


def _maker(node: Node, moved: set[str]) -> Node:
    if node.outputs[0] not in moved or node.op not in _MAKERS:
        return node
    higher: dict[str, AttrValue] = {
        n: integer(node.attrs, n) + _UP for n in ("zero_point", "low", "high")
    }
    return node.with_(attrs={**node.attrs, **higher, "to": "u8"})


def _reader(g: Graph, node: Node, moved: set[str]) -> Node:
    if node.op == "quantized_add":
        zeros: dict[str, AttrValue] = {
            f"zero_{side}": integer(node.attrs, f"zero_{side}") + _UP * (value in moved)
            for side, value in zip("ab", node.inputs, strict=True)
        }
        return node.with_(attrs={**node.attrs, **zeros})
    if node.op not in _SUMMED or node.inputs[0] not in moved:
        return node
    x, w, bias = (*node.inputs, "")[:3]
    less: Array = _UP * g.constants[w].astype(np.int64).sum(_SUMMED[node.op])
    whole = (g.constants[bias].astype(np.int64) if bias else 0) - less
    name = g.add_constant(f"{node.outputs[0]}.bias", np.asarray(whole).astype(np.int32))
    attrs = dict(node.attrs)
    if node.op != "matmul":
        attrs["pad_value"] = integer(attrs, "pad_value") + _UP if "pad_value" in attrs else _UP
    return node.with_(inputs=(x, w, name), attrs=attrs)
