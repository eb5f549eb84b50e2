"""Strided sub-tensor: y[i] = x[start + i * step] along each dim. A view. Split imports as slices."""

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


def _count(start: int, end: int, step: int) -> int:
    return max(0, -((start - end) // step)) if step > 0 else max(0, -((end - start) // -step))


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    starts, ends, steps = (_ints(attrs, k) for k in ("starts", "ends", "steps"))
    if not len(starts) == len(ends) == len(steps) == x.rank or 0 in steps:
        raise ModelError(f"`slice` of {x}: starts {starts}, ends {ends}, steps {steps} do not fit")
    shape = tuple(_count(*r) for r in zip(starts, ends, steps, strict=True))
    for a, n, s, size in zip(starts, shape, steps, x.shape, strict=True):
        if n and not (0 <= a < size and 0 <= a + (n - 1) * s < size):
            raise ModelError(f"`slice` of {x}: starts {starts}, ends {ends} reach outside")
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    starts, ends, steps = (_ints(attrs, k) for k in ("starts", "ends", "steps"))
    window = tuple(
        slice(a, None if b < 0 else b, s) for a, b, s in zip(starts, ends, steps, strict=True)
    )
    return [np.ascontiguousarray(x[window])]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    starts, steps = _ints(attrs, "starts"), _ints(attrs, "steps")
    return x[0](*(i * s + a for i, a, s in zip(index, starts, steps, strict=True)))


def _view(
    t: TensorType, strides: tuple[int, ...], attrs: Attrs, out: TensorType
) -> StridedView | None:
    starts, steps = _ints(attrs, "starts"), _ints(attrs, "steps")
    offset = sum(a * s for a, s in zip(starts, strides, strict=True))
    return StridedView(offset, tuple(s * k for s, k in zip(strides, steps, strict=True)))


def _import_slice(node: ImportNode) -> Sequence[str]:
    """Bounds are attributes before opset 10 and inputs from then on; negatives count from the end."""
    shape = node.type(0).shape
    rank = len(shape)
    if node.opset < 10:
        given_starts = [int(v) for v in node.attr("starts")]
        given_ends = [int(v) for v in node.attr("ends")]
        axes = [int(v) for v in node.attr("axes", tuple(range(len(given_starts))))]
        given_steps = [1] * len(axes)
    else:
        given_starts = [int(v) for v in node.need_const(1, "the starts").reshape(-1)]
        given_ends = [int(v) for v in node.need_const(2, "the ends").reshape(-1)]
        axes = list(range(len(given_starts)))
        if node.has(3):
            axes = [int(v) for v in node.need_const(3, "the axes").reshape(-1)]
        given_steps = [1] * len(axes)
        if node.has(4):
            given_steps = [int(v) for v in node.need_const(4, "the steps").reshape(-1)]
    starts, ends, steps = [0] * rank, list(shape), [1] * rank
    for axis, a, b, s in zip(axes, given_starts, given_ends, given_steps, strict=True):
        if not -rank <= axis < rank or s == 0:
            raise node.fail(f"Slice with axis {axis} and step {s} on rank {rank}")
        d = axis % rank
        n = shape[d]
        a = a + n if a < 0 else a
        b = b + n if b < 0 else b
        if s > 0:
            starts[d], ends[d] = min(max(a, 0), n), min(max(b, 0), n)
        else:
            starts[d], ends[d] = min(max(a, 0), n - 1), min(max(b, -1), n - 1)
        steps[d] = s
        if _count(starts[d], ends[d], s) == 0:
            starts[d] = ends[d] = 0
            steps[d] = 1
    return node.add(
        "slice",
        [node.inputs[0]],
        {"starts": tuple(starts), "ends": tuple(ends), "steps": tuple(steps)},
    )


def _import_split(node: ImportNode) -> Sequence[str]:
    shape = node.type(0).shape
    axis = int(node.attr("axis", 0)) % max(len(shape), 1)
    sizes = node.attr("split")
    if sizes is None and node.has(1):
        sizes = node.need_const(1, "the split sizes")
    if sizes is None:
        parts = int(node.attr("num_outputs", node.output_count))
        chunk = -(-shape[axis] // parts)
        sizes = [min(chunk, shape[axis] - i * chunk) for i in range(parts)]
    if sum(int(n) for n in sizes) != shape[axis]:
        raise node.fail(f"Split of dim {shape[axis]} into {list(sizes)}: the sizes do not add up")
    out: list[str] = []
    at = 0
    for n in sizes:
        starts, ends = [0] * len(shape), list(shape)
        starts[axis], ends[axis] = at, at + int(n)
        at += int(n)
        attrs = {"starts": tuple(starts), "ends": tuple(ends), "steps": (1,) * len(shape)}
        out += node.add("slice", [node.inputs[0]], attrs)
    return out


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases = (
        ((10,), (2,), (9,), (3,)),
        ((10,), (8,), (1,), (-2,)),
        ((3, 17), (1, 0), (3, 17), (1, 1)),
        ((4, 5), (3, 4), (-1, -1), (-1, -2)),
    )
    for shape, a, b, s in cases:
        attrs = {"starts": a, "ends": b, "steps": s}
        yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)


OPERATORS = [
    Operator(
        name="slice",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"starts": tuple, "ends": tuple, "steps": tuple},
        compute=_compute,
        view=_view,
        samples=_samples,
        onnx={"Slice": _import_slice, "Split": _import_split},
        doc="y[i] = x[starts + i * steps]; an end below 0 means past the first element",
    )
]
