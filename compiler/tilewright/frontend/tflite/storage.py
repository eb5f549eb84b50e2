"""Weights that are stored in other ways than one element after the other: sparse ones, and half bytes.

In: raw bytes with the sparsity of a tensor. Out: a dense NumPy array.
Invariant: no element is written outside of the tensor, whatever the file says.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import tflite

from tilewright.core.dtypes import DType
from tilewright.errors import ModelError
from tilewright.frontend import limits
from tilewright.graph.ir import Array

if TYPE_CHECKING:
    from collections.abc import Sequence


class Numbers(Protocol):
    """What reads lists of a FlatBuffer within limits (`reading._Reader`)."""

    def numbers(self, table: Any, name: str, size: int = 4) -> list[int]: ...

    def tables(self, table: Any, name: str) -> list[Any]: ...


def unpack(raw: memoryview, shape: tuple[int, ...], what: str) -> Array:
    """Signed half bytes, the low half first, as i8."""
    count = prod(shape)
    if len(raw) != (count + 1) // 2:
        raise ModelError(
            f"{what} has {len(raw)} bytes of 4-bit data, its shape {list(shape)} needs {(count + 1) // 2}"
        )
    packed = np.frombuffer(raw, np.int8)
    halves = np.stack([(packed << 4).astype(np.int8) >> 4, packed >> 4], axis=-1)
    return np.ascontiguousarray(halves.reshape(-1)[:count].reshape(shape))


def densify(
    reader: Numbers, sparsity: Any, raw: memoryview, dtype: DType, shape: tuple[int, ...], what: str
) -> Array:
    """A tensor stored as a tree of dims, each dense or compressed (CSR), some of them inside blocks.

    `TraversalOrder` lists dims from the outermost; entries from the rank on are dims of blocks, and
    `BlockMap` says which dim each of those cuts.
    """
    order = reader.numbers(sparsity, "TraversalOrder")
    blocks = reader.numbers(sparsity, "BlockMap")
    dims = reader.tables(sparsity, "DimMetadata")
    rank = len(shape)
    limits.check_constant(shape, what)
    sound = sorted(order) == list(range(rank + len(blocks))) and len(dims) == len(order)
    if not sound or any(not 0 <= b < rank for b in blocks):
        raise ModelError(f"{what} has a sparsity that does not fit its shape: the file is damaged")
    extents: dict[int, int] = {}
    positions = np.zeros((1, len(order)), np.int64)
    """Coordinates of what has been reached so far, one row each."""
    for level, (dim, meta) in enumerate(zip(order, dims, strict=True)):
        rows = len(positions)
        if int(meta.Format()) == tflite.DimensionType.DENSE:
            n = int(meta.DenseSize())
            if rows * max(n, 0) > prod(shape):
                raise ModelError(
                    f"{what} has more sparse values than elements: the file is damaged"
                )
            parents = np.repeat(np.arange(rows), max(n, 0))
            at = np.tile(np.arange(max(n, 0)), rows)
        else:
            segments = np.asarray(_indices(reader, meta, "ArraySegments"), np.int64)
            indices = np.asarray(_indices(reader, meta, "ArrayIndices"), np.int64)
            counts = np.diff(segments)
            fits = len(segments) == rows + 1 and len(indices) == counts.sum() if rows else True
            few = len(indices) <= prod(shape)
            if not fits or not few or (counts < 0).any() or (indices < 0).any():
                raise ModelError(f"{what} has compressed dims that do not fit: the file is damaged")
            n = int(indices.max(initial=-1)) + 1
            parents, at = np.repeat(np.arange(rows), counts), indices
        extents[dim] = max(n, 0)
        positions = positions[parents]
        positions[:, level] = at
    return _placed(positions, order, blocks, extents, raw, dtype, shape, what)


def _placed(
    positions: Array,
    order: Sequence[int],
    blocks: Sequence[int],
    extents: dict[int, int],
    raw: memoryview,
    dtype: DType,
    shape: tuple[int, ...],
    what: str,
) -> Array:
    """Write the values to where the tree has led."""
    rank, level = len(shape), {dim: i for i, dim in enumerate(order)}
    if len(raw) != len(positions) * dtype.bytes:
        raise ModelError(
            f"{what} has {len(raw)} bytes for {len(positions)} sparse values: the file is damaged"
        )
    values = np.frombuffer(raw, dtype.numpy.newbyteorder("<")).astype(dtype.numpy)
    columns: list[Array] = []
    for d in range(rank):
        at = positions[:, level[d]]
        for b, cut in enumerate(blocks):
            if cut == d:
                at = at * extents[rank + b] + positions[:, level[rank + b]]
        if at.size and not (at.min() >= 0 and at.max() < shape[d]):
            raise ModelError(f"{what} has sparse values outside of its shape: the file is damaged")
        columns.append(at)
    dense = np.zeros(shape, dtype.numpy)
    dense[tuple(columns)] = values if rank else values.reshape(-1)[:1]
    return dense


_VECTORS = {
    tflite.SparseIndexVector.Int32Vector: (tflite.Int32Vector, 4),
    tflite.SparseIndexVector.Uint16Vector: (tflite.Uint16Vector, 2),
    tflite.SparseIndexVector.Uint8Vector: (tflite.Uint8Vector, 1),
}


def _indices(reader: Numbers, meta: Any, name: str) -> list[int]:
    """A vector of one of three integer types."""
    table, kind = getattr(meta, name)(), int(getattr(meta, f"{name}Type")())
    if table is None or kind not in _VECTORS:
        return []
    of, size = _VECTORS[kind]
    vector = of()
    vector.Init(table.Bytes, table.Pos)
    return reader.numbers(vector, "Values", size)
