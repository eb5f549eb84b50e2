"""Indices of the k largest (or smallest) elements along an axis, best first; equal ones by index.

topk          insertion into a list of k: y[o.., j] = index of the j-th best of x[o.., :]
merge_topk    the k best of two halves of candidates, each sorted: y[o.., p, :] of i[o.., 2p, :] and
              i[o.., 2p + 1, :], all of which index x

Few elements, or a short list, take one `topk`. Otherwise blocks of the axis are sorted on their own and
merged in pairs, which keeps the work near n log k; values are gathered afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.dtypes import BOOL, I64
from tilewright.core.index import Ix, imax
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Local, binary, const, from_index, select
from tilewright.loop.ir import BinaryOp, Expr, Kernel
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft, parallelize_outer, volume
from tilewright.schedule.trace import Trace

#: A list of k and n elements are worth merging from this many (average) comparisons on.
MERGE_FROM = 1 << 17
#: Elements that are sorted by insertion before the merging begins.
BLOCK = 16


def _better(attrs: Attrs) -> BinaryOp:
    return "gt" if attrs["largest"] else "lt"


def _order(x: Array, largest: bool) -> Array:
    """Indices along the last axis, best first, stable."""
    if not largest:
        return np.argsort(x, axis=-1, kind="stable")
    n = x.shape[-1]
    return n - 1 - np.flip(np.argsort(np.flip(x, -1), axis=-1, kind="stable"), -1)


# ---------------------------------------------------------------- topk


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    axis, k = integer(attrs, "axis"), integer(attrs, "k")
    if not 0 <= axis < x.rank or not 0 <= k <= x.shape[axis] or x.dtype is BOOL:
        raise ModelError(f"the {k} best of {x} along axis {axis} are not defined: repair the model")
    return [TensorType(I64, (*x.shape[:axis], k, *x.shape[axis + 1 :]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, axis = np.asarray(inputs[0]), integer(attrs, "axis")
    y = _order(np.moveaxis(x, axis, -1), bool(attrs["largest"]))[..., : integer(attrs, "k")]
    return [np.ascontiguousarray(np.moveaxis(y, -1, axis)).astype(np.int64)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    axis, count = integer(attrs, "axis"), integer(attrs, "k")
    better = _better(attrs)
    index: list[Ix] = [Ix(0)] * len(x.shape)
    with ExitStack() as outer:
        for d, n in enumerate(x.shape):
            if d != axis:
                index[d] = outer.enter_context(k.loop(f"o{d}", n))
        best, at = k.local("best", x.dtype, (count,)), k.local("at", I64, (count,))
        with k.loop("s", count) as s:
            k.set(best, const(0, x.dtype), s)
            k.set(at, const(-1, I64), s)
        with k.loop("i", x.shape[axis]) as i:
            index[axis] = i
            value = k.let("value", x(*index))
            with k.when(_beats(value, best, at, Ix(count - 1), better)), k.loop("s", count) as back:
                _shift(k, value, i, best, at, count - 1 - back, better)
        with k.loop("s", count) as s:
            index[axis] = s
            k.emit(tuple(index), at(s))


def _beats(value: Expr, best: Local, at: Local, s: Ix, better: BinaryOp) -> Expr:
    """Whether `value` comes before entry s of the list; entries that are still empty are beaten."""
    empty = binary("lt", at(s), const(0, I64))
    return binary("or", empty, binary(better, value, best(s)))


def _shift(
    k: KernelBuilder, value: Expr, i: Ix, best: Local, at: Local, s: Ix, better: BinaryOp
) -> None:
    """Entry s takes its neighbour's place in the list, the new element, or stays, from the back on."""
    (s,) = k.simplify((s,))
    here = k.let("here", _beats(value, best, at, s, better))
    first = binary("eq", from_index(s, I64), const(0, I64))
    safe = imax(s - 1, 0)
    beaten = _beats(value, best, at, safe, better)
    moves = k.let("moves", select(first, const(False, BOOL), beaten))
    old = k.let("old", select(moves, best(safe), select(here, value, best(s))))
    where = k.let("where", select(moves, at(safe), select(here, from_index(i, I64), at(s))))
    k.set(best, old, s)
    k.set(at, where, s)


def _schedule(kernel: Kernel, target: Target) -> Trace:
    d = Draft(kernel)
    parallelize_outer(d, volume(kernel))
    return d.trace


# ---------------------------------------------------------------- merge_topk


def _merge_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, candidates = types
    assert x is not None and candidates is not None
    k = integer(attrs, "k")
    fits = x.rank >= 1 and candidates.rank == x.rank + 1 and candidates.dtype is I64
    if not fits or candidates.shape[:-2] != x.shape[:-1] or not 1 <= k <= 2 * candidates.shape[-1]:
        raise ModelError(f"`merge_topk` of {x} and candidates {candidates}: the shapes do not fit")
    runs = -(-candidates.shape[-2] // 2)
    return [TensorType(I64, (*x.shape[:-1], runs, k))]


def _merge_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    """Candidates of -1 are none; they come last."""
    x, candidates = (np.asarray(i) for i in inputs)
    k, largest = integer(attrs, "k"), bool(attrs["largest"])
    runs, width = candidates.shape[-2:]
    flat = candidates.reshape(-1, runs, width)
    rows = x.reshape(-1, x.shape[-1])
    y = np.full((len(rows), -(-runs // 2), k), -1, np.int64)
    for r, row in enumerate(rows):
        for p in range(y.shape[1]):
            ids = flat[r, 2 * p : 2 * p + 2].reshape(-1)
            ids = ids[ids >= 0]
            picked = ids[_order(row[ids], largest)][:k]
            y[r, p, : len(picked)] = picked
    return [y.reshape(*x.shape[:-1], -(-runs // 2), k)]


def _merge_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, candidates = k.inputs[0], k.inputs[1]
    assert x is not None and candidates is not None
    count, n = integer(attrs, "k"), x.shape[-1]
    runs, width = candidates.shape[-2:]
    better = _better(attrs)
    with ExitStack() as outer:
        row = [outer.enter_context(k.loop(f"o{d}", m)) for d, m in enumerate(x.shape[:-1])]
        pair = outer.enter_context(k.loop("p", runs // 2))
        left, right = k.local("left", I64), k.local("right", I64)
        k.set(left, const(0, I64))
        k.set(right, const(0, I64))
        with k.loop("s", count) as s:
            sides = [
                _candidate(k, x, candidates, (*row, pair * 2 + side), at, width, n)
                for side, at in enumerate((left, right))
            ]
            (a, value_a, none_a), (b, value_b, none_b) = sides
            none = binary("or", none_a, binary(better, value_b, value_a))
            takes = k.let("takes", binary("and", binary("eq", none_b, const(False, BOOL)), none))
            k.emit((*row, pair, s), select(takes, b, a))
            step = select(takes, const(1, I64), const(0, I64))
            k.set(right, binary("add", right(), step))
            k.set(left, binary("add", left(), binary("sub", const(1, I64), step)))
    if runs % 2:  # the last one has no partner
        with ExitStack() as outer:
            row = [outer.enter_context(k.loop(f"o{d}", m)) for d, m in enumerate(x.shape[:-1])]
            last = outer.enter_context(k.loop("s", min(count, width)))
            k.emit((*row, Ix(runs // 2), last), candidates(*row, runs - 1, last))
        for rest in range(width, count):
            with ExitStack() as outer:
                row = [outer.enter_context(k.loop(f"o{d}", m)) for d, m in enumerate(x.shape[:-1])]
                k.emit((*row, Ix(runs // 2), Ix(rest)), const(-1, I64))


def _candidate(
    k: KernelBuilder, x: Any, candidates: Any, run: tuple[Ix, ...], at: Local, width: int, n: int
) -> tuple[Expr, Expr, Expr]:
    """The next candidate of a run: its index in x, its value, and whether there is none left."""
    place = k.index(at(), width, wrap=False)
    found = k.let("found", candidates(*run, place))
    over = binary("ge", at(), const(width, I64))
    none = k.let("none", binary("or", over, binary("lt", found, const(0, I64))))
    value = k.let("value", x(*run[:-1], k.index(found, n, wrap=False)))
    return k.let("id", select(none, const(-1, I64), found)), value, none


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    """TopK: k is an attribute before opset 10 and an input from then on; always sorted."""
    t = node.type(0)
    if node.opset < 10:
        k = int(node.attr("k"))
    else:
        given = node.need_const(1, "the number of elements to find")
        if given.size != 1:
            raise node.fail(f"k has {given.size} elements, it must have one: repair the model")
        k = int(given.reshape(-1)[0])
    axis = axis_of(node.attr("axis", -1), t.rank)
    if not 0 <= k <= t.shape[axis]:
        raise node.fail(f"the {k} best of {t} along axis {axis} do not exist: repair the model")
    indices = _best(node, axis, k, bool(node.attr("largest", 1)))
    values = node.add("gather_elements", [node.inputs[0], indices], {"axis": axis})
    return [*values, indices]


def _best(node: ImportNode, axis: int, k: int, largest: bool) -> str:
    """The indices of the k best, by insertion or by merging."""
    x, t = node.inputs[0], node.type(0)
    n = t.shape[axis]
    attrs: dict[str, Any] = {"largest": largest}
    if k * min(n, 4 * k) < MERGE_FROM or n <= 2 * BLOCK:
        return node.add("topk", [x], {**attrs, "axis": axis, "k": k})[0]
    perm = (*(d for d in range(t.rank) if d != axis), axis)
    (rows,) = node.add("transpose", [x], {"perm": perm})
    lead = tuple(t.shape[d] for d in perm[:-1])
    blocks, rest = divmod(n, BLOCK)
    whole = _head(node, rows, blocks * BLOCK)
    (cut,) = node.add("reshape", [whole], {"shape": (*lead, blocks, BLOCK)})
    (runs,) = node.add("topk", [cut], {**attrs, "axis": len(lead) + 1, "k": BLOCK})
    node.reserve(blocks)
    base = node.constant(np.arange(blocks, dtype=np.int64)[:, None] * BLOCK, "base")
    (runs,) = node.add("add", [runs, base])
    if rest:  # a last, shorter block
        tail = _slice(node, rows, blocks * BLOCK, n)
        (last,) = node.add("topk", [tail], {**attrs, "axis": len(lead), "k": rest})
        shift = node.constant(np.asarray(blocks * BLOCK, np.int64), "base")
        (last,) = node.add("add", [last, shift])
        (last,) = node.add("reshape", [last], {"shape": (*lead, 1, rest)})
        before, after = (0,) * (len(lead) + 2), (*(0,) * (len(lead) + 1), BLOCK - rest)
        pads = {"before": before, "after": after, "mode": "constant", "value": -1.0}
        (last,) = node.add("pad", [last], pads)
        (runs,) = node.add("concat", [runs, last], {"axis": len(lead)})
    while node.type_of(runs).shape[-2] > 1:
        width = min(k, 2 * node.type_of(runs).shape[-1])
        (runs,) = node.add("merge_topk", [rows, runs], {**attrs, "k": width})
    (flat,) = node.add("reshape", [runs], {"shape": (*lead, node.type_of(runs).shape[-1])})
    back = tuple(int(d) for d in np.argsort(perm))
    return node.add("transpose", [_head(node, flat, k)], {"perm": back})[0]


def _head(node: ImportNode, x: str, n: int) -> str:
    return _slice(node, x, 0, n)


def _slice(node: ImportNode, x: str, start: int, end: int) -> str:
    """Elements start .. end - 1 along the last axis."""
    shape = node.type_of(x).shape
    if (start, end) == (0, shape[-1]):
        return x
    zeros = (0,) * (len(shape) - 1)
    attrs = {
        "starts": (*zeros, start), "ends": (*shape[:-1], end), "steps": (1,) * len(shape)
    }  # fmt: skip
    return node.add("slice", [x], attrs)[0]


# ---------------------------------------------------------------- samples


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, axis, k in (((17,), 0, 5), ((3, 20), 1, 1), ((4, 9, 5), 1, 9), ((2, 6), 0, 2)):
        for largest in (True, False):
            attrs: Attrs = {"axis": axis, "k": k, "largest": largest}
            yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)
            yield Sample((rng.integers(-3, 4, shape).astype(np.int32),), attrs)
    low = np.array([0, 0, 255, 3], np.uint8)
    yield Sample((low,), {"axis": 0, "k": 3, "largest": True})
    infinite = np.array([-np.inf, 1, -np.inf, np.inf], np.float32)
    yield Sample((infinite,), {"axis": 0, "k": 4, "largest": True})


def _merge_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for lead, n, width, k in (((), 24, 4, 8), ((2,), 20, 4, 5), ((2, 3), 12, 4, 4)):
        x = rng.integers(-9, 10, (*lead, n)).astype(np.float32)
        for largest in (True, False):
            cut = x.reshape(*lead, n // width, width)
            runs = _order(cut, largest) + np.arange(n // width)[:, None] * width
            yield Sample((x, runs.astype(np.int64)), {"k": k, "largest": largest})
    part = np.array([[2, 0, 1, -1], [4, -1, -1, -1], [6, 5, -1, -1]], np.int64)
    yield Sample((np.array([2, 1, 3, 9, 2, 7, 8], np.float32), part), {"k": 6, "largest": True})


OPERATORS = [
    Operator(
        name="topk", trait="opaque", infer=_infer, reference=_reference,
        attrs={"axis": int, "k": int, "largest": bool}, lower=_lower, schedule=_schedule,
        samples=_samples, onnx={"TopK": _import},
        doc="indices of the k largest or smallest elements along `axis`, best first",
    ),
    Operator(
        name="merge_topk", trait="opaque", infer=_merge_infer, reference=_merge_reference,
        attrs={"k": int, "largest": bool}, lower=_merge_lower, schedule=_schedule,
        samples=_merge_samples, doc="the k best of two sorted lists of candidates each",
    ),
]  # fmt: skip
