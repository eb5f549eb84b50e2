"""The determinant of square matrices, by elimination with the largest pivot of each column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Local,
    binary,
    const,
    div,
    from_index,
    mul,
    select,
    sub,
    unary,
)
from tilewright.registry import Operator, Sample

#: A copy of the matrix lies in scratch memory.
_MOST_ROWS = 128


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    square = x.rank >= 2 and x.shape[-1] == x.shape[-2] and 1 <= x.shape[-1] <= _MOST_ROWS
    if not square or not x.dtype.is_float:
        raise ModelError(
            f"the determinant of {x} is not supported: square matrices of up to {_MOST_ROWS} rows are"
        )
    return [TensorType(x.dtype, x.shape[:-2])]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    return [np.asarray(np.linalg.det(x.astype(np.float64))).astype(x.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    n, t = x.shape[-1], k.out_dtype
    with ExitStack() as stack:
        outer = [stack.enter_context(k.loop(f"o{d}", e)) for d, e in enumerate(x.shape[:-2])]
        work = k.local("work", t, (n, n))
        with k.loop("i", n) as i, k.loop("j", n) as j:
            k.set(work, x(*outer, i, j), i, j)
        product = k.local("product", t)
        k.set(product, const(1.0, t))
        for column in range(n):
            _eliminate(k, work, product, column, n)
        k.emit(outer, product())


def _eliminate(k: KernelBuilder, work: Local, product: Local, column: int, n: int) -> None:
    """Bring the largest element of the column to the diagonal, and make 0 what is below."""
    t = work.buffer.dtype
    best, at = k.local("best", t), k.local("at", I64)
    k.set(best, unary("abs", work(column, column)))
    k.set(at, const(column, I64))
    with k.loop("s", n - column - 1) as s:
        if n - column - 1:
            size = k.let("size", unary("abs", work(s + (column + 1), column)))
            larger = k.let("larger", binary("gt", size, best()))
            k.set(at, select(larger, from_index(s + (column + 1), I64), at()))
            k.set(best, select(larger, size, best()))
    row = k.index(at(), n, wrap=False)
    sign = select(binary("eq", at(), const(column, I64)), const(1.0, t), const(-1.0, t))
    k.set(product, mul(product(), sign))
    with k.loop("j", n - column) as j:
        here, there = (Ix(column), j + column), (row, j + column)
        a, b = k.let("a", work(*here)), k.let("b", work(*there))
        k.set(work, b, *here)
        k.set(work, select(binary("eq", at(), const(column, I64)), b, a), *there)
    pivot = k.let("pivot", work(column, column))
    k.set(product, mul(product(), pivot))
    safe = k.let("safe", select(binary("eq", pivot, const(0.0, t)), const(1.0, t), pivot))
    if column + 1 == n:
        return
    with k.loop("r", n - column - 1) as r:
        factor = k.let("factor", div(work(r + (column + 1), column), safe))
        with k.loop("j", n - column - 1) as j:
            index = (r + (column + 1), j + (column + 1))
            k.set(work, sub(work(*index), mul(factor, work(column, j + (column + 1)))), *index)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((1, 1), (2, 2), (3, 3), (2, 3, 4, 4), (5, 7, 7)):
        yield Sample((rng.standard_normal(shape).astype(np.float32),))
    yield Sample((np.array([[0, 2, 1], [1, 0, 0], [0, 0, 3]], np.float32),))
    yield Sample((np.zeros((2, 3, 3), np.float32),))


OPERATORS = [
    Operator(
        name="det",
        trait="opaque",
        infer=_infer,
        reference=_reference,
        lower=_lower,
        samples=_samples,
        depth=lambda types, attrs: types[0].shape[-1] ** 2 if types[0] else 1,
        onnx={"Det": lambda node: node.add("det", [node.inputs[0]])},
        doc="determinants of square matrices",
    )
]
