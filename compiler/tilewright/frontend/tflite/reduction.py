"""Operators that reduce along dims, over floats and plain integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.core.dtypes import BOOL, U8
from tilewright.frontend import limits
from tilewright.frontend.tflite.node import Importers, TfliteNode, one


def axes(node: TfliteNode) -> tuple[int, ...]:
    """Input 1: the dims to reduce, sorted."""
    rank = node.type(0).rank
    return tuple(sorted({node.axis(a, rank) for a in node.need_ints(1, "the axes")}))


def reduced(node: TfliteNode, op: str, x: str) -> str:
    return node.add(op, x, axes=axes(node), keepdims=bool(node.option("KeepDims", False)))


def _reduce(op: str) -> Callable[[TfliteNode], str]:
    return lambda node: reduced(node, op, node.value(0))


def _truth(op: str) -> Callable[[TfliteNode], str]:
    """Any is the largest of 0 and 1, all the least."""

    def importer(node: TfliteNode) -> str:
        return node.cast(reduced(node, op, node.cast(node.value(0), U8)), BOOL)

    return importer


def _mean(node: TfliteNode) -> str:
    """Integers divide towards zero."""
    if node.type(0).dtype.is_float:
        return reduced(node, "reduce_mean", node.value(0))
    count = int(np.prod([node.type(0).shape[a] for a in axes(node)]))
    total = reduced(node, "reduce_sum", node.value(0))
    return node.add("div", total, node.like(total, max(count, 1), "count"))


def _arg(op: str) -> Callable[[TfliteNode], str]:
    def importer(node: TfliteNode) -> str:
        axis = node.axis(node.need_ints(1, "the axis")[0], node.type(0).rank)
        at = node.add(op, node.value(0), axis=axis, keepdims=False, select_last=False)
        to = node.result().dtype
        return at if to is None else node.cast(at, to)

    return importer


def l2_normalized(node: TfliteNode, x: str) -> str:
    """x / sqrt(max(sum of squares along the last dim, 1e-6))"""
    square = node.add("mul", x, x)
    last = max(node.type_of(x).rank - 1, 0)
    total = node.add("reduce_sum", square, axes=(last,), keepdims=True)
    floor = node.add("max", total, node.like(total, 1e-6))
    return node.add("div", x, node.add("sqrt", floor))


def _cumsum(node: TfliteNode) -> str:
    axis = node.axis(node.need_ints(1, "the axis")[0], node.type(0).rank)
    exclusive, reverse = bool(node.option("Exclusive", False)), bool(node.option("Reverse", False))
    attrs = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
    return node.add("cumulative_sum", node.value(0), **attrs)


def _segment_sum(node: TfliteNode) -> str:
    """Rows of equal id are summed: a product with a matrix of zeros and ones."""
    t, ids = node.type(0), np.asarray(node.need_ints(1, "the segment ids"), np.int64)
    count = int(ids.max(initial=-1)) + 1
    if node.op.code != "SEGMENT_SUM":
        count = node.need_ints(2, "the number of segments")[0]
    if len(ids) != t.shape[0] or (ids < 0).any() or (ids >= count).any() or not t.dtype.is_float:
        raise node.fail(f"{len(ids)} segment ids do not fit {t}: repair the model")
    limits.check_constant((max(count, 0), len(ids)), f"node `{node.name}`")
    picks = (np.arange(count)[:, None] == ids).astype(np.float64)
    flat = node.reshape(node.value(0), (t.shape[0], t.size // max(t.shape[0], 1)))
    y = node.add("matmul", node.constant(picks, "segments", t.dtype), flat)
    return node.reshape(y, (count, *t.shape[1:]))


FLOAT: Importers = {
    "SUM": one(_reduce("reduce_sum")),
    "REDUCE_MAX": one(_reduce("reduce_max")),
    "REDUCE_MIN": one(_reduce("reduce_min")),
    "REDUCE_PROD": one(_reduce("reduce_prod")),
    "REDUCE_ANY": one(_truth("reduce_max")),
    "REDUCE_ALL": one(_truth("reduce_min")),
    "MEAN": one(_mean),
    "ARG_MAX": one(_arg("argmax")),
    "ARG_MIN": one(_arg("argmin")),
    "L2_NORMALIZATION": one(lambda n: n.activated(l2_normalized(n, n.value(0)))),
    "CUMSUM": one(_cumsum),
    "SEGMENT_SUM": one(_segment_sum),
    "UNSORTED_SEGMENT_SUM": one(_segment_sum),
}
