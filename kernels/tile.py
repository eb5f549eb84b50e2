"""Repetition along dims: y[i] = x[i mod n], with n the extents of x."""

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
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    repeats = ints(attrs, "repeats")
    if len(repeats) != x.rank or any(r < 0 for r in repeats):
        raise ModelError(
            f"`tile`: {x} wants {x.rank} repeats of at least 0, got {list(repeats)}: repair the model"
        )
    return [TensorType(x.dtype, tuple(n * r for n, r in zip(x.shape, repeats, strict=True)))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.tile(inputs[0], ints(attrs, "repeats"))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return x[0](*(Ix(0) if n <= 1 else i % n for i, n in zip(index, x[0].shape, strict=True)))


def _import(node: ImportNode) -> Sequence[str]:
    repeats = tuple(int(r) for r in node.need_const(1, "the repeats").reshape(-1))
    return node.add("tile", [node.inputs[0]], {"repeats": repeats})


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, repeats in (
        ((3,), (5,)), ((2, 7), (2, 3)), ((), ()), ((1, 16), (33, 1)), ((17,), (1,)),
        ((2, 1, 3, 1, 2), (1, 2, 2, 3, 1)),
    ):  # fmt: skip
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"repeats": repeats})
    yield Sample((rng.integers(-9, 9, (2, 3)).astype(np.int64),), {"repeats": (2, 2)})


OPERATORS = [
    Operator(
        name="tile",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"repeats": tuple},
        compute=_compute,
        quantized=movement,
        samples=_samples,
        onnx={"Tile": _import},
        doc="y = x repeated along each dim",
    ),
]
