"""A concatenation with constants of one value at its ends is padding, which layouts make a border.

    concat(x, c, axis)   ->   pad(x, after=len(c), value=v)   where every element of c is v; also before x

Exact.
"""

from __future__ import annotations

import numpy as np

from tilewright.graph.ir import Array, Attrs, Graph, Node, TensorType


def pad_with_constants(graph: Graph) -> Graph:
    """Replace such concatenations."""
    g = graph.clone()
    g.nodes = []
    for node in graph.nodes:
        g.nodes += _padded(g, node) if node.op == "concat" else [node]
    return g


def _padded(g: Graph, node: Node) -> list[Node]:
    """The nodes that compute what `node` does."""
    values = [_value(g.constants.get(i)) for i in node.inputs]
    ends = [v for v in (values[0], values[-1]) if v is not None]
    if not ends or None not in values:
        return [node]
    first = 0
    while values[first] is not None and values[first] == ends[0]:
        first += 1
    last = len(values)
    while values[last - 1] is not None and values[last - 1] == ends[0]:
        last -= 1
    if (first, last) == (0, len(values)):
        return [node]
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    out = node.outputs[0]
    t = g.types[out]
    axis %= t.rank
    sizes = [g.types[i].shape[axis] for i in node.inputs]
    before, after = [0] * t.rank, [0] * t.rank
    before[axis], after[axis] = sum(sizes[:first]), sum(sizes[last:])
    made: list[Node] = []
    source = node.inputs[first]
    if last - first > 1:
        source = g.fresh(f"{out}.inner")
        shape = (*t.shape[:axis], sum(sizes[first:last]), *t.shape[axis + 1 :])
        g.types[source] = TensorType(t.dtype, shape)
        inner = node.inputs[first:last]
        made.append(node.with_(name=f"{node.name}/inner", inputs=inner, outputs=(source,)))
    number = g.constants[node.inputs[0 if first else -1]].reshape(-1)[0].item()
    attrs: Attrs = {
        "before": tuple(before), "after": tuple(after), "mode": "constant", "value": number,
    }  # fmt: skip
    return [*made, node.with_(op="pad", inputs=(source,), attrs=attrs)]


def _value(array: Array | None) -> bytes | None:
    """The bits of the one value of an array; None if there are more, or none."""
    if array is None or not array.size or array.dtype.kind not in "fiub":
        return None
    flat = np.ascontiguousarray(array).reshape(-1)
    first = flat[:1].tobytes()
    return first if flat.tobytes() == first * flat.size else None
