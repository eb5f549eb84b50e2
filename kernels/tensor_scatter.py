"""New entries written into a cache, for each sequence at a place of its own.

y[b, .., l, ..] = update[b, .., s, ..] where l = at[b] + s (circular: modulo the cache's length) for some s,
else cache[b, .., l, ..]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    cast,
    const,
    from_index,
    select,
    sub,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    cache, update, at = types
    assert cache is not None and update is not None and at is not None
    axis = integer(attrs, "axis")
    fits = 0 < axis < cache.rank == update.rank and cache.dtype is update.dtype
    same = [
        n == m for d, (n, m) in enumerate(zip(cache.shape, update.shape, strict=False)) if d != axis
    ]
    if not fits or not all(same) or not 0 < update.shape[axis] <= cache.shape[axis]:
        raise ModelError(
            f"`tensor_scatter` of {update} into {cache} along axis {axis} is not defined"
        )
    if not at.dtype.is_integer or at.shape != cache.shape[:1]:
        raise ModelError(f"`tensor_scatter` into {cache}: {at} is not one index per sequence")
    return [cache]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    cache, update, axis = np.array(inputs[0]), np.asarray(inputs[1]), integer(attrs, "axis")
    length = cache.shape[axis]
    for b, first in enumerate(inputs[2]):
        for s in range(update.shape[axis]):
            to = int(first) + s
            to = to % length if attrs["circular"] else to
            if 0 <= to < length:
                np.moveaxis(cache[b], axis - 1, 0)[to] = np.moveaxis(update[b], axis - 1, 0)[s]
    return [cache]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    cache, update, at = x
    assert cache is not None and update is not None and at is not None
    axis = integer(attrs, "axis")
    length, count = const(cache.shape[axis], I64), const(update.shape[axis], I64)
    zero = const(0, I64)
    s: Expr = sub(from_index(index[axis], I64), cast(at(index[0]), I64))
    if attrs["circular"]:
        rest = k.let("rest", binary("mod", s, length))
        s = select(binary("lt", rest, zero), add(rest, length), rest)
    s = k.let("s", s)
    written = k.let("written", binary("and", binary("ge", s, zero), binary("lt", s, count)))
    place = k.index(s, update.shape[axis], wrap=False)
    return select(written, update(*index[:axis], place, *index[axis + 1 :]), cache(*index))


def _import(node: ImportNode) -> Sequence[str]:
    t = node.type(0)
    at = node.inputs[2] if node.has(2) else node.constant(np.zeros(t.shape[0], np.int64), "start")
    attrs = {
        "axis": axis_of(node.attr("axis", -2), t.rank),
        "circular": str(node.attr("mode", "linear")) == "circular",
    }
    return node.add("tensor_scatter", [node.inputs[0], node.inputs[1], at], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, count, axis in (((2, 3, 5, 4), 2, 2), ((3, 6, 2), 3, 1), ((1, 4), 1, 1)):
        for circular in (False, True):
            cache = rng.standard_normal(shape).astype(np.float32)
            new = (*shape[:axis], count, *shape[axis + 1 :])
            update = rng.standard_normal(new).astype(np.float32)
            at = rng.integers(0, shape[axis] if circular else shape[axis] - count + 1, shape[0])
            yield Sample((cache, update, at), {"axis": axis, "circular": circular})


OPERATORS = [
    Operator(
        name="tensor_scatter",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"axis": int, "circular": bool},
        compute=_compute,
        samples=_samples,
        onnx={"TensorScatter": _import},
        doc="new entries written into a cache, for each sequence at a place of its own",
    )
]
