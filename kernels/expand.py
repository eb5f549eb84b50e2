"""Broadcast to a larger shape: a view that repeats elements with stride 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import MAX_RANK, Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample, StridedView


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    shape = ints(attrs, "shape")
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ModelError(f"`expand`: {x} does not broadcast to {list(shape)}")
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.array(np.broadcast_to(inputs[0], ints(attrs, "shape")))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return x[0].broadcast(index)


def _view(
    t: TensorType, strides: tuple[int, ...], attrs: Attrs, out: TensorType
) -> StridedView | None:
    lead = (0,) * (out.rank - t.rank)
    return StridedView(
        0, (*lead, *(0 if n == 1 else s for n, s in zip(t.shape, strides, strict=True)))
    )


def _import_expand(node: ImportNode) -> Sequence[str]:
    wanted = tuple(int(n) for n in node.need_const(1, "the shape").reshape(-1))
    if len(wanted) > MAX_RANK:
        raise node.fail(f"rank {len(wanted)} is too much: at most {MAX_RANK} is supported")
    try:
        shape = np.broadcast_shapes(node.type(0).shape, wanted)
    except ValueError:
        raise node.fail(
            f"Expand of {node.type(0)} to {list(wanted)}: the shapes do not broadcast, repair the model"
        ) from None
    return node.add("expand", [node.inputs[0]], {"shape": tuple(shape)})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, new in (
        ((1, 5), (3, 5)), ((), (4,)), ((17,), (2, 17)), ((2, 1), (3, 2, 4)), ((), ()), ((1,), (33,)),
        ((2, 1, 1, 16), (2, 3, 7, 16)), ((3, 1, 1, 2), (1, 3, 2, 1, 2)),
    ):  # fmt: skip
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"shape": new})
    yield Sample((rng.integers(0, 2, (3, 1)).astype(np.bool_),), {"shape": (3, 5)})


OPERATORS = [
    Operator(
        name="expand",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"shape": tuple},
        compute=_compute,
        view=_view,
        quantized=movement,
        samples=_samples,
        onnx={"Expand": _import_expand},
        doc="y = x broadcast to `shape`",
    ),
]
