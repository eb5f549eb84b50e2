"""Softmax along one axis: y[j] = exp(x[j] - max x) / sum exp(x - max x), and its logarithm.

One kernel: maximum, exponentials with their sum, then scaling, all on one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, add, const, div, maximum, mul, sub, unary
from tilewright.loop.ir import Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Rows, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import passes, rows_space
from tilewright.schedule.trace import Trace


def _axis(attrs: Attrs) -> int:
    axis = attrs["axis"]
    assert isinstance(axis, int)
    return axis


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    axis = _axis(attrs)
    if not x.dtype.is_float or not 0 <= axis < x.rank or x.shape[axis] == 0:
        raise ModelError(f"the softmax of {x} along {axis} is not defined")
    return [x]


def _reference(log: bool) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        wide = x.astype(np.float64)
        shifted = wide - wide.max(axis=_axis(attrs), keepdims=True)
        total = np.exp(shifted).sum(axis=_axis(attrs), keepdims=True)
        y = shifted - np.log(total) if log else np.exp(shifted) / total
        return [y.astype(x.dtype)]

    return reference


def _lower(log: bool) -> Callable[[KernelBuilder, Attrs], None]:
    def lower(k: KernelBuilder, attrs: Attrs) -> None:
        x = k.inputs[0]
        assert x is not None
        axis, dtype = _axis(attrs), k.out_dtype
        n = x.shape[axis]
        index: list[Ix] = [Ix(0)] * len(x.shape)

        def at(j: Ix) -> tuple[Ix, ...]:
            return (*index[:axis], j, *index[axis + 1 :])

        with ExitStack() as outer:
            for d, extent in enumerate(x.shape):
                if d != axis:
                    index[d] = outer.enter_context(k.loop(f"o{d}", extent))
            row = k.local("row", dtype, (n,))
            top, total = k.local("top", dtype), k.local("total", dtype)
            k.set(top, const(-np.inf, dtype))
            with k.loop("j", n) as j:
                k.set(top, maximum(top(), x(*at(j))))
            k.set(total, const(0.0, dtype))
            with k.loop("e", n) as j:
                shifted = sub(x(*at(j)), top())
                value = k.let("value", unary("exp", shifted))
                k.set(row, shifted if log else value, j)
                k.set(total, add(total(), value))
            k.set(total, unary("log", total()) if log else div(const(1.0, dtype), total()))
            with k.loop("s", n) as j:
                k.emit(at(j), sub(row(j), total()) if log else mul(row(j), total()))

    return lower


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return passes(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Rows contiguous, where the last axis is the row."""
    x = types[0]
    assert x is not None
    last = x.rank - 1
    return LayoutWish(orders={0: tuple(range(x.rank))} if _axis(attrs) == last else {})


def _rows(types: Sequence[TensorType | None], attrs: Attrs, first: int, end: int) -> Rows | None:
    return None if _axis(attrs) == 2 else Rows(first, end, attrs)


def _apart(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return _axis(attrs)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return 20 * types[0].size


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].shape[_axis(attrs)]


def _importer(name: str) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        """Before opset 13 the tensor is flattened to two dims at `axis` first."""
        shape = node.type(0).shape
        rank = len(shape)
        axis = int(node.attr("axis", 1 if node.opset < 13 else -1))
        if not -rank <= axis < rank:
            raise node.fail(f"axis {axis} is out of range for {node.type(0)}: repair the model")
        axis %= rank
        rest = prod(shape[axis + 1 :])
        if node.opset >= 13 or rest == 1:
            return node.add(name, [node.inputs[0]], {"axis": axis})
        flat = (prod(shape[:axis]), prod(shape[axis:]))
        (x,) = node.add("reshape", [node.inputs[0]], {"shape": flat})
        (y,) = node.add(name, [x], {"axis": 1})
        return node.add("reshape", [y], {"shape": shape})

    return importer


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, axis in (((17,), 0), ((3, 33), 1), ((3, 7), 0), ((2, 3, 5, 40), 3), ((1, 2), 1)):
        yield Sample((np.asarray(rng.standard_normal(shape) * 5, np.float32),), {"axis": axis})


OPERATORS = [
    Operator(
        name=name,
        trait="reduction",
        infer=_infer,
        reference=_reference(log),
        attrs={"axis": int},
        lower=_lower(log),
        schedule=_schedule,
        space=rows_space,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        rows=_rows,
        apart=_apart,
        onnx={onnx: _importer(name)},
        doc=f"{name} along `axis`",
    )
    for name, onnx, log in (("softmax", "Softmax", False), ("log_softmax", "LogSoftmax", True))
]
