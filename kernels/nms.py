"""Non-maximum suppression: boxes in the order of their scores, but for those that overlap a better one.

y[j] = (batch, class, box) of the j-th box that stays, over batches, then classes, then falling scores; the
rest is -1. A box stays if its score exceeds the threshold and its overlap (intersection over union) with
every box of its class that stays is at most `iou`; equal scores go by index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.dtypes import BOOL, F32, I32, I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Local,
    Reader,
    add,
    binary,
    cast,
    const,
    div,
    from_index,
    maximum,
    minimum,
    mul,
    select,
    sub,
)
from tilewright.loop.ir import Expr, Kernel
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    boxes, scores = types
    assert boxes is not None and scores is not None
    fits = boxes.rank == scores.rank == 3 and boxes.dtype is scores.dtype is F32
    if not fits or boxes.shape[2] != 4 or boxes.shape[:2] != (scores.shape[0], scores.shape[2]):
        raise ModelError(f"`nms` of boxes {boxes} with scores {scores}: the shapes do not fit")
    most = integer(attrs, "most")
    if not 0 <= most <= boxes.shape[1]:
        raise ModelError(f"`nms`: {most} boxes per class of {boxes.shape[1]}")
    return [TensorType(I64, (scores.shape[0] * scores.shape[1] * most, 3))]


def _edges(box: Sequence[Any], centered: bool, low: Any, high: Any) -> tuple[Any, ...]:
    """(top, left, bottom, right) of a box given by two corners or by its centre and size."""
    a, b, c, d = box
    if centered:  # x, y, width, height
        half_w, half_h = c * np.float32(0.5), d * np.float32(0.5)
        return b - half_h, a - half_w, b + half_h, a + half_w
    return low(a, c), low(b, d), high(a, c), high(b, d)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    boxes, scores = (np.asarray(i) for i in inputs)
    found: list[tuple[int, int, int]] = []
    for b in range(scores.shape[0]):
        edges = np.stack(
            _edges(tuple(boxes[b].T), bool(attrs["centered"]), np.minimum, np.maximum), axis=1
        )
        for c in range(scores.shape[1]):
            order = np.argsort(-scores[b, c], kind="stable")
            left = order[scores[b, c, order] > np.float32(attrs["score"])]  # type: ignore[arg-type]
            kept: list[int] = []
            while left.size and len(kept) < integer(attrs, "most"):
                best, left = int(left[0]), left[1:]
                kept.append(best)
                left = left[~(_overlaps_all(edges[best], edges[left]) > attrs["iou"])]
            found += [(b, c, i) for i in kept]
    y = np.full(_infer([_type(boxes), _type(scores)], attrs)[0].shape, -1, np.int64)
    y[: len(found)] = np.array(found, np.int64).reshape(-1, 3)
    return [y]


def _type(a: Array) -> TensorType:
    return TensorType(F32, a.shape)


def _overlaps_all(a: Array, others: Array) -> Array:
    """Intersection over union of box a with each other one, in float32; 0 where either is empty."""
    b = others.reshape(-1, 4).T
    height = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    width = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    mine, theirs = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    inner = height * width
    proper = (width > 0) & (height > 0) & (mine > 0) & (theirs > 0)
    with np.errstate(all="ignore"):
        return np.where(proper, inner / (mine + theirs - inner), np.float32(0)).astype(np.float32)


# ---------------------------------------------------------------- lowering


@dataclass(frozen=True, slots=True)
class _Heap:
    """Candidates of one class: the first `count` numbers of boxes are a heap, whose root is the best."""

    scores: Reader
    row: tuple[Ix, Ix]
    places: Local
    count: Local
    size: int

    def key(self, k: KernelBuilder, a: Ix) -> Expr:
        """The score of entry a."""
        return self.scores(*self.row, k.index(self.places(a), self.size, wrap=False))

    def better(self, k: KernelBuilder, a: Ix, key: Expr, place: Expr) -> Expr:
        """Whether entry a comes before one with this key and place: by score, then by index."""
        mine = k.let("mine", self.key(k, a))
        earlier = binary("lt", self.places(a), place)
        tie = binary("and", binary("eq", mine, key), earlier)
        return k.let("better", binary("or", binary("gt", mine, key), tie))

    def sift(self, k: KernelBuilder, start: Ix) -> None:
        """Let the entry at `start` sink below whatever is better."""
        hole = k.local("hole", I64)
        key, place = k.let("key", self.key(k, start)), k.let("place", self.places(start))
        k.set(hole, from_index(start, I64))
        with k.loop("level", self.size.bit_length()):
            child = k.let("child", add(add(hole(), hole()), const(1, I64)))
            with k.when(binary("lt", child, self.count())):
                # without a right child, the last entry is compared with itself and does not win
                end = sub(self.count(), const(1, I64))
                right_child = minimum(add(child, const(1, I64)), end)
                left = k.index(child, self.size, wrap=False)
                right = k.index(right_child, self.size, wrap=False)
                wins = self.better(k, right, self.key(k, left), self.places(left))
                picked = select(wins, from_index(right, I64), child)
                best = k.index(k.let("picked", picked), self.size, wrap=False)
                with k.when(self.better(k, best, key, place)):
                    self.put(k, self.places(best), hole())
                    k.set(hole, from_index(best, I64))
        self.put(k, place, hole())

    def put(self, k: KernelBuilder, place: Expr, at: Expr) -> None:
        k.set(self.places, place, k.index(at, self.size, wrap=False))


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    """Candidates leave a heap in order; one stays unless it overlaps one of its class that did.

    The heap is the only scratch, four bytes for each box: scores and what stays are read where they are."""
    boxes, scores = k.inputs[0], k.inputs[1]
    assert boxes is not None and scores is not None
    batches, classes, n = scores.shape
    most = integer(attrs, "most")
    with k.loop("j", k.out_shape[0]) as j, k.loop("part", 3) as part:
        k.emit((j, part), const(-1, I64))
    if 0 in (*k.out_shape, n):
        return
    total, kept = k.local("total", I64), k.local("kept", I64)
    places, count = k.local("places", I32, (n,)), k.local("count", I64)
    k.set(total, const(0, I64))
    with k.loop("b", batches) as b, k.loop("c", classes) as c:
        k.set(kept, const(0, I64))
        heap = _Heap(scores, (b, c), places, count, n)
        _fill(k, heap, attrs)
        more = binary("gt", heap.count(), const(0, I64))
        room = binary("lt", kept(), const(most, I64))
        with k.loop("turn", n), k.when(binary("and", more, room)):
            place = k.let("chosen", heap.places(0))
            box = _box(k, boxes, b, k.index(place, n, wrap=False), attrs)
            k.set(heap.count, sub(heap.count(), const(1, I64)))
            last = k.index(heap.count(), n, wrap=False)
            heap.put(k, heap.places(last), const(0, I64))
            heap.sift(k, Ix(0))
            over = k.local("over", BOOL)
            k.set(over, const(False, BOOL))
            with k.loop("i", k.index(kept(), most + 1, wrap=False)) as i:
                assert k.result is not None
                mine = k.index(
                    add(sub(total(), kept()), from_index(i, I64)), k.out_shape[0], wrap=False
                )
                other = _box(k, boxes, b, k.index(k.result(mine, 2), n, wrap=False), attrs)
                k.set(over, binary("or", over(), _overlaps(k, other, box, attrs)))
            with k.when(binary("eq", over(), const(False, BOOL))):
                k.set(kept, add(kept(), const(1, I64)))
                row = k.index(total(), k.out_shape[0], wrap=False)
                for d, v in enumerate((from_index(b, I64), from_index(c, I64), cast(place, I64))):
                    k.emit((row, d), v)
                k.set(total, add(total(), const(1, I64)))


def _fill(k: KernelBuilder, heap: _Heap, attrs: Attrs) -> None:
    """The heap of a class: what exceeds the threshold."""
    n = heap.size
    k.set(heap.count, const(0, I64))
    with k.loop("i", n) as i:
        score = k.let("score", heap.scores(*heap.row, i))
        with k.when(binary("gt", score, const(attrs["score"], F32))):  # type: ignore[arg-type]
            heap.put(k, from_index(i, I32), heap.count())
            k.set(heap.count, add(heap.count(), const(1, I64)))
    parents = k.let("parents", binary("shr", heap.count(), const(1, I64)))
    with k.loop("i", k.index(parents, n // 2 + 1, wrap=False)) as i:
        at = sub(sub(parents, const(1, I64)), from_index(i, I64))
        heap.sift(k, k.index(at, n, wrap=False))


def _box(k: KernelBuilder, boxes: Reader, b: Ix, i: Ix, attrs: Attrs) -> tuple[Expr, ...]:
    """Edges of a box and its area."""
    v = [k.let("v", boxes(b, i, d)) for d in range(4)]
    if attrs["centered"]:
        w, h = mul(v[2], const(0.5, F32)), mul(v[3], const(0.5, F32))
        edges: tuple[Expr, ...] = (sub(v[1], h), sub(v[0], w), add(v[1], h), add(v[0], w))
    else:
        edges = (
            minimum(v[0], v[2]), minimum(v[1], v[3]), maximum(v[0], v[2]), maximum(v[1], v[3])
        )  # fmt: skip
    top, left, bottom, right = (k.let("edge", e) for e in edges)
    area = k.let("area", mul(sub(bottom, top), sub(right, left)))
    return top, left, bottom, right, area


def _overlaps(k: KernelBuilder, a: tuple[Expr, ...], b: tuple[Expr, ...], attrs: Attrs) -> Expr:
    height = k.let("height", sub(minimum(a[2], b[2]), maximum(a[0], b[0])))
    width = k.let("width", sub(minimum(a[3], b[3]), maximum(a[1], b[1])))
    inner = k.let("inner", mul(height, width))
    union = sub(add(a[4], b[4]), inner)
    zero = const(0.0, F32)
    some = binary("and", binary("gt", height, zero), binary("gt", width, zero))
    sizes = binary("and", binary("gt", a[4], zero), binary("gt", b[4], zero))
    proper = binary("and", some, sizes)
    overlap = select(proper, div(inner, union), zero)
    return binary("gt", overlap, const(attrs["iou"], F32))  # type: ignore[arg-type]


def _schedule(kernel: Kernel, target: Target) -> Trace:
    """Which box stays depends on those before it."""
    return ()


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    """(boxes, scores, most per class?, overlap?, score?): three limits, each a scalar."""

    def limit(i: int, what: str, default: float) -> float:
        if not node.has(i):
            return default
        value = node.need_const(i, what)
        if value.size != 1:
            raise node.fail(f"{what} has {value.size} elements, it must have one: repair the model")
        return float(value.reshape(-1)[0])

    most = max(int(limit(2, "the number of boxes per class", 0)), 0)
    boxes, scores = node.type(0), node.type(1)
    attrs: Attrs = {
        "most": min(most, boxes.shape[1]),
        "iou": limit(3, "the overlap threshold", 0.0),
        "score": limit(4, "the score threshold", float("-inf")),
        "centered": bool(node.attr("center_point_box", 0)),
    }
    (y,) = node.add("nms", list(node.inputs[:2]), attrs)
    if scores.rank != 3 or 0 in node.type_of(y).shape:
        return [y]
    rows = node.type_of(y).shape[0]
    ends = {"starts": (0, 0), "ends": (rows, 1), "steps": (1, 1)}
    (used,) = node.add("ge", [*node.add("slice", [y], ends), node.constant(np.asarray(0), "zero")])
    (ones,) = node.add("cast", [used], {"to": "i64"})
    (count,) = node.add("reduce_sum", [ones], {"axes": (0, 1), "keepdims": False})
    return [node.counted(y, count, 0)]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for batches, classes, n, most in ((1, 1, 12, 5), (2, 3, 20, 4), (1, 2, 7, 7)):
        for centered in (False, True):
            corner = rng.random((batches, n, 2)) * 4
            size = rng.random((batches, n, 2)) * 2 + 0.1
            boxes = np.concatenate([corner, size if centered else corner + size], 2)
            scores = rng.random((batches, classes, n))
            scores[..., 1] = scores[..., 0]
            yield Sample(
                (boxes.astype(np.float32), scores.astype(np.float32)),
                {"most": most, "iou": 0.3, "score": 0.25, "centered": centered},
            )


OPERATORS = [
    Operator(
        name="nms", trait="opaque", infer=_infer, reference=_reference, lower=_lower,
        attrs={"most": int, "iou": (int, float), "score": (int, float), "centered": bool},
        schedule=_schedule, samples=_samples, alone=True, onnx={"NonMaxSuppression": _import},
        doc="(batch, class, box) of boxes that no better one overlaps, then -1",
    )
]  # fmt: skip
