"""Elementwise choice: y[i] = a[i] where cond[i] holds, else b[i]; all three broadcast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import choice
from tilewright.loop.builder import KernelBuilder, Reader, select
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    cond, a, b = types
    assert cond is not None and a is not None and b is not None
    if cond.dtype is not BOOL or a.dtype is not b.dtype:
        raise ModelError(f"`where` wants (bool, T, T), got {cond}, {a}, {b}: cast the operands")
    try:
        return [TensorType(a.dtype, np.broadcast_shapes(cond.shape, a.shape, b.shape))]
    except ValueError:
        raise ModelError(f"`where`: {cond}, {a}, {b} do not broadcast: repair the model") from None


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.asarray(np.where(inputs[0], inputs[1], inputs[2]))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    cond, a, b = x
    assert cond is not None and a is not None and b is not None
    return select(cond.broadcast(index), a.broadcast(index), b.broadcast(index))


#: Of OneHot: its positions are a constant.
_MOST_CLASSES = 1 << 22


def _one_hot(node: ImportNode) -> Sequence[str]:
    """`on` where the position along the new axis is the index, which may count from the end, else `off`."""
    t = node.type(0)
    depth = int(node.need_const(1, "the depth").reshape(-1)[0])
    if not 0 <= depth <= _MOST_CLASSES:
        raise node.fail(f"the depth is {depth}: 0 to {_MOST_CLASSES} are supported")
    axis = axis_of(node.attr("axis", -1), t.rank + 1)
    (index,) = node.add("cast", [node.inputs[0]], {"to": "i64"})
    zero, end = (node.constant(np.asarray(n, np.int64), "bound") for n in (0, depth))
    (negative,) = node.add("lt", [index, zero])
    (wrapped,) = node.add("add", [index, end])
    (index,) = node.add("where", [negative, wrapped, index])
    (index,) = node.add("reshape", [index], {"shape": (*t.shape[:axis], 1, *t.shape[axis:])})
    along = np.arange(depth).reshape([-1 if d == axis else 1 for d in range(t.rank + 1)])
    (hit,) = node.add("eq", [index, node.constant(along, "along")])
    values: list[str] = []
    for i in (0, 1):
        part = {"starts": (i,), "ends": (i + 1,), "steps": (1,)}
        (value,) = node.add("slice", [node.inputs[2]], part)
        values += node.add("reshape", [value], {"shape": ()})
    return node.add("where", [hit, values[1], values[0]])


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for c, a, b in (
        ((17,), (17,), ()), ((3, 1), (3, 20), (20,)), ((), (5,), (1,)), ((), (), ()),
        ((3, 1, 7), (2, 1, 16, 1), (1, 1, 7)), ((33,), (1,), (1, 33)), ((2, 3, 1, 1, 2), (2,), (4, 1)),
    ):  # fmt: skip
        yield Sample(
            (
                rng.integers(0, 2, c).astype(np.bool_),
                rng.standard_normal(a).astype(np.float32),
                rng.standard_normal(b).astype(np.float32),
            )
        )
    cond = np.array([True, False] * 4)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 2.0], np.float32)
    yield Sample((cond, odd, odd[::-1].copy()))
    for kind in (np.int64, np.uint8, np.bool_):
        a, b = (rng.integers(0, 2, (3, 8)).astype(kind) for _ in range(2))
        yield Sample((cond, a, b))


OPERATORS = [
    Operator(
        name="where",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        compute=_compute,
        quantized=partial(choice, first=1),
        samples=_samples,
        onnx={"Where": lambda node: node.add("where", node.inputs), "OneHot": _one_hot},
        doc="y[i] = a[i] if cond[i] else b[i]",
    )
]
