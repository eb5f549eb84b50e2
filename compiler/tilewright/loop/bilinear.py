"""Small constant matrices times values of a kernel, with few operations.

In: a `KernelBuilder`, matrices of `core.toom`, expressions. Out: expressions bound to names.
Invariant: every result is one name, so that nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.core.dtypes import F32
from tilewright.core.toom import Matrix
from tilewright.loop.builder import KernelBuilder, add, const, fma, mul, sub
from tilewright.loop.ir import Expr


def _combine(k: KernelBuilder, row: Sequence[float], values: Sequence[Expr]) -> Expr:
    """The sum of row[i] * values[i] with the fewest operations; coefficients 1 and -1 are free."""
    total: Expr | None = None
    terms = sorted(
        ((c, v) for c, v in zip(row, values, strict=True) if c),
        key=lambda t: (abs(t[0]) != 1, t[0] < 0),
    )
    for c, v in terms:
        if total is None:
            total = v if c == 1 else mul(const(c, F32), v)
        elif c == 1:
            total = add(total, v)
        elif c == -1:
            total = sub(total, v)
        else:
            total = fma(const(c, F32), v, total)
    assert total is not None
    return k.let("w", total) if len(terms) > 1 else total


def forward(k: KernelBuilder, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """matrix @ values for B'. Rows for the points p and -p are the sum and difference of two shared parts."""
    out: list[Expr] = []
    i = 0
    while i < len(matrix):
        if i + 1 < len(matrix):
            even = [(a + b) / 2 for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
            odd = [(a - b) / 2 for a, b in zip(matrix[i], matrix[i + 1], strict=True)]
            disjoint = not any(e and o for e, o in zip(even, odd, strict=True))
            if disjoint and any(even) and any(odd):
                e, o = _combine(k, even, values), _combine(k, odd, values)
                out += [k.let("w", add(e, o)), k.let("w", sub(e, o))]
                i += 2
                continue
        out.append(_combine(k, matrix[i], values))
        i += 1
    return out


def inverse(k: KernelBuilder, matrix: Matrix, values: Sequence[Expr]) -> list[Expr]:
    """matrix @ values for A': columns of the points p and -p act on the sum and the difference."""
    columns = list(zip(*matrix, strict=True))
    parts: list[Expr] = []
    weights: list[tuple[float, ...]] = []
    i = 0
    while i < len(columns):
        here, after = columns[i], columns[i + 1] if i + 1 < len(columns) else ()
        if after and all(
            b == (-1) ** j * a for j, (a, b) in enumerate(zip(here, after, strict=True))
        ):
            parts += [
                k.let("w", add(values[i], values[i + 1])),
                k.let("w", sub(values[i], values[i + 1])),
            ]
            weights.append(tuple((a + b) / 2 for a, b in zip(here, after, strict=True)))
            weights.append(tuple((a - b) / 2 for a, b in zip(here, after, strict=True)))
            i += 2
            continue
        parts.append(values[i])
        weights.append(here)
        i += 1
    return [_combine(k, row, parts) for row in zip(*weights, strict=True)]


def forward_2d(
    k: KernelBuilder, rows: Sequence[Sequence[Expr]], down: Matrix, across: Matrix
) -> list[list[Expr]]:
    """down @ rows @ across' for B'."""
    columns = [forward(k, down, column) for column in zip(*rows, strict=True)]
    return [forward(k, across, row) for row in zip(*columns, strict=True)]


def inverse_2d(
    k: KernelBuilder, rows: Sequence[Sequence[Expr]], down: Matrix, across: Matrix
) -> list[list[Expr]]:
    """down @ rows @ across' for A'."""
    columns = [inverse(k, down, column) for column in zip(*rows, strict=True)]
    return [inverse(k, across, row) for row in zip(*columns, strict=True)]
