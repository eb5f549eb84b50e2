"""The identity as a kernel of its own: moves a value into another memory layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    assert types[0] is not None
    return [types[0]]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.array(inputs[0])]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return x[0](*index)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((), (1,), (17,), (3, 33), (2, 1, 7, 16), (2, 3, 1, 4, 5)):
        yield Sample((rng.standard_normal(shape).astype(np.float32),))
    for kind in (np.bool_, np.int8, np.int64, np.float64, np.float16):
        yield Sample((rng.integers(0, 2, (3, 7)).astype(kind),))


OPERATORS = [
    Operator(
        name="copy",
        trait="injective",
        infer=_infer,
        reference=_reference,
        compute=_compute,
        quantized=movement,
        samples=_samples,
        doc="y = x, in memory of its own",
    )
]
