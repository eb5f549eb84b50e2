"""Permutation of dims: y[i_0, .., i_n] with dim d of y being dim perm[d] of x. A view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample, StridedView


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    perm = ints(attrs, "perm")
    if sorted(perm) != list(range(x.rank)):
        raise ModelError(
            f"`transpose`: {list(perm)} is not a permutation of the dims of {x}: repair the model"
        )
    return [TensorType(x.dtype, tuple(x.shape[p] for p in perm))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.array(np.transpose(inputs[0], ints(attrs, "perm")), order="C")]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    source: list[Ix] = [Ix(0)] * len(index)
    for d, p in enumerate(ints(attrs, "perm")):
        source[p] = index[d]
    return x[0](*source)


def _view(
    t: TensorType, strides: tuple[int, ...], attrs: Attrs, out: TensorType
) -> StridedView | None:
    return StridedView(0, tuple(strides[p] for p in ints(attrs, "perm")))


def _import(node: ImportNode) -> Sequence[str]:
    rank = node.type(0).rank
    perm = tuple(int(p) for p in node.attr("perm", tuple(reversed(range(rank)))))
    return node.add("transpose", [node.inputs[0]], {"perm": perm})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, perm in (
        ((3, 17), (1, 0)), ((2, 3, 5, 7), (0, 2, 3, 1)), ((4, 1, 6), (2, 1, 0)), ((), ()),
        ((33,), (0,)), ((16, 33), (1, 0)), ((2, 3, 1, 4, 5), (4, 2, 0, 3, 1)), ((1, 7, 2), (0, 1, 2)),
    ):  # fmt: skip
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"perm": perm})
    yield Sample((rng.integers(-9, 9, (3, 7)).astype(np.int8),), {"perm": (1, 0)})


OPERATORS = [
    Operator(
        name="transpose",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"perm": tuple},
        compute=_compute,
        view=_view,
        quantized=movement,
        samples=_samples,
        onnx={"Transpose": _import},
        doc="y = x with its dims permuted",
    )
]
