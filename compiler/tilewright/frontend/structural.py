"""ONNX operators that vanish on import (constants, identities, shape arithmetic), and those that
cannot be compiled at all, with the reason.

In: an `ImportNode`. Out: value names. Invariant: none of these adds a node to the graph; their results
are constants, or an input of theirs under its own name.
"""

from __future__ import annotations

import math
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
    raise node.fail("a Constant of strings or sparse values is not supported: use a dense tensor")


def identity(node: ImportNode) -> Sequence[str]:
    return [node.inputs[0]]


def dropout(node: ImportNode) -> Sequence[str]:
    """Inference, or nothing is dropped: the input; the mask, if wanted, keeps everything."""
    training = node.has(2) and node.need_const(2, "the training mode").reshape(-1)[0]
    ratio = node.need_const(1, "the ratio").reshape(-1)[0] if training and node.has(1) else 0.5
    if training and ratio:
        raise node.fail("Dropout in training mode is random: export the model for inference")
    if node.output_count > 1:
        t = node.type(0)
        one = np.ones((), np.bool_ if node.opset >= 10 else t.dtype.numpy)
        return [node.inputs[0], *node.add("expand", [node.constant(one)], {"shape": t.shape})]
    return [node.inputs[0]]


def shape(node: ImportNode) -> Sequence[str]:
    dims = node.type(0).shape
    start, end = int(node.attr("start", 0)), int(node.attr("end", len(dims)))
    return [node.constant(np.asarray(dims[start:end], np.int64), "shape")]


def size(node: ImportNode) -> Sequence[str]:
    return [node.constant(np.asarray(node.type(0).size, np.int64), "size")]


def constant_of_shape(node: ImportNode) -> Sequence[str]:
    dims = [int(n) for n in node.need_const(0, "the shape").reshape(-1)]
    wanted = limits.check_shape(dims, f"node `{node.name}`")
    value = node.attr("value", np.zeros(1, np.float32))
    if value.size != 1:
        raise node.fail(f"the attribute `value` has {value.size} elements, it must have one")
    scalar = node.constant(value.reshape(()), "filled")
    return node.add("expand", [scalar], {"shape": wanted})  # not computed where it is huge


def range_(node: ImportNode) -> Sequence[str]:
    bounds = [node.need_const(i, "a bound of the range") for i in range(3)]
    if any(b.size != 1 for b in bounds):
        raise node.fail("start, limit and delta must be scalars")
    start, limit, delta = (b.reshape(-1)[0].item() for b in bounds)
    if delta == 0:
        raise node.fail("the range has a step of 0")
    count = max(0, math.ceil((limit - start) / delta))
    limits.check_constant([count], f"node `{node.name}`")
    values = np.asarray(start) + np.arange(count) * np.asarray(delta)
    return [node.constant(values.astype(bounds[0].dtype), "range")]


STRUCTURAL: dict[str, Callable[[ImportNode], Sequence[str]]] = {
    "Constant": constant,
    "Identity": identity,
    "Dropout": dropout,
    "Shape": shape,
    "Size": size,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
}

_RANDOM = "random numbers are not supported: make them an input of the model"
_IMAGES = "image files are not decoded: give the model pixels"
_STRINGS = "strings are not supported: compute this step outside the model"

#: ONNX operators that need what a static dataflow graph does not have -> reason and what to do.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
         "Multinomial"), _RANDOM,
    ),
    **dict.fromkeys(
        ("ImageDecoder",), _IMAGES,
    ),
    **dict.fromkeys(
        ("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch"),
        _STRINGS,
    ),
}  # fmt: skip
