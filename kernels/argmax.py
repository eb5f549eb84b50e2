"""Index of the largest or smallest element along one axis.

y[o..] = the least (with `select_last`: the greatest) j with x[o.., j] = max over i of x[o.., i].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.core.dtypes import BOOL, I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, binary, const, from_index, select
from tilewright.loop.ir import BinaryOp
from tilewright.registry import ImportNode, Operator, Sample


def _axis(attrs: Attrs) -> int:
    axis = attrs["axis"]
    assert isinstance(axis, int)
    return axis


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    axis = _axis(attrs)
    if not 0 <= axis < x.rank or x.shape[axis] == 0 or x.dtype is BOOL:
        raise ModelError(f"`argmax` or `argmin` of {x} along {axis} is not defined")
    kept = (1,) if attrs["keepdims"] else ()
    return [TensorType(I64, (*x.shape[:axis], *kept, *x.shape[axis + 1 :]))]


def _reference(largest: bool) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x, axis = np.asarray(inputs[0]), _axis(attrs)
        pick = np.argmax if largest else np.argmin
        if attrs["select_last"]:
            y = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis)
        else:
            y = pick(x, axis=axis)
        if attrs["keepdims"]:
            y = np.expand_dims(y, axis)
        return [np.asarray(y, np.int64)]

    return reference


def _lower(largest: bool) -> Callable[[KernelBuilder, Attrs], None]:
    better: BinaryOp = "gt" if largest else "lt"
    better_or_equal: BinaryOp = "ge" if largest else "le"

    def lower(k: KernelBuilder, attrs: Attrs) -> None:
        x = k.inputs[0]
        assert x is not None
        axis = _axis(attrs)
        index: list[Ix] = [Ix(0)] * len(x.shape)
        with ExitStack() as outer:
            for d, n in enumerate(x.shape):
                if d != axis:
                    index[d] = outer.enter_context(k.loop(f"o{d}", n))
            best, at = k.local("best", x.dtype), k.local("at", I64)
            index[axis] = Ix(0)
            k.set(best, x(*index))
            k.set(at, const(0, I64))
            op = better_or_equal if attrs["select_last"] else better
            with k.loop("j", x.shape[axis]) as j:
                index[axis] = j
                value = k.let("value", x(*index))
                wins = k.let("wins", binary(op, value, best()))
                k.set(at, select(wins, from_index(j, I64), at()))
                k.set(best, select(wins, value, best()))
            index[axis] = Ix(0)
            kept = [i for d, i in enumerate(index) if attrs["keepdims"] or d != axis]
            k.emit(kept, at())

    return lower


def _importer(name: str) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        axis, rank = int(node.attr("axis", 0)), node.type(0).rank
        if not -rank <= axis < rank:
            raise node.fail(f"axis {axis} is out of range for {node.type(0)}: repair the model")
        attrs = {
            "axis": axis % rank,
            "keepdims": bool(node.attr("keepdims", 1)),
            "select_last": bool(node.attr("select_last_index", 0)),
        }
        return node.add(name, [node.inputs[0]], attrs)

    return importer


def _hardmax(node: ImportNode) -> Sequence[str]:
    """1 at the first maximum along the axis, else 0; before opset 13 along all dims from the axis on."""
    t = node.type(0)
    axis = axis_of(node.attr("axis", 1 if node.opset < 13 else -1), max(t.rank, 1))
    shape = t.shape
    x = node.inputs[0]
    if node.opset < 13:
        flat = (prod(t.shape[:axis]), prod(t.shape[axis:]))
        (x,) = node.add("reshape", [x], {"shape": flat})
        shape, axis = flat, 1
    (best,) = node.add("argmax", [x], {"axis": axis, "keepdims": True, "select_last": False})
    along = np.arange(shape[axis]).reshape([-1 if d == axis else 1 for d in range(len(shape))])
    (hit,) = node.add("eq", [best, node.constant(along, "along")])
    (y,) = node.add("cast", [hit], {"to": t.dtype.name})
    return node.add("reshape", [y], {"shape": t.shape}) if shape != t.shape else [y]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, axis in (((17,), 0), ((3, 20), 1), ((4, 3, 5), 1)):
        for last in (False, True):
            x = rng.integers(-3, 4, shape).astype(np.float32)
            yield Sample((x,), {"axis": axis, "keepdims": not last, "select_last": last})


OPERATORS = [
    Operator(
        name=name,
        trait="reduction",
        infer=_infer,
        reference=_reference(largest),
        attrs={"axis": int, "keepdims": bool, "select_last": bool},
        lower=_lower(largest),
        samples=_samples,
        flops=lambda types, attrs: types[0].size if types[0] else 0,
        onnx={onnx: _importer(name), **({"Hardmax": _hardmax} if largest else {})},
        doc=f"index of the {'largest' if largest else 'smallest'} element along `axis`",
    )
    for name, onnx, largest in (("argmax", "ArgMax", True), ("argmin", "ArgMin", False))
]
