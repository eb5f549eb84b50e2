"""Running sums and products along an axis.

y[.., i, ..] = combination of x[.., j, ..] over j <= i; `exclusive`: over j < i, beginning with the neutral
element; `reverse`: over j >= i (j > i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, binary, const
from tilewright.loop.ir import BinaryOp
from tilewright.registry import ImportNode, Operator, Sample

#: operator -> (combining op, NumPy's running form, neutral element, ONNX name)
_TABLE: dict[str, tuple[BinaryOp, Callable[..., Any], int, str]] = {
    "cumulative_sum": ("add", np.cumsum, 0, "CumSum"),
    "cumulative_prod": ("mul", np.cumprod, 1, "CumProd"),
}


def _infer(name: str, types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    if x.dtype is BOOL or not 0 <= integer(attrs, "axis") < x.rank:
        raise ModelError(
            f"`{name}` of {x} along axis {attrs['axis']}: numbers with that axis are wanted"
        )
    return [x]


def _reference(name: str, inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, axis = np.asarray(inputs[0]), integer(attrs, "axis")
    _, running, neutral, _ = _TABLE[name]
    wide = x.astype(np.float64) if x.dtype.kind not in "iu" else x
    wide = np.flip(wide, axis) if attrs["reverse"] else wide
    with np.errstate(all="ignore"):
        y = running(wide, axis=axis, dtype=wide.dtype)
    if attrs["exclusive"]:
        y = np.roll(y, 1, axis)
        y[(slice(None),) * axis + (slice(0, 1),)] = neutral
    y = np.flip(y, axis) if attrs["reverse"] else y
    return [np.ascontiguousarray(y).astype(x.dtype)]


def _lower(name: str, k: KernelBuilder, attrs: Attrs) -> None:
    x, axis = k.inputs[0], integer(attrs, "axis")
    assert x is not None
    combine, _, neutral, _ = _TABLE[name]
    index: list[Ix] = [Ix(0)] * len(x.shape)
    with ExitStack() as outer:
        for d, n in enumerate(x.shape):
            if d != axis:
                index[d] = outer.enter_context(k.loop(f"o{d}", n))
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(neutral, k.out_dtype))
        with k.loop("i", x.shape[axis]) as i:
            index[axis] = x.shape[axis] - 1 - i if attrs["reverse"] else i
            value = k.let("value", x(*index))
            if attrs["exclusive"]:
                k.emit(index, acc())
                k.set(acc, binary(combine, acc(), value))
            else:
                k.set(acc, binary(combine, acc(), value))
                k.emit(index, acc())


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].shape[integer(attrs, "axis")]


def _importer(name: str) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        axis = axis_of(node.need_const(1, "the axis").reshape(-1)[0], node.type(0).rank)
        attrs = {
            "axis": axis,
            "exclusive": bool(node.attr("exclusive", 0)),
            "reverse": bool(node.attr("reverse", 0)),
        }
        return node.add(name, [node.inputs[0]], attrs)

    return importer


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, axis in (((7,), 0), ((3, 5), 0), ((3, 5), 1), ((2, 9, 4), 1), ((1, 17), 1)):
        for exclusive in (False, True):
            for reverse in (False, True):
                attrs = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
                yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)
    yield Sample(
        (rng.integers(-3, 4, (2, 6)).astype(np.int32),),
        {"axis": 1, "exclusive": False, "reverse": False},
    )


OPERATORS = [
    Operator(
        name=name,
        trait="opaque",
        infer=partial(_infer, name),
        reference=partial(_reference, name),
        attrs={"axis": int, "exclusive": bool, "reverse": bool},
        lower=partial(_lower, name),
        samples=_samples,
        depth=_depth,
        onnx={_TABLE[name][3]: _importer(name)},
        doc=f"running {'sum' if name.endswith('sum') else 'product'} along `axis`",
    )
    for name in _TABLE
]
