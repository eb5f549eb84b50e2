"""The same elements, in row-major order, under another shape. A view where strides allow it.

ONNX Reshape, Squeeze, Unsqueeze and Flatten all become this operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import axes_of, axis_of, ints
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr, dense_strides
from tilewright.registry import ImportNode, Operator, Sample, StridedView


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    shape = ints(attrs, "shape")
    if prod(shape) != x.size or any(n < 0 for n in shape):
        raise ModelError(f"`reshape`: {x} does not fit the shape {list(shape)}: repair the model")
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    return [np.asarray(inputs[0]).reshape(ints(attrs, "shape"))]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    """Through the linear index: exact for any pair of shapes."""
    assert x[0] is not None
    linear = Ix(0)
    for i, s in zip(index, dense_strides(out.shape), strict=True):
        linear = linear + i * s
    (linear,) = k.simplify((linear,))
    source: list[Ix] = []
    for d, (n, s) in enumerate(zip(x[0].shape, dense_strides(x[0].shape), strict=True)):
        source.append(Ix(0) if n <= 1 or not s else linear // s % n if d else linear // s)
    return x[0](*source)


def view_strides(
    shape: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> tuple[int, ...] | None:
    """Strides of the reshaped tensor over the same memory, or None if it needs a copy.

    Old and new dims are matched in groups of equal size; inside a group of the old dims each stride
    must continue the next (dims of extent 1 do not matter).
    """
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    out: list[int] = []
    i = 0
    todo = list(new)
    while todo:
        n = todo.pop(0)
        if n == 1:
            out.append(0)
            continue
        group_new = [n]
        if i >= len(old):
            return None
        group_old = [old[i]]
        i += 1
        while prod(group_new) != prod(n for n, _ in group_old):
            if prod(group_new) < prod(n for n, _ in group_old):
                if not todo:
                    return None
                group_new.append(todo.pop(0))
            else:
                if i >= len(old):
                    return None
                group_old.append(old[i])
                i += 1
        for (_, sa), (nb, sb) in pairwise(group_old):
            if sa != nb * sb:
                return None
        step = group_old[-1][1]
        part: list[int] = []
        for extent in reversed(group_new):
            part.insert(0, step)
            step *= extent
        out += part
    return tuple(out)


def _view(
    t: TensorType, strides: tuple[int, ...], attrs: Attrs, out: TensorType
) -> StridedView | None:
    got = view_strides(t.shape, strides, out.shape)
    return None if got is None else StridedView(0, got)


# ---------------------------------------------------------------- importers


def _reshape_to(node: ImportNode, shape: Sequence[int]) -> Sequence[str]:
    return node.add("reshape", [node.inputs[0]], {"shape": tuple(int(n) for n in shape)})


def _import_reshape(node: ImportNode) -> Sequence[str]:
    x = node.type(0)
    wanted = [int(n) for n in node.need_const(1, "the shape").reshape(-1)]
    if not node.attr("allowzero", 0):
        if any(n == 0 and i >= x.rank for i, n in enumerate(wanted)):
            raise node.fail(f"Reshape of {x} to {wanted}: a 0 has no dim to copy")
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if wanted.count(-1) > 1:
        raise node.fail(f"Reshape to {wanted}: more than one -1")
    if -1 in wanted:
        rest = prod(n for n in wanted if n != -1)
        if rest == 0 or x.size % rest:
            raise node.fail(f"Reshape of {x} to {wanted}: the sizes do not match")
        wanted[wanted.index(-1)] = x.size // rest
    return _reshape_to(node, wanted)


def _axes(node: ImportNode, rank: int) -> list[int] | None:
    """Axes are an attribute before opset 13 and an input from then on."""
    axes = node.attr("axes")
    if axes is None and node.has(1):
        axes = node.need_const(1, "the axes")
    return None if axes is None else axes_of(np.asarray(axes).reshape(-1), rank)


def _import_squeeze(node: ImportNode) -> Sequence[str]:
    shape = node.type(0).shape
    axes = _axes(node, len(shape))
    if not axes:  # absent or empty: every dim of 1
        axes = [i for i, n in enumerate(shape) if n == 1]
    if any(shape[a] != 1 for a in axes):
        raise node.fail(f"Squeeze of {node.type(0)} along {axes}: a dim is not 1")
    return _reshape_to(node, [n for i, n in enumerate(shape) if i not in axes])


def _import_unsqueeze(node: ImportNode) -> Sequence[str]:
    shape = list(node.type(0).shape)
    given = node.attr("axes")
    count = len(given) if given is not None else node.need_const(1, "the axes").size
    axes = _axes(node, len(shape) + count) or []
    for a in sorted(axes):
        shape.insert(a, 1)
    return _reshape_to(node, shape)


def _import_flatten(node: ImportNode) -> Sequence[str]:
    shape = node.type(0).shape
    axis = int(node.attr("axis", 1))
    axis = axis if axis == len(shape) else axis_of(axis, len(shape))
    return _reshape_to(node, [prod(shape[:axis]), prod(shape[axis:])])


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, new in (
        ((6, 4), (3, 8)), ((2, 3, 4), (24,)), ((), (1, 1)), ((2, 1, 9), (2, 3, 3)), ((1, 1, 1), ()),
        ((17, 2), (2, 17)), ((33,), (1, 33, 1)), ((4, 6, 5), (8, 3, 5)), ((7, 16), (14, 2, 4)),
        ((2, 3, 1, 4, 5), (3, 8, 5)), ((5, 7), (5, 7)),
    ):  # fmt: skip
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"shape": new})
    yield Sample((rng.integers(-9, 9, (3, 4)).astype(np.int64),), {"shape": (2, 6)})


OPERATORS = [
    Operator(
        name="reshape",
        trait="view",
        infer=_infer,
        reference=_reference,
        attrs={"shape": tuple},
        compute=_compute,
        view=_view,
        quantized=movement,
        samples=_samples,
        onnx={
            "Reshape": _import_reshape,
            "Squeeze": _import_squeeze,
            "Unsqueeze": _import_unsqueeze,
            "Flatten": _import_flatten,
        },
        doc="y = the elements of x in row-major order under another shape",
    )
]
