"""Operators that pick elements by indices, and those that make tensors out of shapes and numbers.

They compute nothing either, and serve floats, integers and quantised bytes alike.
"""

from __future__ import annotations

import math

import numpy as np

from tilewright.frontend import limits
from tilewright.frontend.tflite.node import Importers, TfliteNode, one


def _gather(node: TfliteNode) -> str:
    """Indices replace dim `Axis`; leading `BatchDims` dims go in step with those of the indices."""
    t, at = node.type(0), node.type(1)
    axis = node.axis(int(node.option("Axis", 0)), t.rank)
    batch = int(node.option("BatchDims", 0))
    batch = batch + at.rank if batch < 0 else batch
    if batch == 0:
        return node.add("gather", node.value(0), node.value(1), axis=axis)
    if not batch <= min(axis, at.rank) or t.shape[:batch] != at.shape[:batch]:
        raise node.fail(f"{batch} batch dims do not fit {t} and {at}: repair the model")
    middle = list(range(batch, axis))
    perm = (*range(batch), axis, *middle, *range(axis + 1, t.rank))
    x = node.add("transpose", node.value(0), perm=perm)
    index = node.reshape(node.value(1), (*at.shape, 1))
    y = node.add("gather_nd", x, index, batch_dims=batch)
    inner = at.rank - batch
    moved = (
        *range(batch), *range(batch + inner, batch + inner + len(middle)), *range(batch, batch + inner),
        *range(batch + inner + len(middle), node.type_of(y).rank),
    )  # fmt: skip
    return node.add("transpose", y, perm=moved)


def _embedding(node: TfliteNode) -> str:
    """(indices, table)"""
    return node.add("gather", node.value(1), node.value(0), axis=0)


def _gather_nd(node: TfliteNode) -> str:
    return node.add("gather_nd", node.value(0), node.value(1), batch_dims=0)


def _reverse_sequence(node: TfliteNode) -> str:
    """The first `lengths[b]` elements along `SeqDim` in reverse, for each b along `BatchDim`."""
    t = node.type(0)
    seq = node.axis(int(node.option("SeqDim", 0)), t.rank)
    batch = node.axis(int(node.option("BatchDim", 0)), t.rank)
    lengths = node.need_ints(1, "the lengths")
    n, count = t.shape[seq], t.shape[batch]
    limits.check_constant(t.shape, f"node `{node.name}`")
    if seq == batch or len(lengths) != count or not all(0 <= v <= n for v in lengths):
        raise node.fail(f"lengths {lengths} do not fit {t}: repair the model")
    order = [[v - 1 - i if i < v else i for i in range(n)] for v in lengths]
    shape = [1] * t.rank
    shape[batch], shape[seq] = count, n
    table = np.asarray(order, np.int64)
    index = (table if batch < seq else table.T).reshape(shape)
    index = np.ascontiguousarray(np.broadcast_to(index, t.shape))
    return node.add("gather_elements", node.value(0), node.constant(index, "order"), axis=seq)


# ---------------------------------------------------------------- shapes as values


def _shape(node: TfliteNode) -> str:
    return node.constant(np.asarray(node.type(0).shape), "shape", node.result().dtype)


def _fill(node: TfliteNode) -> str:
    shape = limits.check_constant(node.need_ints(0, "the shape"), f"node `{node.name}`")
    known = node.const(1)
    if known is None:
        return node.add("expand", node.reshape(node.value(1), ()), shape=shape)
    return node.constant(np.full(shape, known.reshape(-1)[0], known.dtype), "filled")


def _range(node: TfliteNode) -> str:
    bounds = [node.need_const(i, "a bound of the range") for i in range(3)]
    start, limit, delta = (b.reshape(-1)[0].item() for b in bounds)
    if delta == 0:
        raise node.fail("the range has a step of 0: repair the model")
    count = max(0, math.ceil((limit - start) / delta))
    limits.check_constant([count], f"node `{node.name}`")
    values = np.asarray(start) + np.arange(count) * np.asarray(delta)
    return node.constant(values.astype(bounds[0].dtype), "range")


def _zeros_like(node: TfliteNode) -> str:
    t = node.type(0)
    limits.check_constant(t.shape, f"node `{node.name}`")
    return node.constant(np.zeros(t.shape, t.dtype.numpy), "zeros")


def _sparse_to_dense(node: TfliteNode) -> str:
    """(indices, shape, values, default): all indices known."""
    shape = limits.check_constant(node.need_ints(1, "the shape"), f"node `{node.name}`")
    at = np.atleast_1d(node.need_const(0, "the indices").astype(np.int64)).reshape(-1, len(shape))
    values = np.broadcast_to(node.need_const(2, "the values").reshape(-1), (len(at),))
    dense = np.full(shape, node.need_const(3, "the default").reshape(-1)[0], values.dtype)
    if at.size and not ((at >= 0).all() and (at < np.asarray(shape)).all()):
        raise node.fail(f"an index is outside of {list(shape)}: repair the model")
    dense[tuple(at.T)] = values
    return node.constant(dense, "dense")


def _diagonal(node: TfliteNode) -> str:
    """A new last dim, zero off the diagonal."""
    t = node.type(0)
    limits.check_constant((t.shape[-1], t.shape[-1]), f"node `{node.name}`")
    eye = node.constant(np.eye(t.shape[-1], dtype=np.bool_), "eye")
    wide = node.reshape(node.value(0), (*t.shape, 1))
    return node.add("where", eye, wide, node.like(wide, 0))


def _set_diagonal(node: TfliteNode) -> str:
    t, d = node.type(0), node.type(1)
    limits.check_constant(t.shape[-2:], f"node `{node.name}`")
    eye = node.constant(np.eye(*t.shape[-2:], dtype=np.bool_), "eye")
    count = min(t.shape[-2:])
    if d.shape != (*t.shape[:-2], count):
        raise node.fail(f"a diagonal {d} does not fit {t}: repair the model")
    tall = t.shape[-2] > t.shape[-1]
    x = node.reshape(node.value(1), (*d.shape, 1) if not tall else (*d.shape[:-1], 1, count))
    return node.add("where", eye, x, node.value(0))


BYTES: Importers = {
    "GATHER": one(_gather),
    "GATHER_ND": one(_gather_nd),
    "EMBEDDING_LOOKUP": one(_embedding),
    "REVERSE_SEQUENCE": one(_reverse_sequence),
    "SHAPE": one(_shape),
    "RANK": one(lambda n: n.constant(np.asarray(n.type(0).rank, np.int32), "rank")),
    "FILL": one(_fill),
    "RANGE": one(_range),
    "ZEROS_LIKE": one(_zeros_like),
    "SPARSE_TO_DENSE": one(_sparse_to_dense),
    "MATRIX_DIAG": one(_diagonal),
    "MATRIX_SET_DIAG": one(_set_diagonal),
}
