"""Concatenation along one axis.

The layout pass lets producers write straight into the result, so this usually costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix, imax, imin
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, index_in, select
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _axis(attrs: Attrs) -> int:
    axis = attrs["axis"]
    assert isinstance(axis, int)
    return axis


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    parts = [t for t in types if t is not None]
    axis = _axis(attrs)
    first = parts[0]
    if not 0 <= axis < first.rank:
        raise ModelError(f"`concat`: axis {axis} is out of range for {first}")
    for t in parts:
        same = t.rank == first.rank and t.dtype is first.dtype
        if not same or any(
            a != b for d, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if d != axis
        ):
            raise ModelError(f"`concat` along {axis}: {t} does not fit {first}")
    shape = list(first.shape)
    shape[axis] = sum(t.shape[axis] for t in parts)
    return [TensorType(first.dtype, tuple(shape))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.concatenate([np.asarray(x) for x in inputs], axis=_axis(attrs))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    axis = _axis(attrs)
    start = out.shape[axis]
    result: Expr | None = None
    for part in reversed(x):
        assert part is not None
        n = part.shape[axis]
        start -= n
        at = list(index)
        at[axis] = imin(imax(index[axis] - start, 0), n - 1)
        value = part(*at)
        here = index_in(index[axis], start, start + n)
        result = value if result is None else select(here, value, result)
    assert result is not None
    return result


def _import(node: ImportNode) -> Sequence[str]:
    rank = node.type(0).rank
    axis = int(node.attr("axis", 1))
    parts = [v for v in node.inputs if 0 not in node.type_of(v).shape]
    if not parts:
        return [node.inputs[0]]
    if len(parts) == 1:
        return parts
    return node.add("concat", parts, {"axis": axis % max(rank, 1)})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shapes, axis in ((((3,), (5,)), 0), (((2, 3), (2, 17), (2, 1)), 1), (((1, 4), (2, 4)), 0)):
        arrays = tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)
        yield Sample(arrays, {"axis": axis})


OPERATORS = [
    Operator(
        name="concat",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"axis": int},
        compute=_compute,
        samples=_samples,
        onnx={"Concat": _import},
        doc="y = the inputs one after the other along `axis`",
    )
]
