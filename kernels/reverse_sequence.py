"""The first elements of every sequence in reverse order; the rest stays.

y[.., t, .., b, ..] = x[.., lengths[b] - 1 - t, .., b, ..] for t < lengths[b], else x[.., t, .., b, ..]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    binary,
    cast,
    const,
    from_index,
    select,
    sub,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, lengths = types
    assert x is not None and lengths is not None
    time, batch = integer(attrs, "time_axis"), integer(attrs, "batch_axis")
    if not (0 <= time < x.rank and 0 <= batch < x.rank and time != batch) or 0 in x.shape:
        raise ModelError(f"`reverse_sequence` of {x} along {time}, batch {batch}, is not defined")
    if not lengths.dtype.is_integer or lengths.shape != (x.shape[batch],):
        raise ModelError(f"`reverse_sequence` of {x}: {lengths} is not one length per sequence")
    return [x]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, time, batch = (
        np.asarray(inputs[0]),
        integer(attrs, "time_axis"),
        integer(attrs, "batch_axis"),
    )
    y = np.moveaxis(x, (batch, time), (0, 1)).copy()
    for b, n in enumerate(np.clip(inputs[1], 0, x.shape[time])):
        y[b, :n] = y[b, :n][::-1]
    return [np.ascontiguousarray(np.moveaxis(y, (0, 1), (batch, time)))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, lengths = x
    assert data is not None and lengths is not None
    time, batch = integer(attrs, "time_axis"), integer(attrs, "batch_axis")
    length = cast(lengths(index[batch]), I64)
    length = k.let("length", binary("min", length, const(data.shape[time], I64)))
    t = from_index(index[time], I64)
    mirrored = sub(sub(length, const(1, I64)), t)
    at = k.index(select(binary("lt", t, length), mirrored, t), data.shape[time], wrap=False)
    return data(*index[:time], at, *index[time + 1 :])


def _import(node: ImportNode) -> Sequence[str]:
    rank = node.type(0).rank
    attrs = {
        "time_axis": axis_of(node.attr("time_axis", 0), rank),
        "batch_axis": axis_of(node.attr("batch_axis", 1), rank),
    }
    return node.add("reverse_sequence", [node.inputs[0], node.inputs[1]], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, time, batch in (
        ((5, 3), 0, 1),
        ((3, 5), 1, 0),
        ((2, 4, 6, 3), 2, 1),
        ((7, 1), 0, 1),
    ):
        lengths = rng.integers(0, shape[time] + 1, shape[batch])
        x = rng.standard_normal(shape).astype(np.float32)
        yield Sample((x, lengths), {"time_axis": time, "batch_axis": batch})


OPERATORS = [
    Operator(
        name="reverse_sequence",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"time_axis": int, "batch_axis": int},
        compute=_compute,
        samples=_samples,
        onnx={"ReverseSequence": _import},
        doc="the first elements of every sequence in reverse order",
    )
]
