"""Operators that ONNX Runtime's optimiser fuses transformers into (domain com.microsoft), taken apart again.

In: an `ImportNode`. Out: value names; all is composed of canonical operators, which are fused anew for the
target. Heads are the second dim inside: q, k and v are [batch, heads, length, size].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.registry import ImportNode

Importer = Callable[[ImportNode], Sequence[str]]


def one(node: ImportNode, op: str, *inputs: str, **attrs: Any) -> str:
    """The only result of a canonical node."""
    return node.add(op, inputs, attrs)[0]


def number_like(node: ImportNode, like: str, value: float) -> str:
    """A scalar constant of the type of `like`."""
    return node.constant(np.asarray(value, node.type_of(like).dtype.numpy), "number")


def part(node: ImportNode, x: str, axis: int, start: int, end: int) -> str:
    """Elements `start` to `end` of x along an axis."""
    shape = node.type_of(x).shape
    if (start, end) == (0, shape[axis]):
        return x
    starts, ends = [0] * len(shape), list(shape)
    starts[axis], ends[axis] = start, end
    steps = (1,) * len(shape)
    return one(node, "slice", x, starts=tuple(starts), ends=tuple(ends), steps=steps)


# ---------------------------------------------------------------- normalisation and activations


def _skip_norm(mean: bool) -> Importer:
    """(x + skip [+ bias]) normalised, by mean and variance or by the root of the mean square."""

    def importer(node: ImportNode) -> Sequence[str]:
        bias = 4 if mean else 3
        (total,) = node.add("add", node.inputs[:2])
        if node.has(bias):
            (total,) = node.add("add", [total, node.inputs[bias]])
        axis, epsilon = len(node.type_of(total).shape) - 1, float(node.attr("epsilon", 1e-5))
        if mean:
            beta = [node.inputs[3]] if node.has(3) else []
            y = node.add(
                "layer_norm", [total, node.inputs[2], *beta], {"axis": axis, "epsilon": epsilon}
            )[0]
        else:
            y = _rms(node, total, node.inputs[2], axis, epsilon)
        if node.output_count > 2:
            raise node.fail(
                "the outputs for the mean and the deviation are not supported: remove them"
            )
        return [y, "", "", total] if node.output_count > 1 else [y]

    return importer


def _rms(node: ImportNode, x: str, scale: str, axis: int, epsilon: float) -> str:
    axes = tuple(range(axis, len(node.type_of(x).shape)))
    (square,) = node.add("mul", [x, x])
    mean = one(node, "reduce_mean", square, axes=axes, keepdims=True)
    (shifted,) = node.add("add", [mean, number_like(node, x, epsilon)])
    (root,) = node.add("sqrt", [shifted])
    (normal,) = node.add("div", [x, root])
    return node.add("mul", [normal, scale])[0]


def simplified_norm(node: ImportNode) -> Sequence[str]:
    """ONNX Runtime's name for RMSNormalization: input, scale."""
    rank = node.type(0).rank
    axis = int(node.attr("axis", -1)) % rank
    return [_rms(node, node.inputs[0], node.inputs[1], axis, float(node.attr("epsilon", 1e-5)))]


def _gelu(approximate: str) -> Importer:
    def importer(node: ImportNode) -> Sequence[str]:
        x = node.add("add", node.inputs[:2])[0] if node.has(1) else node.inputs[0]
        return node.add("gelu", [x], {"approximate": approximate})

    return importer


def _quick_gelu(node: ImportNode) -> Sequence[str]:
    x = node.inputs[0]
    (scaled,) = node.add("mul", [x, number_like(node, x, float(node.attr("alpha", 1.702)))])
    (gate,) = node.add("sigmoid", [scaled])
    return node.add("mul", [x, gate])


def _fused_matmul(node: ImportNode) -> Sequence[str]:
    """alpha * A' B', transposed as asked; the batch transposed into the rows is refused."""
    sides: list[str] = []
    for i, side in enumerate("AB"):
        if node.attr(f"transBatch{side}", 0):
            raise node.fail(f"transBatch{side} is not supported: use a Transpose")
        x, rank = node.inputs[i], node.type(i).rank
        if node.attr(f"trans{side}", 0) and rank > 1:
            x = one(node, "transpose", x, perm=(*range(rank - 2), rank - 1, rank - 2))
        sides.append(x)
    (y,) = node.add("matmul", sides)
    alpha = float(node.attr("alpha", 1.0))
    return [y] if alpha == 1.0 else node.add("mul", [y, number_like(node, y, alpha)])


# ---------------------------------------------------------------- attention


def split_heads(node: ImportNode, x: str, heads: int) -> str:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    batch, length, hidden = node.type_of(x).shape
    if hidden % heads:
        raise node.fail(f"{hidden} elements are not divided by {heads} heads: repair the model")
    x = one(node, "reshape", x, shape=(batch, length, heads, hidden // heads))
    return one(node, "transpose", x, perm=(0, 2, 1, 3))


def _attend(node: ImportNode, q: str, k: str, v: str, masks: Sequence[str]) -> str:
    """softmax(q k' * scale + masks) v as [batch, length, heads * size]."""
    batch, heads, length, size = node.type_of(q).shape
    scale = float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(size)
    (q,) = node.add("mul", [q, number_like(node, q, scale)])
    k = one(node, "transpose", k, perm=(0, 1, 3, 2))
    (scores,) = node.add("matmul", [q, k])
    for mask in masks:
        (scores,) = node.add("add", [scores, mask])
    if int(node.attr("unidirectional", 0)):
        keys = node.type_of(scores).shape[-1]
        node.reserve(length, keys)
        ahead = np.tril(np.ones((length, keys), bool), keys - length)
        low = float(node.attr("mask_filter_value", -10000.0))
        causal = node.constant(ahead, "causal")
        (scores,) = node.add("where", [causal, scores, number_like(node, scores, low)])
    weights = one(node, "softmax", scores, axis=3)
    (y,) = node.add("matmul", [weights, v])
    y = one(node, "transpose", y, perm=(0, 2, 1, 3))
    return one(node, "reshape", y, shape=(batch, length, heads * node.type_of(v).shape[3]))


def _padding(node: ImportNode, i: int, keys: int, like: str) -> list[str]:
    """What input `i` adds to the scores: 0 where a key may be seen, the filter value elsewhere."""
    if not node.has(i):
        return []
    t, mask = node.type(i), node.inputs[i]
    batch = node.type_of(like).shape[0]
    if t.rank == 1 and t.shape[0] == batch:  # lengths
        node.reserve(keys)
        place = node.constant(np.arange(keys, dtype=t.dtype.numpy), "place")
        length = one(node, "reshape", mask, shape=(batch, 1, 1, 1))
        (seen,) = node.add("lt", [place, length])
    elif t.rank in (2, 3) and t.shape[-1] == keys:
        shape = (t.shape[0], 1, t.shape[1] if t.rank == 3 else 1, keys)
        seen = one(node, "cast", one(node, "reshape", mask, shape=shape), to="bool")
    else:
        raise node.fail(f"a mask {t} for {keys} keys is not supported: use [batch, keys]")
    low = number_like(node, like, float(node.attr("mask_filter_value", -10000.0)))
    return node.add("where", [seen, number_like(node, like, 0.0), low])


@dataclass(slots=True)
class _Cache:
    """Keys and values of all steps so far, which the next step is given."""

    k: str
    v: str


def _extended(node: ImportNode, k: str, v: str, past: tuple[str, str]) -> _Cache:
    """Earlier keys and values before the new ones."""
    return _Cache(one(node, "concat", past[0], k, axis=2), one(node, "concat", past[1], v, axis=2))


def _attention(node: ImportNode) -> Sequence[str]:
    """One matrix makes q, k and v: input, weights, bias?, mask?, past?, scores to add?"""
    if node.attr("do_rotary", 0):
        raise node.fail("do_rotary is not supported: use RotaryEmbedding")
    heads = int(node.attr("num_heads"))
    (made,) = node.add("matmul", node.inputs[:2])
    if node.has(2):
        (made,) = node.add("add", [made, node.inputs[2]])
    total = node.type_of(made).shape[2]
    sizes = [int(n) for n in node.attr("qkv_hidden_sizes", (total // 3,) * 3)]
    ends = np.cumsum(sizes).tolist()
    q, k, v = (
        split_heads(node, part(node, made, 2, e - n, e), heads)
        for n, e in zip(sizes, ends, strict=True)
    )
    cache = _Cache(k, v)
    if node.has(4):
        shape = node.type(4).shape[1:]
        past = [
            one(node, "reshape", part(node, node.inputs[4], 0, i, i + 1), shape=shape)
            for i in (0, 1)
        ]
        cache = _extended(node, k, v, (past[0], past[1]))
    keys = node.type_of(cache.k).shape[2]
    masks = _padding(node, 3, keys, q) + ([node.inputs[5]] if node.has(5) else [])
    y = _attend(node, q, cache.k, cache.v, masks)
    if node.output_count == 1:
        return [y]
    pair = [one(node, "reshape", x, shape=(1, *node.type_of(x).shape)) for x in (cache.k, cache.v)]
    return [y, *node.add("concat", pair, {"axis": 0})]


def _multi_head(node: ImportNode) -> Sequence[str]:
    """q, k and v are given, apart or packed: query, key?, value?, bias?, mask?, scores to add?, past?"""
    heads = int(node.attr("num_heads"))
    parts = _separate(node, heads)
    if node.has(3):
        ends = np.cumsum([_width(node, p) for p in parts]).tolist()
        parts = [
            p if _is_split(node, p)
            else node.add("add", [p, part(node, node.inputs[3], 0, e - _width(node, p), e)])[0]
            for p, e in zip(parts, ends, strict=True)
        ]  # fmt: skip
    q, k, v = (p if _is_split(node, p) else split_heads(node, p, heads) for p in parts)
    cache = _Cache(k, v)
    if node.has(6) and node.has(7):
        cache = _extended(node, k, v, (node.inputs[6], node.inputs[7]))
    keys = node.type_of(cache.k).shape[2]
    masks = _padding(node, 4, keys, q) + ([node.inputs[5]] if node.has(5) else [])
    return [_attend(node, q, cache.k, cache.v, masks), cache.k, cache.v]


def _is_split(node: ImportNode, x: str) -> bool:
    return len(node.type_of(x).shape) == 4


def _width(node: ImportNode, x: str) -> int:
    """Elements per position, all heads together."""
    shape = node.type_of(x).shape
    return shape[2] if len(shape) == 3 else shape[1] * shape[3]


def _separate(node: ImportNode, heads: int) -> list[str]:
    """q, k and v as [batch, length, heads * size], or as heads where they come so."""

    def unpacked(x: str, count: int) -> list[str]:
        batch, length, _, _, size = node.type_of(x).shape
        shape = (batch, length, heads * size)
        return [one(node, "reshape", part(node, x, 3, i, i + 1), shape=shape) for i in range(count)]

    if not node.has(1):
        if node.type(0).rank != 5:
            raise node.fail("key and value are missing: repair the model")
        return unpacked(node.inputs[0], 3)
    if not node.has(2):
        if node.type(1).rank != 5:
            raise node.fail("the value is missing: repair the model")
        return [node.inputs[0], *unpacked(node.inputs[1], 2)]
    return list(node.inputs[:3])


def _rotary(node: ImportNode) -> Sequence[str]:
    """Pairs of elements turned by an angle per position: input, positions, cosines, sines."""
    x, t = node.inputs[0], node.type(0)
    if node.attr("is_packed_batching", 0):
        raise node.fail("packed batches are not supported: pad them")
    half = node.type(2).shape[1]
    size = 2 * half if t.rank == 3 else t.shape[3]
    heads = int(node.attr("num_heads", 0))
    if t.rank == 3:
        size = t.shape[2] // heads if heads else size
        x = split_heads(node, x, t.shape[2] // size)
    batch, count, length, size = node.type_of(x).shape
    positions = node.inputs[1]
    if node.type(1).size == 1 and node.type(1).rank == 1:  # the first one
        node.reserve(length)
        steps = node.constant(np.arange(length, dtype=np.int64)[None], "steps")
        positions = one(node, "add", steps, positions)
    rows = node.type_of(positions).shape[0]
    turn = [
        one(node, "reshape", one(node, "gather", node.inputs[i], positions, axis=0), shape=(rows, 1, length, half))
        for i in (2, 3)
    ]  # fmt: skip
    y = turned(
        node, part(node, x, 3, 0, 2 * half), turn[0], turn[1], bool(node.attr("interleaved", 0))
    )
    if 2 * half < size:
        y = one(node, "concat", y, part(node, x, 3, 2 * half, size), axis=3)
    if t.rank == 3:
        y = one(node, "transpose", y, perm=(0, 2, 1, 3))
        y = one(node, "reshape", y, shape=(batch, length, count * size))
    return [y]


def turned(node: ImportNode, x: str, cos: str, sin: str, interleaved: bool) -> str:
    """Element pairs (a, b) -> (a cos - b sin, b cos + a sin): neighbours, or the two halves."""
    shape = node.type_of(x).shape
    half, axis = shape[3] // 2, 3
    if interleaved:
        axis = 4
        x = one(node, "reshape", x, shape=(*shape[:3], half, 2))
        cos, sin = (one(node, "reshape", s, shape=(*node.type_of(s).shape, 1)) for s in (cos, sin))
    step = 1 if interleaved else half
    a, b = part(node, x, axis, 0, step), part(node, x, axis, step, 2 * step)
    first = one(node, "sub", one(node, "mul", a, cos), one(node, "mul", b, sin))
    second = one(node, "add", one(node, "mul", b, cos), one(node, "mul", a, sin))
    y = one(node, "concat", first, second, axis=axis)
    return one(node, "reshape", y, shape=shape) if interleaved else y


#: Operators of com.microsoft; their signatures are in `schema.MICROSOFT`.
TRANSFORMERS: Mapping[str, Importer] = {
    "SkipLayerNormalization": _skip_norm(True),
    "SkipSimplifiedLayerNormalization": _skip_norm(False),
    "FastGelu": _gelu("tanh"),
    "BiasGelu": _gelu("none"),
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "RotaryEmbedding": _rotary,
}
