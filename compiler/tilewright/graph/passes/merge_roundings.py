"""Sums of quantised tensors that TensorFlow Lite rounds three times, with one rounding, where that is the same.

rescaled_add(a, b)  ->  quantized_add(a, b)      a and b of bytes

The two are compared on all 65,536 pairs of bytes, so this is exact; it takes a third of the instructions.
The sum's numbers are the solution of one linear inequality per pair: for given factors, `nudge` lies between the
largest number that some pair asks for and the smallest that some pair allows. Factors near the real ones are tried
until these two do not cross; where they always do, the node stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I8, U8, limits
from tilewright.graph.ir import Attrs, AttrValue, Graph, Node
from tilewright.registry import operator

#: Bits of a sum of which none may overflow, and how far factors are searched.
_WORD, _REACH = 30, 6


def merge_roundings(graph: Graph) -> Graph:
    """Replace every sum that may be replaced."""
    g = graph.clone()
    known: dict[str, Attrs | None] = {}
    g.nodes = [_merged(g, node, known) or node for node in g.nodes]
    return g


def _merged(g: Graph, node: Node, known: dict[str, Attrs | None]) -> Node | None:
    if node.op != "rescaled_add" or g.types[node.inputs[0]].dtype not in (I8, U8):
        return None
    key = repr(sorted(node.attrs.items()))
    if key not in known:
        known[key] = _solved(node.attrs, g.types[node.inputs[0]].dtype is I8)
    found = known[key]
    return None if found is None else node.with_(op="quantized_add", attrs=found)


def _solved(attrs: Attrs, signed: bool) -> Attrs | None:
    """Numbers of a `quantized_add` that gives what `rescaled_add` with `attrs` gives for all pairs."""
    kind = I8 if signed else U8
    least, most = limits(kind)
    bytes_ = np.arange(least, most + 1)
    a, b = (m.ravel() for m in np.meshgrid(bytes_, bytes_, indexing="ij"))
    (want,) = operator("rescaled_add").reference(
        (a.astype(kind.numpy), b.astype(kind.numpy)), attrs
    )
    low, high, zero = (integer(attrs, n) for n in ("low", "high", "zero_point"))
    steps = want.astype(np.int64) - zero
    for bits, factor_a, factor_b in _factors(attrs):
        plain = a * factor_a + b * factor_b
        floor = np.where(want == low, np.iinfo(np.int64).min, (steps << bits) - plain)
        ceiling = np.where(want == high, np.iinfo(np.int64).max, ((steps + 1) << bits) - 1 - plain)
        least_offset, most_offset = int(floor.max()), int(ceiling.min())
        if least_offset > most_offset:
            continue
        zeros = [integer(attrs, f"zero_{i}") for i in "ab"]
        usual = (1 << (bits - 1)) - zeros[0] * factor_a - zeros[1] * factor_b
        offset = min(max(usual, least_offset), most_offset)
        made: dict[str, AttrValue] = {
            "factor_a": factor_a, "factor_b": factor_b, "zero_a": zeros[0], "zero_b": zeros[1], "bits": bits,
            "nudge": offset - usual, "zero_point": zero, "low": low, "high": high, "to": str(attrs["to"]),
        }  # fmt: skip
        return made
    return None


def _factors(attrs: Attrs) -> Iterator[tuple[int, int, int]]:
    """bits, and both factors of 2^bits: the most precise ones first, then those around them."""

    def real(name: str) -> float:
        return integer(attrs, f"multiplier{name}") / 2.0 ** (31 + integer(attrs, f"right{name}"))

    whole = real("") * 2.0 ** integer(attrs, "left")
    ratios = real("_a") * whole, real("_b") * whole * (-1 if attrs["minus"] else 1)
    largest = max(*map(abs, ratios), abs(ratios[0]) + abs(ratios[1]))
    if not 0 < largest < 1 << 20:
        return
    bits = min(_WORD - 1, int(np.floor(np.log2((1 << _WORD) / (256 * largest)))))
    if bits < 1:
        return
    near = sorted(range(-_REACH, _REACH + 1), key=abs)
    pairs = sorted(((i, j) for i in near for j in near), key=lambda p: abs(p[0]) + abs(p[1]))
    center = [round(r * 2**bits) for r in ratios]
    for i, j in pairs:
        yield bits, center[0] + i, center[1] + j
