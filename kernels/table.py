"""Functions of one byte, looked up: y[i] = values[x[i] mod 256], for values[0] .. values[255].

Any elementwise function between quantised tensors is one of these (`graph.passes.quantize`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import I8, I64, U8
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, cast
from tilewright.loop.ir import Expr
from tilewright.registry import Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, values = types
    assert x is not None and values is not None
    if x.dtype not in (I8, U8) or values.shape != (256,):
        raise ModelError(f"`table` of {x} in {values}: bytes and 256 values are wanted")
    return [TensorType(values.dtype, x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, values = (np.asarray(i) for i in inputs)
    return [values[x.astype(np.uint8)]]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None and x[1] is not None
    return x[1](k.index(cast(cast(x[0].broadcast(index), U8), I64), 256, wrap=False))


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for kind, low in ((np.int8, -128), (np.uint8, 0)):
        for shape in ((), (256,), (2, 3, 19)):
            x = rng.integers(low, low + 256, shape).astype(kind)
            yield Sample((x, rng.integers(-128, 128, 256).astype(np.int8)))
        yield Sample((x, rng.standard_normal(256).astype(np.float32)))


OPERATORS = [
    Operator(
        name="table",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        compute=_compute,
        samples=_samples,
        doc="looks bytes up in 256 values",
    )
]
