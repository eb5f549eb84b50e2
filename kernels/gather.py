"""Selection by data-dependent indices. Indices are clamped into range, so no access leaves the tensor.

gather           y[.., j.., ..] = x[.., indices[j..], ..]       (indices replace dim `axis`)
gather_elements  y[i..] = x[i_0, .., indices[i..], ..]          (same rank, along `axis`)
gather_nd        y[b.., j.., r..] = x[b.., indices[b.., j.., :], r..]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _types(types: Sequence[TensorType | None], name: str) -> tuple[TensorType, TensorType]:
    x, indices = types
    assert x is not None and indices is not None
    if not indices.dtype.is_integer:
        raise ModelError(f"`{name}` wants integer indices, got {indices}: cast them")
    return x, indices


def _check_axis(x: TensorType, axis: int, name: str) -> None:
    if not 0 <= axis < x.rank or x.shape[axis] == 0:
        raise ModelError(f"`{name}`: there is nothing to pick along axis {axis} of {x}")


def _wrapped(indices: Array, n: int) -> Array:
    return np.clip(np.where(indices < 0, indices + n, indices), 0, n - 1).astype(np.int64)


# ---------------------------------------------------------------- gather


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather")
    axis = integer(attrs, "axis")
    _check_axis(x, axis, "gather")
    return [TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    axis = integer(attrs, "axis")
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
    axis, rank = integer(attrs, "axis"), len(indices.shape)
    at = k.index(indices(*index[axis : axis + rank]), data.shape[axis])
    return data(*index[:axis], at, *index[axis + rank :])


def _import_gather(node: ImportNode) -> Sequence[str]:
    """Constant indices in equal steps are a slice, which is a view; others stay a gather."""
    t = node.type(0)
    axis = axis_of(node.attr("axis", 0), t.rank)
    known = node.const(1)
    if known is not None and known.dtype.kind in "iu":
        n = t.shape[axis]
        if any(not -n <= int(i) < n for i in known.reshape(-1)):
            raise node.fail(
                f"Gather by {known.reshape(-1).tolist()[:8]} along axis {axis} of {t}: an index is out "
                "of range, repair the model"
            )
        at = [int(i) % n for i in known.reshape(-1)]
        step = at[1] - at[0] if len(at) > 1 else 1
        if at and step and all(b - a == step for a, b in pairwise(at)):
            return _as_slice(node, axis, at[0], step, known.shape)
    return node.add("gather", [node.inputs[0], node.inputs[1]], {"axis": axis})


def _as_slice(
    node: ImportNode, axis: int, start: int, step: int, picked: tuple[int, ...]
) -> Sequence[str]:
    shape = node.type(0).shape
    starts, ends, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[axis], ends[axis], steps[axis] = start, start + step * prod(picked), step
    attrs = {"starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)}
    out = node.add("slice", [node.inputs[0]], attrs)
    if len(picked) == 1:
        return out
    return node.add("reshape", out, {"shape": (*shape[:axis], *picked, *shape[axis + 1 :])})


# ---------------------------------------------------------------- gather_elements


def _elements_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather_elements")
    if x.rank != indices.rank:
        raise ModelError(
            f"`gather_elements` of {x} by {indices}: the ranks differ, repair the model"
        )
    axis = integer(attrs, "axis")
    _check_axis(x, axis, "gather_elements")
    pairs = enumerate(zip(indices.shape, x.shape, strict=True))
    if any(m > n for d, (m, n) in pairs if d != axis):
        raise ModelError(
            f"`gather_elements` of {x} by {indices} along axis {axis}: the indices are larger than "
            "the tensor, repair the model"
        )
    return [TensorType(x.dtype, indices.shape)]


def _elements_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    axis = integer(attrs, "axis")
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
    axis = integer(attrs, "axis")
    at = k.index(indices(*index), data.shape[axis])
    return data(*index[:axis], at, *index[axis + 1 :])


def _import_elements(node: ImportNode) -> Sequence[str]:
    axis = axis_of(node.attr("axis", 0), node.type(0).rank)
    return node.add("gather_elements", [node.inputs[0], node.inputs[1]], {"axis": axis})


# ---------------------------------------------------------------- gather_nd


def _nd_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices = _types(types, "gather_nd")
    batch = integer(attrs, "batch_dims")
    if (
        indices.rank == 0
        or not 0 <= batch < min(x.rank, indices.rank)
        or batch + indices.shape[-1] > x.rank
        or x.shape[:batch] != indices.shape[:batch]
    ):
        raise ModelError(
            f"`gather_nd` of {x} by {indices} with {batch} batch dims: the shapes do not fit, repair "
            "the model"
        )
    for d in range(batch, batch + indices.shape[-1]):
        _check_axis(x, d, "gather_nd")
    return [TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]))]


def _nd_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices = (np.asarray(v) for v in inputs)
    batch, depth = integer(attrs, "batch_dims"), indices.shape[-1]
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
    batch, depth, rank = integer(attrs, "batch_dims"), indices.shape[-1], len(indices.shape)
    picks = [k.index(indices(*index[: rank - 1], d), data.shape[batch + d]) for d in range(depth)]
    return data(*index[:batch], *picks, *index[rank - 1 :])


def _import_nd(node: ImportNode) -> Sequence[str]:
    attrs = {"batch_dims": int(node.attr("batch_dims", 0))}
    return node.add("gather_nd", [node.inputs[0], node.inputs[1]], attrs)


# ---------------------------------------------------------------- samples


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, ishape, axis in (
        ((7, 5), (3,), 0), ((4, 9), (2, 3), 1), ((6,), (), 0), ((3, 17), (33,), 1), ((1, 16), (7,), 0),
        ((2, 3, 4, 2), (2, 2), 2), ((5, 1), (4,), 0),
    ):  # fmt: skip
        x = rng.standard_normal(shape).astype(np.float32)
        n = shape[axis]
        yield Sample((x, np.asarray(rng.integers(-n, n, ishape), np.int64)), {"axis": axis})
    x = rng.integers(0, 255, (5, 3)).astype(np.uint8)
    yield Sample((x, np.array([4, -1, -5, 0], np.int32)), {"axis": 0})


def _elements_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((5, 17)).astype(np.float32)
    yield Sample((x, rng.integers(-5, 5, (3, 17)).astype(np.int64)), {"axis": 0})
    yield Sample((x, rng.integers(-5, 5, (7, 16)).astype(np.int32)), {"axis": 0})
    yield Sample((x, rng.integers(-17, 17, (5, 33)).astype(np.int64)), {"axis": 1})
    x = rng.integers(-9, 9, (2, 3, 4, 1)).astype(np.int64)
    yield Sample((x, rng.integers(-3, 3, (2, 5, 2, 1)).astype(np.int64)), {"axis": 1})


def _nd_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    yield Sample((x, rng.integers(-4, 4, (7, 2)).astype(np.int64)), {"batch_dims": 0})
    yield Sample((x, rng.integers(-5, 5, (4, 3, 1)).astype(np.int64)), {"batch_dims": 1})
    yield Sample((x, rng.integers(-4, 4, (3,)).astype(np.int64)), {"batch_dims": 0})
    yield Sample((x, rng.integers(-4, 4, (2, 2, 1)).astype(np.int32)), {"batch_dims": 0})


OPERATORS = [
    Operator(
        name="gather", trait="injective", infer=_infer, reference=_reference, attrs={"axis": int},
        compute=_compute, samples=_samples, quantized=movement, onnx={"Gather": _import_gather},
        doc="y = slices of x picked by indices along `axis`",
    ),
    Operator(
        name="gather_elements", trait="injective", infer=_elements_infer,
        reference=_elements_reference, attrs={"axis": int}, compute=_elements_compute,
        samples=_elements_samples, quantized=movement, onnx={"GatherElements": _import_elements},
        doc="y[i..] = x[i.. with the index along `axis` replaced by indices[i..]]",
    ),
    Operator(
        name="gather_nd", trait="injective", infer=_nd_infer, reference=_nd_reference,
        attrs={"batch_dims": int}, compute=_nd_compute, samples=_nd_samples, quantized=movement,
        onnx={"GatherND": _import_nd}, doc="y = slices of x picked by index tuples",
    ),
]  # fmt: skip
