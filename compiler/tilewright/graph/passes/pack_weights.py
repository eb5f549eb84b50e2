"""Products with dequantized constants keep their weights small: 2, 4 and 8 bits, unpacked by the kernel.

    matmul(x, dequantize(q, scale, zero))  ->  matmul_nbits(x, packed q, scales, zeros)

In: a graph after `quantize` (what has an integer form is integer by then), before constants are folded.
Out: the same with weights packed along the sum. Blocks of scales along the sum, and scales per column or for
all, are taken; anything else is folded to floats as before. Weights of 8 bits are packed only where few rows
make the product wait for memory.
Invariant: the weights are the same numbers, up to their rounding to f32.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from tilewright.core.dtypes import F32, dtype
from tilewright.graph.ir import Array, Graph, Node

#: Most rows of a product whose weights of 8 bits are packed.
FEW_ROWS = 8
#: Fewest weights worth a kernel of their own.
LEAST = 1 << 10

_BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8, "i2": 2, "u2": 2}


def pack_weights(graph: Graph) -> Graph:
    """Rewrite every product whose right operand is a dequantized constant."""
    producers = graph.producers()
    if not any(n.op == "dequantize" for n in graph.nodes):
        return graph
    g = graph.clone()
    g.nodes = [_packed(g, n, producers) or n if n.op == "matmul" else n for n in g.nodes]
    return g


def _packed(g: Graph, node: Node, producers: dict[str, Node]) -> Node | None:
    x, out = g.types[node.inputs[0]], g.types[node.outputs[0]]
    found = _weights(g, node.inputs[1], producers)
    if found is None or not x.dtype.is_float or x.dtype is not out.dtype:
        return None
    q, scales, zeros, bits = found
    depth, columns = q.shape
    rows = x.size // depth if depth else 0
    block = _block(scales, zeros, depth)
    per = 8 // bits
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if (
        (bits == 8 and rows > FEW_ROWS)
        or q.size < LEAST
        or block % per
        or (bias and g.types[bias].shape != (columns,))
    ):  # fmt: skip
        return None
    flat = q.reshape(depth // per, per, columns).astype(np.uint8)
    packed = np.zeros((depth // per, columns), np.uint8)
    for i in range(per):
        packed |= flat[:, i] << np.uint8(i * bits)
    hint = f"{node.name}.weights"
    names = [
        g.add_constant(hint, packed),
        g.add_constant(f"{hint}.scales", scales[::block].astype(np.float32)),
        g.add_constant(f"{hint}.zeros", zeros[::block].astype(np.float32)),
    ]
    inputs = (node.inputs[0], *names, *([bias] if bias else []))
    return node.with_(op="matmul_nbits", inputs=inputs, attrs={"bits": bits, "block": block})


def _weights(
    g: Graph, value: str, producers: dict[str, Node]
) -> tuple[Array, Array, Array, int] | None:
    """(integers from 0, scales, zero points, bits), all [depth, columns], of a dequantized matrix."""
    node = producers.get(value)
    shape = g.types[value].shape
    moved: list[Node] = []
    while node is not None and node.op in ("reshape", "transpose"):
        moved.append(node)
        node = producers.get(node.inputs[0])
    if node is None or node.op != "dequantize" or len(shape) != 2:
        return None
    number = g.types[node.inputs[0]].dtype
    known = [g.constants[i] for i in node.inputs[:3] if i in g.constants]
    if len(known) < 3 or number.name not in _BITS or g.types[value].dtype is not F32:
        return None
    bits = _BITS[number.name]
    parts: list[Array] = []
    for array in known:
        part = np.broadcast_to(array.astype(dtype(array.dtype).work.numpy), known[0].shape)
        for step in reversed(moved):
            part = (
                part.reshape(g.types[step.outputs[0]].shape)
                if step.op == "reshape"
                else part.transpose(step.attrs["perm"])  # type: ignore[arg-type]
            )
        parts.append(part)
    q, scales, zeros = parts
    shift = 1 << (bits - 1) if number.kind == "int" else 0
    return q.astype(np.int64) + shift, scales, zeros.astype(np.int64) + shift, bits


def _block(scales: Array, zeros: Array, depth: int) -> int:
    """The largest number of rows in a row, counted from 0, that share scales and zero points."""
    block = depth
    for a in (scales, zeros):
        changes = np.flatnonzero((a[1:] != a[:-1]).any(axis=1)) + 1
        for at in changes:
            block = gcd(block, int(at))
            if block == 1:
                return 1
    return block
