"""Writing at data-dependent indices: a copy of x in which elements are replaced, or combined with updates.

scatter_elements  y = x;  y[i_0, .., indices[i..], ..] (+)= updates[i..]       (along `axis`)
scatter_nd        y = x;  y[indices[j.., :], r..] (+)= updates[j.., r..]
`reduction` none replaces; add, mul, min and max combine. Updates are applied in order, so that the last of
several to one element wins. Indices are clamped into range, so no access leaves the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of, integer
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, binary
from tilewright.loop.ir import BinaryOp, Expr, For, Kernel
from tilewright.loop.rewrite import loops
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates.draft import Draft, vectorize_pass
from tilewright.schedule.trace import Trace

_REDUCTIONS: dict[str, Any] = {
    "none": None, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum
}  # fmt: skip


def _checked(types: Sequence[TensorType | None], attrs: Attrs, name: str) -> tuple[TensorType, ...]:
    x, indices, updates = types
    assert x is not None and indices is not None and updates is not None
    reduction = attrs["reduction"]
    if reduction not in _REDUCTIONS:
        raise ModelError(
            f"`{name}`: reduction {reduction} is not one of {', '.join(_REDUCTIONS)}: repair the model"
        )
    if not indices.dtype.is_integer or updates.dtype is not x.dtype:
        raise ModelError(f"`{name}` of {updates} into {x} by {indices}: the types do not fit")
    if x.dtype is BOOL and reduction != "none":
        raise ModelError(f"`{name}`: {reduction} is not defined on {x}: cast it")
    return x, indices, updates


def _wrapped(indices: Array, n: int) -> Array:
    return np.clip(np.where(indices < 0, indices + n, indices), 0, max(n - 1, 0)).astype(np.int64)


def _apply(y: Array, at: tuple[Array, ...], updates: Array, reduction: str) -> None:
    """In order, one after the other."""
    combine = _REDUCTIONS[reduction]
    with np.errstate(all="ignore"):
        if combine is None:
            for *place, value in zip(
                *(a.reshape(-1) for a in at), updates.reshape(-1), strict=True
            ):
                y[tuple(place)] = value
        else:
            combine.at(y, at, updates)


def _copied(k: KernelBuilder, x: Reader) -> None:
    with ExitStack() as nest:
        index = tuple(nest.enter_context(k.loop(f"c{d}", n)) for d, n in enumerate(x.shape))
        k.emit(index, x(*index))


def _updated(k: KernelBuilder, at: tuple[Ix, ...], value: Expr, reduction: str) -> None:
    if reduction != "none":
        assert k.result is not None
        ops: dict[str, BinaryOp] = {"add": "add", "mul": "mul", "min": "min", "max": "max"}
        value = binary(ops[reduction], k.result(*at), value)
    k.emit(at, value)


# ---------------------------------------------------------------- scatter_elements


def _elements_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices, updates = _checked(types, attrs, "scatter_elements")
    axis = integer(attrs, "axis")
    fits = indices.shape == updates.shape and indices.rank == x.rank and 0 <= axis < x.rank
    pairs = zip(indices.shape, x.shape, strict=False)
    if not fits or any(m > n for d, (m, n) in enumerate(pairs) if d != axis):
        raise ModelError(
            f"`scatter_elements` of {updates} into {x} by {indices} along axis {axis}: the shapes do not "
            "fit, repair the model"
        )
    return [x]


def _elements_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices, updates = (np.asarray(v) for v in inputs)
    axis = integer(attrs, "axis")
    y = x.copy()
    at = list(np.indices(indices.shape))
    at[axis] = _wrapped(indices, x.shape[axis])
    _apply(y, tuple(at), updates, str(attrs["reduction"]))
    return [y]


def _elements_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, indices, updates = k.inputs
    assert x is not None and indices is not None and updates is not None
    axis = integer(attrs, "axis")
    _copied(k, x)
    with ExitStack() as nest:
        index = tuple(nest.enter_context(k.loop(f"i{d}", n)) for d, n in enumerate(indices.shape))
        place = k.index(indices(*index), x.shape[axis])
        at = (*index[:axis], place, *index[axis + 1 :])
        _updated(k, at, updates(*index), str(attrs["reduction"]))


# ---------------------------------------------------------------- scatter_nd


def _nd_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, indices, updates = _checked(types, attrs, "scatter_nd")
    depth = indices.shape[-1] if indices.rank else 0
    if (
        indices.rank == 0
        or depth > x.rank
        or updates.shape != (*indices.shape[:-1], *x.shape[depth:])
        or 0 in x.shape[:depth]
    ):
        raise ModelError(
            f"`scatter_nd` of {updates} into {x} by {indices}: the shapes do not fit, repair the model"
        )
    return [x]


def _nd_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, indices, updates = (np.asarray(v) for v in inputs)
    y = x.copy()
    depth, lead = indices.shape[-1], indices.ndim - 1
    grid = np.indices(updates.shape)
    at = [
        _wrapped(indices[(*grid[:lead], np.full(updates.shape, d))], x.shape[d])
        for d in range(depth)
    ]
    _apply(y, (*at, *grid[lead:]), updates, str(attrs["reduction"]))
    return [y]


def _nd_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, indices, updates = k.inputs
    assert x is not None and indices is not None and updates is not None
    depth, lead = indices.shape[-1], len(indices.shape) - 1
    _copied(k, x)
    with ExitStack() as nest:
        rows = tuple(
            nest.enter_context(k.loop(f"i{d}", n)) for d, n in enumerate(indices.shape[:-1])
        )
        place = tuple(k.index(indices(*rows, d), x.shape[d]) for d in range(depth))
        rest = tuple(
            nest.enter_context(k.loop(f"r{d}", n)) for d, n in enumerate(updates.shape[lead:])
        )
        _updated(k, (*place, *rest), updates(*rows, *rest), str(attrs["reduction"]))


# ---------------------------------------------------------------- schedule


def _schedule(kernel: Kernel, target: Target) -> Trace:
    """The copy and the innermost loop over whole slices in vectors; updates stay in order."""
    d = Draft(kernel)
    for var, f in loops(kernel.body).items():
        if any(isinstance(s, For) for s in f.body) or var.startswith("i"):
            continue
        vectorize_pass(d, var, target.lanes(4))
    return d.trace


# ---------------------------------------------------------------- importers


def _reduction(node: ImportNode) -> str:
    reduction = str(node.attr("reduction", "none"))
    if reduction not in _REDUCTIONS:
        raise node.fail(f"reduction {reduction} is not one of {', '.join(_REDUCTIONS)}: repair it")
    return reduction


def _import_elements(node: ImportNode) -> Sequence[str]:
    axis = axis_of(node.attr("axis", 0), node.type(0).rank)
    attrs = {"axis": axis, "reduction": _reduction(node)}
    return node.add("scatter_elements", list(node.inputs[:3]), attrs)


def _import_nd(node: ImportNode) -> Sequence[str]:
    return node.add("scatter_nd", list(node.inputs[:3]), {"reduction": _reduction(node)})


# ---------------------------------------------------------------- samples


def _elements_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for reduction in _REDUCTIONS:
        for shape, ishape, axis in (
            ((5, 17), (3, 17), 0),
            ((4, 6), (4, 9), 1),
            ((3, 2, 5), (2, 2, 5), 1),
        ):
            x = rng.standard_normal(shape).astype(np.float32)
            at = rng.integers(-shape[axis], shape[axis], ishape)
            updates = rng.standard_normal(ishape).astype(np.float32)
            yield Sample((x, at, updates), {"axis": axis, "reduction": reduction})
    x = rng.integers(0, 99, 6).astype(np.uint8)
    at, updates = np.array([1, 1, -6, 3], np.int32), np.array([7, 9, 250, 255], np.uint8)
    for reduction in _REDUCTIONS:
        yield Sample((x, at, updates), {"axis": 0, "reduction": reduction})
    flags = np.array([True, False, True])
    yield Sample((flags, np.array([0, 1]), flags[1:]), {"axis": 0, "reduction": "none"})


def _nd_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for reduction in _REDUCTIONS:
        for shape, ishape in (
            ((8,), (5, 1)),
            ((4, 5, 19), (3, 2)),
            ((4, 5), (2, 3, 2)),
            ((3, 4), (2, 1)),
        ):
            depth = ishape[-1]
            x = rng.standard_normal(shape).astype(np.float32)
            at = np.stack(
                [rng.integers(-shape[d], shape[d], ishape[:-1]) for d in range(depth)], -1
            )
            updates = rng.standard_normal((*ishape[:-1], *shape[depth:])).astype(np.float32)
            yield Sample((x, at, updates), {"reduction": reduction})


def _operator(
    name: str, infer: Any, reference: Any, lower: Any, samples: Any, attrs: dict[str, type], doc: str,
    onnx: dict[str, Callable[[ImportNode], Sequence[str]]],
) -> Operator:  # fmt: skip
    return Operator(
        name=name, trait="opaque", infer=infer, reference=reference, lower=lower, samples=samples,
        attrs={**attrs, "reduction": str}, schedule=_schedule, alone=True, onnx=onnx, doc=doc,
    )  # fmt: skip


OPERATORS = [
    _operator(
        "scatter_elements", _elements_infer, _elements_reference, _elements_lower,
        _elements_samples, {"axis": int}, "x with elements replaced at indices along `axis`",
        {"ScatterElements": _import_elements, "Scatter": _import_elements},
    ),
    _operator(
        "scatter_nd", _nd_infer, _nd_reference, _nd_lower, _nd_samples, {},
        "x with slices replaced at index tuples", {"ScatterND": _import_nd},
    ),
]  # fmt: skip
