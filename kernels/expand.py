"""Broadcast to a larger shape (a view with stride 0) and repetition along dims (tile)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample, StridedView


def _ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    shape = _ints(attrs, "shape")
    try:
        fits = np.broadcast_shapes(x.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ModelError(f"`expand`: {x} does not broadcast to {list(shape)}")
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.ascontiguousarray(np.broadcast_to(inputs[0], _ints(attrs, "shape")))]


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
    wanted = tuple(int(n) for n in node.need_const(1, "the shape"))
    try:
        shape = np.broadcast_shapes(node.type(0).shape, wanted)
    except ValueError:
        raise node.fail(
            f"Expand of {node.type(0)} to {list(wanted)}: shapes do not broadcast"
        ) from None
    return node.add("expand", [node.inputs[0]], {"shape": tuple(shape)})


def _tile_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    repeats = _ints(attrs, "repeats")
    if len(repeats) != x.rank or any(r < 0 for r in repeats):
        raise ModelError(f"`tile`: repeats {list(repeats)} do not fit {x}")
    return [TensorType(x.dtype, tuple(n * r for n, r in zip(x.shape, repeats, strict=True)))]


def _tile_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return x[0](*(Ix(0) if n == 1 else i % n for i, n in zip(index, x[0].shape, strict=True)))


def _import_tile(node: ImportNode) -> Sequence[str]:
    repeats = tuple(int(r) for r in node.need_const(1, "the repeats"))
    return node.add("tile", [node.inputs[0]], {"repeats": repeats})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, new in (((1, 5), (3, 5)), ((), (4,)), ((17,), (2, 17)), ((2, 1), (3, 2, 4))):
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"shape": new})


def _tile_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, repeats in (((3,), (5,)), ((2, 7), (2, 3))):
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"repeats": repeats})


OPERATORS = [
    Operator(
        name="expand",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"shape": tuple},
        compute=_compute,
        view=_view,
        samples=_samples,
        onnx={"Expand": _import_expand},
        doc="y = x broadcast to `shape`",
    ),
    Operator(
        name="tile",
        trait="injective",
        infer=_tile_infer,
        reference=lambda inputs, attrs: [np.tile(inputs[0], _ints(attrs, "repeats"))],
        attrs={"repeats": tuple},
        compute=_tile_compute,
        samples=_tile_samples,
        onnx={"Tile": _import_tile},
        doc="y = x repeated along each dim",
    ),
]
