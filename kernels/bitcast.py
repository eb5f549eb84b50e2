"""The bits of a tensor read as another element type of the same size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import ALL, BOOL, ONNX_TYPES, DType
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, cast
from tilewright.loop.ir import Bitcast, Expr
from tilewright.registry import ImportNode, Operator, Sample


def _plain(t: DType) -> bool:
    """Whether operators see the bits of such a value as they are stored."""
    return t.work is t


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, to = types[0], ALL.get(str(attrs["to"]))
    assert x is not None
    if to is None or to is BOOL or to.bits != x.dtype.bits or not (_plain(to) and _plain(x.dtype)):
        raise ModelError(
            f"the bits of {x} cannot be read as {attrs['to']}: use a type of {x.dtype.bits} bits"
        )
    return [TensorType(to, x.shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.asarray(inputs[0]).view(ALL[str(attrs["to"])].numpy)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    value = x[0].broadcast(index)
    # a bool is a byte that is 0 or 1
    return cast(value, out.dtype) if value.dtype is BOOL else Bitcast(value, out.dtype)


def _import(node: ImportNode) -> Sequence[str]:
    to = ONNX_TYPES.get(int(node.attr("to")))
    if to is None:
        raise node.fail(
            f"BitCast to ONNX element type {node.attr('to')} is not supported: use integers"
        )
    if to is node.type(0).dtype:
        return [node.inputs[0]]
    return node.add("bitcast", [node.inputs[0]], {"to": to.name})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    yield Sample((rng.standard_normal((3, 17)).astype(np.float32),), {"to": "i32"})
    yield Sample((rng.standard_normal((5,)),), {"to": "i64"})
    yield Sample((rng.integers(-9, 9, (2, 3)).astype(np.int8),), {"to": "u8"})
    yield Sample((rng.integers(0, 1 << 30, ()).astype(np.int32),), {"to": "f32"})
    yield Sample((rng.integers(0, 2, (7,)).astype(np.bool_),), {"to": "u8"})


OPERATORS = [
    Operator(
        name="bitcast",
        trait="elementwise",
        infer=_infer,
        reference=_reference,
        attrs={"to": str},
        compute=_compute,
        samples=_samples,
        onnx={"BitCast": _import},
        doc="the bits of x[i] read as the element type `to`",
    )
]
