"""ONNX operators that vanish on import: constants, identities and shape arithmetic.

In: an `ImportNode`. Out: value names. Invariant: none of these adds a node to the graph; their results
are constants, or an input of theirs under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend import limits
from tilewright.registry import ImportNode


def constant(node: ImportNode) -> Sequence[str]:
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        v = node.attr(name)
        if v is not None:
            kind = np.float32 if "float" in name else np.int64
            array = v if name == "value" else np.asarray(v, kind)
            return [node.constant(array)]
    raise node.fail("a Constant of strings or sparse values is not supported")


def identity(node: ImportNode) -> Sequence[str]:
    return [node.inputs[0]]


def dropout(node: ImportNode) -> Sequence[str]:
    if node.output_count > 1:
        mask = np.ones(node.type(0).shape, np.bool_)
        return [node.inputs[0], node.constant(mask, "mask")]
    return [node.inputs[0]]


def shape(node: ImportNode) -> Sequence[str]:
    dims = node.type(0).shape
    start, end = int(node.attr("start", 0)), int(node.attr("end", len(dims)))
    return [node.constant(np.asarray(dims[start:end], np.int64), "shape")]


def size(node: ImportNode) -> Sequence[str]:
    return [node.constant(np.asarray(node.type(0).size, np.int64), "size")]


def constant_of_shape(node: ImportNode) -> Sequence[str]:
    wanted = limits.check_shape(
        [int(n) for n in node.need_const(0, "the shape")], f"node `{node.name}`"
    )
    value = node.attr("value", np.zeros(1, np.float32))
    return [node.constant(np.full(wanted, value.reshape(-1)[0], value.dtype), "filled")]


def range_(node: ImportNode) -> Sequence[str]:
    start, limit, delta = (node.need_const(i, "a bound").reshape(-1)[0] for i in range(3))
    if delta == 0:
        raise node.fail("Range with a step of 0")
    limits.check_shape([max(0, int((limit - start) / delta) + 1)], f"node `{node.name}`")
    return [node.constant(np.arange(start, limit, delta, dtype=np.asarray(start).dtype), "range")]


STRUCTURAL: dict[str, Callable[[ImportNode], Sequence[str]]] = {
    "Constant": constant,
    "Identity": identity,
    "Dropout": dropout,
    "Shape": shape,
    "Size": size,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
}
