"""com.microsoft's GroupQueryAttention, as small language models are exported: a cache of keys and values, rotary
positions, fewer key heads than query heads.

In: an `ImportNode`. Out: value names; all is composed of canonical operators. Source: ONNX Runtime's
ContribOperators.md, and what its CPU kernel does where that leaves something open.
Invariant: query heads that share a key head are rows of one matrix product, so keys are never repeated; where the
cache holds nothing yet it holds zeros.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.frontend.transformer import number_like, one, part, split_heads, turned
from tilewright.registry import ImportNode


@dataclass(slots=True)
class _Sizes:
    """batch, new positions, query heads, key heads, elements of a head, positions of the cache given and made."""

    batch: int
    length: int
    heads: int
    groups: int
    size: int
    past: int
    total: int
    first: bool
    """Whether all positions are new, so that the cache is not read."""


def grouped_attention(node: ImportNode) -> Sequence[str]:
    """query (or all packed), key?, value?, past key?, past value?, last position per sequence, number of positions,
    cosines?, sines?, positions?, scores to add?, sinks?"""
    q, k, v, sizes = _operands(node)
    before = _before(node, sizes)
    if node.attr("do_rotary", 0):
        turn = _turn(node, sizes, before)
        q, k = (_rotated(node, x, *turn) for x in (q, k))
    keys, values = (_cached(node, x, i, sizes, before) for x, i in ((k, 3), (v, 4)))
    y = _attended(node, q, keys, values, sizes, before)
    return [y, keys, values][: max(node.output_count, 1)]


def _operands(node: ImportNode) -> tuple[str, str, str, _Sizes]:
    """q, k and v as [batch, heads, length, size], and all sizes."""
    heads, groups = int(node.attr("num_heads", 0)), int(node.attr("kv_num_heads", 0))
    t = node.type(0)
    if t.rank != 3 or groups < 1 or heads % groups or node.has(1) != node.has(2):
        raise node.fail(
            f"its query is {t}, for {heads} heads that share {groups}: repair the model"
        )
    batch, length, width = t.shape
    x = node.inputs[0]
    if node.has(1):
        q, k, v = node.inputs[:3]
    else:
        size = width // (heads + 2 * groups)
        ends = [0, heads * size, (heads + groups) * size, (heads + 2 * groups) * size]
        q, k, v = (part(node, x, 2, a, b) for a, b in itertools.pairwise(ends))
    known = node.need_const(6, "the number of positions (total_sequence_length)")
    total, past = int(known.reshape(-1)[0]), node.type(3).shape[2] if node.has(3) else 0
    if total < length or (past and total > length + past):
        raise node.fail(
            f"{length} new positions after {past} in the cache are not {total}: give the cache and the mask "
            "sizes that fit"
        )
    q, k, v = (split_heads(node, x, n) for x, n in ((q, heads), (k, groups), (v, groups)))
    size = node.type_of(q).shape[3]
    if node.has(3) and node.type(3).shape[1::2] != (groups, size):
        raise node.fail(f"the cache is {node.type(3)}, heads are {node.type_of(k)}: repair it")
    first = length == total or not past
    sizes = _Sizes(batch, length, heads, groups, size, past, max(total, past), first)
    return q, k, v, sizes


def _before(node: ImportNode, sizes: _Sizes) -> str:
    """Positions of the cache in use before this run, [batch, 1] in i64."""
    if sizes.first:
        return node.constant(np.zeros((sizes.batch, 1), np.int64), "before")
    last = one(node, "cast", node.inputs[5], to="i64")
    last = one(node, "reshape", last, shape=(sizes.batch, 1))
    least = node.constant(np.zeros((), np.int64), "least")
    (before,) = node.add(
        "sub", [last, node.constant(np.asarray(sizes.length - 1, np.int64), "new")]
    )
    return node.add("max", [before, least])[0]


def _places(node: ImportNode, count: int) -> str:
    node.reserve(count)
    return node.constant(np.arange(count, dtype=np.int64), "places")


def _turn(node: ImportNode, sizes: _Sizes, before: str) -> tuple[str, str]:
    """Cosines and sines of every new position, [batch, 1, length, half]."""
    if not (node.has(7) and node.has(8)):
        raise node.fail("do_rotary needs the tables of cosines and sines: repair the model")
    if node.has(9):
        positions = one(node, "cast", node.inputs[9], to="i64")
    else:
        (positions,) = node.add("add", [_places(node, sizes.length), before])
    half = node.type(7).shape[1]
    rows = node.type_of(positions).shape[0]
    cos, sin = (
        one(
            node, "reshape", one(node, "gather", node.inputs[i], positions, axis=0),
            shape=(rows, 1, sizes.length, half),
        )
        for i in (7, 8)
    )  # fmt: skip
    return cos, sin


def _rotated(node: ImportNode, x: str, cos: str, sin: str) -> str:
    width, size = 2 * node.type_of(cos).shape[3], node.type_of(x).shape[3]
    y = turned(node, part(node, x, 3, 0, width), cos, sin, bool(node.attr("rotary_interleaved", 0)))
    return y if width == size else one(node, "concat", y, part(node, x, 3, width, size), axis=3)


def _cached(node: ImportNode, new: str, at: int, sizes: _Sizes, before: str) -> str:
    """The cache `at` with the new positions in their places, zeros behind them."""
    if sizes.first:
        return _padded(node, new, sizes.total)
    old = _padded(node, node.inputs[at], sizes.total)
    places = _places(node, sizes.total)
    rows: list[str] = []
    for b in range(sizes.batch):
        start = one(node, "reshape", part(node, before, 0, b, b + 1), shape=())
        (offset,) = node.add("sub", [places, start])
        zero = node.constant(np.zeros((), np.int64), "zero")
        most = node.constant(np.asarray(sizes.length - 1, np.int64), "most")
        (within,) = node.add("min", [*node.add("max", [offset, zero]), most])
        mine = one(node, "gather", part(node, new, 0, b, b + 1), within, axis=2)
        column = (sizes.total, 1)
        is_old = one(node, "reshape", *node.add("lt", [offset, zero]), shape=column)
        (unused,) = node.add("gt", [offset, most])
        unused = one(node, "reshape", unused, shape=column)
        (mine,) = node.add("where", [unused, number_like(node, new, 0.0), mine])
        rows += node.add("where", [is_old, part(node, old, 0, b, b + 1), mine])
    return rows[0] if len(rows) == 1 else one(node, "concat", *rows, axis=0)


def _padded(node: ImportNode, x: str, count: int) -> str:
    """x with zeros behind it up to `count` positions."""
    shape = node.type_of(x).shape
    if shape[2] == count:
        return x
    rest = (*shape[:2], count - shape[2], shape[3])
    node.reserve(*rest)
    zeros = node.constant(np.zeros(rest, node.type_of(x).dtype.numpy), "unused")
    return one(node, "concat", x, zeros, axis=2)


def _attended(node: ImportNode, q: str, k: str, v: str, sizes: _Sizes, before: str) -> str:
    """[batch, length, heads * size]: every position sees itself and what is before it."""
    s = sizes
    share = s.heads // s.groups
    scale = float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(s.size)
    (q,) = node.add("mul", [q, number_like(node, q, scale)])
    q = one(node, "reshape", q, shape=(s.batch, s.groups, share * s.length, s.size))
    (scores,) = node.add("matmul", [q, one(node, "transpose", k, perm=(0, 1, 3, 2))])
    apart = (s.batch, s.groups, share, s.length, s.total)
    scores = one(node, "reshape", scores, shape=apart)
    cap = float(node.attr("softcap", 0.0))
    if cap:
        (scores,) = node.add("div", [scores, number_like(node, scores, cap)])
        (scores,) = node.add("mul", [*node.add("tanh", [scores]), number_like(node, scores, cap)])
    scores = _biased(node, scores, s, share)
    (scores,) = node.add(
        "where", [_seen(node, s, before), scores, number_like(node, scores, -np.inf)]
    )
    weights = _weights(node, scores, s, share)
    weights = one(node, "reshape", weights, shape=(s.batch, s.groups, share * s.length, s.total))
    (y,) = node.add("matmul", [weights, v])
    y = one(node, "reshape", y, shape=(s.batch, s.heads, s.length, s.size))
    y = one(node, "transpose", y, perm=(0, 2, 1, 3))
    return one(node, "reshape", y, shape=(s.batch, s.length, s.heads * s.size))


def _seen(node: ImportNode, s: _Sizes, before: str) -> str:
    """Which positions each new one sees, [batch, 1, 1, length, total]."""
    (here,) = node.add("add", [_places(node, s.length), before])
    here = one(node, "reshape", here, shape=(s.batch, 1, 1, s.length, 1))
    places = _places(node, s.total)
    (seen,) = node.add("le", [places, here])
    window = int(node.attr("local_window_size", -1))
    if window > 0:
        (oldest,) = node.add("sub", [here, node.constant(np.asarray(window, np.int64), "window")])
        (seen,) = node.add("and", [seen, *node.add("gt", [places, oldest])])
    return seen


def _biased(node: ImportNode, scores: str, s: _Sizes, share: int) -> str:
    """Scores with what input 10 adds to them, [1 or batch, 1 or heads, length, total]."""
    if not node.has(10):
        return scores
    t = node.type(10)
    if t.rank != 4 or t.shape[2:] != (s.length, s.total) or t.shape[1] not in (1, s.heads):
        raise node.fail(f"{t} cannot be added to {s.length} x {s.total} scores: repair the model")
    groups = (s.groups, share) if t.shape[1] == s.heads else (1, 1)
    bias = one(node, "reshape", node.inputs[10], shape=(t.shape[0], *groups, s.length, s.total))
    return node.add("add", [scores, bias])[0]


def _weights(node: ImportNode, scores: str, s: _Sizes, share: int) -> str:
    """Softmax over positions; a sink takes part without a value of its own."""
    if not (node.has(11) or int(node.attr("smooth_softmax", 0)) == 1):
        return one(node, "softmax", scores, axis=4)
    column = (s.batch, s.groups, share, s.length, 1)
    sink = number_like(node, scores, 0.0)
    if node.has(11):
        sink = one(node, "reshape", node.inputs[11], shape=(1, s.groups, share, 1, 1))
    sink = one(node, "expand", sink, shape=column)
    weights = one(node, "softmax", one(node, "concat", scores, sink, axis=4), axis=4)
    return part(node, weights, 4, 0, s.total)
