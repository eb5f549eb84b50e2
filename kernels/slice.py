"""Strided sub-tensor: y[i] = x[start + i * step] along each dim. A view. Split imports as slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axes_of, axis_of, ints
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample, StridedView


def _count(start: int, end: int, step: int) -> int:
    """Elements from `start` to before `end` in steps of `step`."""
    return max(0, -((start - end) // step)) if step > 0 else max(0, -((end - start) // -step))


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    starts, ends, steps = (ints(attrs, k) for k in ("starts", "ends", "steps"))
    if not len(starts) == len(ends) == len(steps) == x.rank or 0 in steps:
        raise ModelError(
            f"`slice` of {x}: starts {starts}, ends {ends}, steps {steps} must have {x.rank} entries, "
            "no step may be 0: repair the model"
        )
    shape = tuple(_count(*r) for r in zip(starts, ends, steps, strict=True))
    for a, n, s, size in zip(starts, shape, steps, x.shape, strict=True):
        if n and not (0 <= a < size and 0 <= a + (n - 1) * s < size):
            raise ModelError(
                f"`slice` of {x}: starts {starts}, ends {ends} reach outside: repair the model"
            )
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    starts, ends, steps = (ints(attrs, k) for k in ("starts", "ends", "steps"))
    for d, (a, b, s) in enumerate(zip(starts, ends, steps, strict=True)):
        x = np.take(x, np.arange(a, b, s), axis=d)
    return [np.asarray(x)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    starts, steps = ints(attrs, "starts"), ints(attrs, "steps")
    return x[0](*(i * s + a for i, a, s in zip(index, starts, steps, strict=True)))


def _view(
    t: TensorType, strides: tuple[int, ...], attrs: Attrs, out: TensorType
) -> StridedView | None:
    starts, steps = ints(attrs, "starts"), ints(attrs, "steps")
    offset = sum(a * s for a, s in zip(starts, strides, strict=True))
    edges = tuple(
        (a == 0 and k == 1, a + n == size and k == 1)
        for a, n, size, k in zip(starts, out.shape, t.shape, steps, strict=True)
    )
    return StridedView(offset, tuple(s * k for s, k in zip(strides, steps, strict=True)), edges)


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
    axes = axes_of(axes, rank)
    for d, a, b, s in zip(axes, given_starts, given_ends, given_steps, strict=True):
        if s == 0:
            raise node.fail(f"Slice along axis {d} has a step of 0: repair the model")
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
    axis = axis_of(node.attr("axis", 0), len(shape))
    sizes = node.attr("split")
    if sizes is None and node.has(1):
        sizes = node.need_const(1, "the split sizes")
    if sizes is None:
        parts = int(node.attr("num_outputs", node.output_count))
        chunk = -(-shape[axis] // parts)
        sizes = [min(chunk, shape[axis] - i * chunk) for i in range(parts)]
    if sum(int(n) for n in sizes) != shape[axis] or any(int(n) < 0 for n in sizes):
        raise node.fail(
            f"Split of dim {shape[axis]} into {[int(n) for n in sizes]}: the sizes do not add up, "
            "repair the model"
        )
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
        ((33,), (0,), (33,), (2,)),
        ((16,), (15,), (16,), (1,)),
        ((), (), (), ()),
        ((2, 3, 4, 5, 6), (0, 2, 1, 0, 5), (2, -1, 3, 5, -1), (1, -2, 1, 4, -5)),
    )
    for shape, a, b, s in cases:
        attrs = {"starts": a, "ends": b, "steps": s}
        yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)
    attrs = {"starts": (1, 6), "ends": (3, -1), "steps": (1, -3)}
    yield Sample((rng.integers(0, 255, (3, 7)).astype(np.uint8),), attrs)


OPERATORS = [
    Operator(
        name="slice",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"starts": tuple, "ends": tuple, "steps": tuple},
        compute=_compute,
        view=_view,
        quantized=movement,
        samples=_samples,
        onnx={"Slice": _import_slice, "Split": _import_split},
        doc="y[i] = x[starts + i * steps]; an end below 0 means past the first element",
    )
]
