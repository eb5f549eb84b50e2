"""Positions of what is not zero, and classes of equal rows: results whose size depends on the data.

nonzero  y[:, j] = indices of the j-th element of x that is not 0, in row-major order; then -1
unique   y[i] = class of row i of x: rows are equal iff their classes are. Classes count from 0 in the order
         of first rows, or (`sorted`) of the rows as tuples

Shapes are those of the largest result; what the model may use of it is counted at run time (see
`ImportNode.counted`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.core.dtypes import BOOL, I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, binary, const, from_index, select
from tilewright.loop.ir import Expr, Kernel
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace


def _serial(kernel: Kernel, target: Target) -> Trace:
    """Every element's place depends on those before it."""
    return ()


# ---------------------------------------------------------------- nonzero


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    return [TensorType(I64, (x.rank, x.size))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    y = np.full((x.ndim, x.size), -1, np.int64)
    found = np.argwhere(x).T if x.ndim else y
    y[:, : found.shape[1]] = found
    return [y]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    with k.loop("d", k.out_shape[0]) as d, k.loop("j", k.out_shape[1]) as j:
        k.emit((d, j), const(-1, I64))
    count = k.local("count", I64)
    k.set(count, const(0, I64))
    with ExitStack() as nest:
        index = [nest.enter_context(k.loop(f"i{d}", n)) for d, n in enumerate(x.shape)]
        value = x(*index)
        nest.enter_context(k.when(binary("ne", value, const(0, value.dtype))))
        at = k.index(count(), k.out_shape[1], wrap=False)
        for d, i in enumerate(index):
            k.emit((d, at), from_index(i, I64))
        k.set(count, add(count(), const(1, I64)))


# ---------------------------------------------------------------- unique


def _unique_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    if x.rank != 2:
        raise ModelError(f"`unique` of {x}: rows of a matrix are wanted")
    return [TensorType(I64, (x.shape[0],))]


def _unique_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    rows = [tuple(r) for r in x.tolist()]
    known = dict.fromkeys(rows)
    order = sorted(known) if attrs["sorted"] else list(known)
    number = {row: i for i, row in enumerate(order)}
    return [np.array([number[r] for r in rows], np.int64)]


def _unique_lower(k: KernelBuilder, attrs: Attrs) -> None:
    """Every row is compared with those before it, and, to sort, with the first of every class."""
    x = k.inputs[0]
    assert x is not None
    rows = x.shape[0]
    first = k.local("first", BOOL, (rows,))
    classes = k.local("classes", I64)
    k.set(classes, const(0, I64))
    with k.loop("i", rows) as i:
        k.set(first, const(True, BOOL), i)
        with k.loop("j", i) as j, k.when(_same(k, x, i, j)):
            k.set(first, const(False, BOOL), i)
    with k.loop("i", rows) as i:
        place = k.local("place", I64)
        k.set(place, const(0, I64))
        if attrs["sorted"]:
            with k.loop("j", rows) as j:
                counts = binary("and", first(j), _less(k, x, j, i))
                k.set(place, add(place(), select(counts, const(1, I64), const(0, I64))))
        else:
            k.set(place, classes())
            with k.loop("j", i) as j, k.when(_same(k, x, i, j)):
                assert k.result is not None
                k.set(place, k.result(j))
            k.set(classes, add(classes(), select(first(i), const(1, I64), const(0, I64))))
        k.emit((i,), place())


def _same(k: KernelBuilder, x: Reader, i: Ix, j: Ix) -> Expr:
    same = k.local("same", BOOL)
    k.set(same, const(True, BOOL))
    with k.loop("m", x.shape[1]) as m:
        k.set(same, binary("and", same(), binary("eq", x(i, m), x(j, m))))
    return same()


def _less(k: KernelBuilder, x: Reader, i: Ix, j: Ix) -> Expr:
    """Whether row i comes before row j: the first element that differs decides."""
    less, open_ = k.local("less", BOOL), k.local("open", BOOL)
    k.set(less, const(False, BOOL))
    k.set(open_, const(True, BOOL))
    with k.loop("m", x.shape[1]) as m:
        here = binary("and", open_(), binary("lt", x(i, m), x(j, m)))
        k.set(less, binary("or", less(), here))
        k.set(open_, binary("and", open_(), binary("eq", x(i, m), x(j, m))))
    return less()


# ---------------------------------------------------------------- importers


def _import(node: ImportNode) -> Sequence[str]:
    x = node.inputs[0]
    (found,) = node.add("nonzero", [x])
    return [node.counted(found, _count_nonzero(node, x), 1)]


def _count_nonzero(node: ImportNode, x: str) -> str:
    t = node.type_of(x)
    (flags,) = node.add("cast", [x], {"to": "bool"})
    (ones,) = node.add("cast", [flags], {"to": "i64"})
    axes = tuple(range(t.rank))
    return node.add("reduce_sum", [ones], {"axes": axes, "keepdims": False})[0] if axes else ones


def _import_compress(node: ImportNode) -> Sequence[str]:
    """Compress: the slices along `axis` (of the flattened tensor without) whose condition holds."""
    x, t, condition = node.inputs[0], node.type(0), node.inputs[1]
    if node.attr("axis") is None:
        (x,) = node.add("reshape", [x], {"shape": (t.size,)})
        t, axis = node.type_of(x), 0
    else:
        axis = axis_of(node.attr("axis"), t.rank)
    if node.type(1).rank != 1:
        raise node.fail(f"the condition {node.type(1)} is not a vector: repair the model")
    most = min(node.type(1).shape[0], t.shape[axis])
    (condition,) = _first(node, condition, most, 0)
    (found,) = node.add("nonzero", [condition])
    (found,) = node.add("reshape", [found], {"shape": (most,)})
    count = _count_nonzero(node, condition)
    picked = _picked(node, x, found, axis)
    return [node.counted(picked, count, axis)]


def _picked(node: ImportNode, x: str, at: str, axis: int) -> str:
    """Slices of x by indices, of which -1 gives zeros."""
    t = node.type_of(x)
    (y,) = node.add("gather", [x, at], {"axis": axis})
    (here,) = node.add("ge", [at, node.constant(np.asarray(0, np.int64), "zero")])
    shape = (node.type_of(at).size, *[1] * (t.rank - 1 - axis))
    (here,) = node.add("reshape", [here], {"shape": shape})
    zero = node.constant(np.zeros((), t.dtype.numpy), "zero")
    return node.add("where", [here, y, zero])[0]


def _first(node: ImportNode, x: str, n: int, axis: int) -> Sequence[str]:
    """The first n slices."""
    shape = node.type_of(x).shape
    if shape[axis] == n:
        return [x]
    ends = (*shape[:axis], n, *shape[axis + 1 :])
    attrs = {"starts": (0,) * len(shape), "ends": ends, "steps": (1,) * len(shape)}
    return node.add("slice", [x], attrs)


def _import_unique(node: ImportNode) -> Sequence[str]:
    """Unique: (values, first indices, inverse, counts); classes first, everything else follows from them."""
    x, t = node.inputs[0], node.type(0)
    axis = None if node.attr("axis") is None else axis_of(node.attr("axis"), t.rank)
    n = t.size if axis is None else t.shape[axis]
    if n == 0:
        raise node.fail(f"Unique of {t} has nothing to compare: leave it out")
    node.reserve(n)
    if axis is None:
        (x,) = node.add("reshape", [x], {"shape": (n,)})
        axis, t = 0, node.type_of(x)
    perm = (axis, *(d for d in range(t.rank) if d != axis))
    (rows,) = node.add("transpose", [x], {"perm": perm})
    (rows,) = node.add("reshape", [rows], {"shape": (n, t.size // n)})
    (classes,) = node.add("unique", [rows], {"sorted": bool(node.attr("sorted", 1))})
    one = node.constant(np.asarray(1, np.int64), "one")
    whole = {"axes": (0,), "keepdims": False}
    (count,) = node.add("add", [*node.add("reduce_max", [classes], whole), one])
    place = node.constant(np.arange(n, dtype=np.int64), "place")
    (used,) = node.add("lt", [place, count])
    empty = node.constant(np.full(n, n, np.int64), "empty")
    least = {"axis": 0, "reduction": "min"}
    (first,) = node.add("scatter_elements", [empty, classes, place], least)
    (first,) = node.add("where", [used, first, node.constant(np.asarray(-1, np.int64), "none")])
    none, ones = (node.constant(np.full(n, v, np.int64), "sum") for v in (0, 1))
    total = {"axis": 0, "reduction": "add"}
    (counts,) = node.add("scatter_elements", [none, classes, ones], total)
    values = _picked(node, x, first, axis)
    return [
        node.counted(values, count, axis), node.counted(first, count, 0), classes,
        node.counted(counts, count, 0),
    ]  # fmt: skip


# ---------------------------------------------------------------- samples


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape in ((7,), (3, 5), (2, 3, 4)):
        x = rng.integers(-1, 2, shape)
        yield Sample((x.astype(np.float32),))
        yield Sample((x > 0,))
    yield Sample((np.zeros((2, 3), np.int64),))


def _unique_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for rows, columns in ((9, 1), (8, 3), (1, 2)):
        x = rng.integers(0, 3, (rows, columns))
        for ordered in (True, False):
            yield Sample((x.astype(np.float32),), {"sorted": ordered})
            yield Sample((x.astype(np.uint8),), {"sorted": ordered})


OPERATORS = [
    Operator(
        name="nonzero", trait="opaque", infer=_infer, reference=_reference, lower=_lower,
        schedule=_serial, samples=_samples, alone=True,
        onnx={"NonZero": _import, "Compress": _import_compress},
        doc="indices of elements that are not zero, then -1",
    ),
    Operator(
        name="unique", trait="opaque", infer=_unique_infer, reference=_unique_reference,
        attrs={"sorted": bool}, lower=_unique_lower, schedule=_serial, samples=_unique_samples,
        alone=True, onnx={"Unique": _import_unique}, doc="classes of equal rows",
    ),
]  # fmt: skip
