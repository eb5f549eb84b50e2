"""Concatenation along one axis.

The layout pass lets producers write straight into the result, so this usually costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import choice
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    parts = [t for t in types if t is not None]
    axis = integer(attrs, "axis")
    first = parts[0]
    if not 0 <= axis < first.rank:
        raise ModelError(f"`concat`: axis {axis} is out of range for {first}: repair the model")
    for t in parts:
        same = t.rank == first.rank and t.dtype is first.dtype
        if not same or any(
            a != b for d, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)) if d != axis
        ):
            raise ModelError(
                f"`concat` along {axis}: {t} does not fit {first}, they may differ in that dim only: "
                "repair the model"
            )
    shape = list(first.shape)
    shape[axis] = sum(t.shape[axis] for t in parts)
    return [TensorType(first.dtype, tuple(shape))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.concatenate([np.asarray(x) for x in inputs], axis=integer(attrs, "axis"))]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    """One loop nest per input, which emits at the input's place along the axis."""
    axis, start = integer(attrs, "axis"), 0
    for part in k.inputs:
        assert part is not None
        _copy(k, part, axis, start)
        start += part.shape[axis]


def _copy(k: KernelBuilder, part: Reader, axis: int, start: int) -> None:
    def nest(index: tuple[Ix, ...]) -> None:
        d = len(index)
        if d == len(part.shape):
            k.emit((*index[:axis], index[axis] + start, *index[axis + 1 :]), part(*index))
            return
        with k.loop(f"i{d}", part.shape[d]) as i:
            nest((*index, i))

    nest(())


def _import(node: ImportNode) -> Sequence[str]:
    """Empty parts are dropped, so that a single one left is the result itself."""
    axis = axis_of(node.attr("axis", 1), node.type(0).rank)
    parts = [v for v in node.inputs if 0 not in node.type_of(v).shape] or list(node.inputs)
    return parts if len(parts) == 1 else node.add("concat", parts, {"axis": axis})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases: tuple[tuple[tuple[tuple[int, ...], ...], int], ...] = (
        (((3,), (5,)), 0), (((2, 3), (2, 17), (2, 1)), 1), (((1, 4), (2, 4)), 0), (((7,),), 0),
        (((2, 16, 3), (2, 1, 3)), 1), (((1, 2, 3, 4), (1, 2, 3, 33)), 3),
        (((1, 2, 1, 2, 3), (1, 3, 1, 2, 3), (1, 1, 1, 2, 3)), 1),
    )  # fmt: skip
    for shapes, axis in cases:
        arrays = tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)
        yield Sample(arrays, {"axis": axis})
    yield Sample(tuple(rng.integers(-9, 9, (2, 3)).astype(np.int64) for _ in range(2)), {"axis": 0})


OPERATORS = [
    Operator(
        name="concat",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"axis": int},
        lower=_lower,
        quantized=choice,
        samples=_samples,
        onnx={"Concat": _import},
        doc="y = the inputs one after the other along `axis`",
    )
]
