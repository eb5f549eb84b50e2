"""The triangle of matrices on one side of a diagonal; what lies outside is 0.

upper:  y[.., i, j] = x[.., i, j] where j - i >= k, else 0
lower:  y[.., i, j] = x[.., i, j] where j - i <= k, else 0
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
from tilewright.loop.builder import KernelBuilder, Reader, binary, const, from_index, select
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    if x.rank < 2:
        raise ModelError(f"`trilu` of {x}: a tensor of rank 2 or more is wanted")
    return [x]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, k = np.asarray(inputs[0]), integer(attrs, "k")
    away = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
    inside = away >= k if attrs["upper"] else away <= k
    return [np.where(inside, x, np.zeros((), x.dtype))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data = x[0]
    assert data is not None
    away = from_index(index[-1] - index[-2], I64)
    inside = binary("ge" if attrs["upper"] else "le", away, const(integer(attrs, "k"), I64))
    return select(inside, data(*index), const(0, out.dtype))


def _import(node: ImportNode) -> Sequence[str]:
    k = int(node.need_const(1, "the diagonal").reshape(-1)[0]) if node.has(1) else 0
    rows, columns = node.type(0).shape[-2:] if node.type(0).rank >= 2 else (1, 1)
    k = max(-rows - 1, min(columns + 1, k))  # farther away nothing changes
    return node.add("trilu", [node.inputs[0]], {"upper": bool(node.attr("upper", 1)), "k": k})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((5, 5), (3, 7), (7, 3), (2, 3, 4, 17), (1, 6), (6, 1)):
        for upper in (True, False):
            for k in (0, 1, -2, 9):
                x = rng.standard_normal(shape).astype(np.float32)
                yield Sample((x,), {"upper": upper, "k": k})
    yield Sample((rng.integers(-9, 9, (4, 5)),), {"upper": True, "k": 1})


OPERATORS = [
    Operator(
        name="trilu",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"upper": bool, "k": int},
        compute=_compute,
        samples=_samples,
        onnx={"Trilu": _import},
        doc="y[.., i, j] = x[.., i, j] above or below the diagonal j - i = k, else 0",
    )
]
