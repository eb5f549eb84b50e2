"""Selection by data-dependent indices. Indices are clamped into range, so no access leaves the tensor.

gather           y[.., j.., ..] = x[.., indices[j..], ..]       (indices replace dim `axis`)
gather_elements  y[i..] = x[i_0, .., indices[i..], ..]          (same rank, along `axis`)
gather_nd        y[b.., j.., r..] = x[b.., indices[b.., j.., :], r..]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _int(attrs: Attrs, name: str) -> int:
    value = attrs[name]
    assert isinstance(value, int)
    return value


def _types(types: Sequence[TensorType | None], name: str) -> tuple[TensorType, TensorType]:
    x, indices = types
    assert x is not None and indices is not None
    if not indices.dtype.is_integer:
        raise ModelError(f"`{name}` wants integer indices, got {indices}")
    return x, indices


def _wrapped(indices: Array, n: int) -> Array:
    return np.clip(np.where(indices < 0, indices + n, indices), 0, n - 1).astype(np.int64)


# ---------------------------------------------------------------- gather


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather")
    axis = _int(attrs, "axis")
    if not 0 <= axis < x.rank or x.shape[axis] == 0:
        raise ModelError(f"`gather`: axis {axis} does not fit {x}")
    return [TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    axis = _int(attrs, "axis")
    return [np.take(x, _wrapped(indices, x.shape[axis]), axis=axis)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, indices = x
    assert data is not None and indices is not None
    axis, rank = _int(attrs, "axis"), len(indices.shape)
    at = k.index(indices(*index[axis : axis + rank]), data.shape[axis])
    return data(*index[:axis], at, *index[axis + rank :])


def _import_gather(node: ImportNode) -> Sequence[str]:
    axis = int(node.attr("axis", 0)) % max(node.type(0).rank, 1)
    return node.add("gather", [node.inputs[0], node.inputs[1]], {"axis": axis})


# ---------------------------------------------------------------- gather_elements


def _elements_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather_elements")
    if x.rank != indices.rank:
        raise ModelError(f"`gather_elements` of {x} by {indices}: the ranks differ")
    return [TensorType(x.dtype, indices.shape)]


def _elements_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    axis = _int(attrs, "axis")
    window = tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(indices.shape))
    return [np.take_along_axis(x[window], _wrapped(indices, x.shape[axis]), axis=axis)]


def _elements_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, indices = x
    assert data is not None and indices is not None
    axis = _int(attrs, "axis")
    at = k.index(indices(*index), data.shape[axis])
    return data(*index[:axis], at, *index[axis + 1 :])


def _import_elements(node: ImportNode) -> Sequence[str]:
    axis = int(node.attr("axis", 0)) % max(node.type(0).rank, 1)
    return node.add("gather_elements", [node.inputs[0], node.inputs[1]], {"axis": axis})


# ---------------------------------------------------------------- gather_nd


def _nd_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather_nd")
    batch = _int(attrs, "batch_dims")
    if (
        indices.rank == 0
        or batch + indices.shape[-1] > x.rank
        or x.shape[:batch] != indices.shape[:batch]
    ):
        raise ModelError(
            f"`gather_nd` of {x} by {indices} with {batch} batch dims: shapes do not fit"
        )
    return [TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]))]


def _nd_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    batch, depth = _int(attrs, "batch_dims"), indices.shape[-1]
    lead = np.indices(indices.shape[:-1])[:batch]
    picks = [_wrapped(indices[..., d], x.shape[batch + d]) for d in range(depth)]
    return [np.asarray(x[(*lead, *picks)])]


def _nd_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, indices = x
    assert data is not None and indices is not None
    batch, depth, rank = _int(attrs, "batch_dims"), indices.shape[-1], len(indices.shape)
    picks = [k.index(indices(*index[: rank - 1], d), data.shape[batch + d]) for d in range(depth)]
    return data(*index[:batch], *picks, *index[rank - 1 :])


def _import_nd(node: ImportNode) -> Sequence[str]:
    attrs = {"batch_dims": int(node.attr("batch_dims", 0))}
    return node.add("gather_nd", [node.inputs[0], node.inputs[1]], attrs)


# ---------------------------------------------------------------- samples


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, ishape, axis in (((7, 5), (3,), 0), ((4, 9), (2, 3), 1), ((6,), (), 0)):
        x = rng.standard_normal(shape).astype(np.float32)
        n = shape[axis]
        yield Sample((x, rng.integers(-n, n, ishape).astype(np.int64)), {"axis": axis})


def _elements_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((5, 17)).astype(np.float32)
    yield Sample((x, rng.integers(-5, 5, (3, 17)).astype(np.int64)), {"axis": 0})


def _nd_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    yield Sample((x, rng.integers(-4, 4, (7, 2)).astype(np.int64)), {"batch_dims": 0})
    yield Sample((x, rng.integers(-5, 5, (4, 3, 1)).astype(np.int64)), {"batch_dims": 1})


OPERATORS = [
    Operator(
        name="gather", trait="injective", infer=_infer, reference=_reference, attrs={"axis": int},
        compute=_compute, samples=_samples, onnx={"Gather": _import_gather},
        doc="y = slices of x picked by indices along `axis`",
    ),
    Operator(
        name="gather_elements", trait="injective", infer=_elements_infer,
        reference=_elements_reference, attrs={"axis": int}, compute=_elements_compute,
        samples=_elements_samples, onnx={"GatherElements": _import_elements},
        doc="y[i..] = x[i.. with the index along `axis` replaced by indices[i..]]",
    ),
    Operator(
        name="gather_nd", trait="injective", infer=_nd_infer, reference=_nd_reference,
        attrs={"batch_dims": int}, compute=_nd_compute, samples=_nd_samples,
        onnx={"GatherND": _import_nd}, doc="y = slices of x picked by index tuples",
    ),
]  # fmt: skip
