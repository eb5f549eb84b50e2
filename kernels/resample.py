"""Weighted sums of neighbouring elements along one dim, with weights from a table:

y[.., o, ..] = sum over t of weights[o, t] * x[.., starts[o] + t, ..]

What resizing comes to where weights follow no simple rule: filters against aliasing, crops.
Elements beyond the last one are never read: indices are clamped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, const, fma, mul
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, starts, weights = types
    assert x is not None and starts is not None and weights is not None
    axis = integer(attrs, "axis")
    fits = x.dtype.is_float and starts.dtype is I64 and weights.rank == 2 and weights.shape[1] > 0
    if not fits or starts.shape != weights.shape[:1] or weights.dtype is not x.dtype:
        raise ModelError(
            f"`resample` of {x} by {starts} and {weights}: floats and a table are wanted"
        )
    if not 0 <= axis < x.rank or x.shape[axis] == 0:
        raise ModelError(f"`resample`: there is nothing along axis {axis} of {x}")
    return [TensorType(x.dtype, (*x.shape[:axis], starts.shape[0], *x.shape[axis + 1 :]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, starts, weights = (np.asarray(i) for i in inputs)
    axis = integer(attrs, "axis")
    n, taps = x.shape[axis], weights.shape[1]
    at = np.clip(np.clip(starts, 0, n - 1)[:, None] + np.arange(taps), 0, n - 1)
    rows = np.moveaxis(x.astype(np.float64), axis, -1)[..., at]
    y = (rows * weights.astype(np.float64)).sum(axis=-1)
    return [np.ascontiguousarray(np.moveaxis(y, -1, axis)).astype(x.dtype)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    source, starts, weights = x
    assert source is not None and starts is not None and weights is not None
    axis = integer(attrs, "axis")
    o, n = index[axis], source.shape[axis]
    start = k.index(starts(o), n, wrap=False)
    total: Expr | None = None
    for t in range(weights.shape[1]):
        at = start if t == 0 else k.index(add(starts(o), const(t, I64)), n, wrap=False)
        value, weight = source(*index[:axis], at, *index[axis + 1 :]), weights(o, t)
        total = mul(value, weight) if total is None else fma(value, weight, total)
    assert total is not None
    return total


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, axis, n, taps in (((7,), 0, 4, 3), ((3, 9, 5), 1, 6, 4), ((2, 19), 1, 33, 2)):
        starts = rng.integers(0, shape[axis] - taps + 1, n)
        x, w = rng.standard_normal(shape), rng.standard_normal((n, taps))
        yield Sample((x.astype(np.float32), starts, w.astype(np.float32)), {"axis": axis})


OPERATORS = [
    Operator(
        name="resample", trait="injective", infer=_infer, reference=_reference,
        attrs={"axis": int}, compute=_compute, samples=_samples,
        depth=lambda types, attrs: types[2].shape[1] if types[2] else 1,
        doc="weighted sums of neighbours along `axis`, by a table",
    )
]  # fmt: skip
