"""Deformable convolution (Dai et al., 2017; Zhu et al., 2018): the window's points move by offsets.

`deform_columns` gathers what the windows see: y[n, c, k, o, p] = x[n, c, ..] (linear between points, 0
outside) at the k-th point of window (o, p) plus offset[n, (g, k, :), o, p], times mask[n, (g, k), o, p],
where g is the offset group of channel c. The convolution is a product of matrices with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.index import Ix
from tilewright.core.sampling import sample
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, cast, from_index, mul, select
from tilewright.loop.builder import const as literal
from tilewright.loop.ir import Expr
from tilewright.loop.sampling import taps
from tilewright.registry import ImportNode, Operator, Sample


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, offset, mask = types
    assert x is not None and offset is not None
    points, groups = prod(ints(attrs, "kernel")), int(str(attrs["groups"]))
    if x.rank != 4 or offset.rank != 4 or 0 in x.shape or not x.dtype.is_float:
        raise ModelError(
            f"deformable convolution of {x} by {offset}: images of two dims are wanted"
        )
    if groups < 1 or x.shape[1] % groups or offset.shape[:2] != (x.shape[0], groups * points * 2):
        raise ModelError(f"deformable convolution of {x}: {offset} is not two offsets per point")
    wanted = (x.shape[0], groups * points, *offset.shape[2:])
    if mask is not None and mask.shape != wanted:
        raise ModelError(f"deformable convolution: the mask is {mask}, not {list(wanted)}")
    return [TensorType(x.dtype, (*x.shape[:2], points, *offset.shape[2:]))]


def _base(attrs: Attrs, d: int, point: int) -> int:
    """Where the window at 0 has its k-th point along dim d."""
    kernel = ints(attrs, "kernel")
    at = point // kernel[1] if d == 0 else point % kernel[1]
    return at * ints(attrs, "dilations")[d] - ints(attrs, "pads")[d]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, offset = np.asarray(inputs[0]), np.asarray(inputs[1], np.float64)
    n, c = x.shape[:2]
    points, groups = prod(ints(attrs, "kernel")), int(str(attrs["groups"]))
    oh, ow = offset.shape[2:]
    moved = offset.reshape(n, groups, points, 2, oh, ow)
    mask = np.ones((n, groups, points, oh, ow))
    if inputs[2] is not None:
        mask = np.asarray(inputs[2], np.float64).reshape(mask.shape)
    strides = ints(attrs, "strides")
    y = np.zeros((n, c, points, oh, ow))
    for b in range(n):
        for g in range(groups):
            own = slice(g * (c // groups), (g + 1) * (c // groups))
            for k in range(points):
                rows = np.arange(oh)[:, None] * strides[0] + _base(attrs, 0, k)
                columns = np.arange(ow) * strides[1] + _base(attrs, 1, k)
                at = np.stack([rows + moved[b, g, k, 0], columns + moved[b, g, k, 1]], -1)
                y[b, own, k] = sample(x[b, own], at, "linear", "zeros", True) * mask[b, g, k]
    return [y.astype(x.dtype)]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, offset, mask = x
    assert data is not None and offset is not None
    n, c, point, oy, ox = index
    kernel, t = ints(attrs, "kernel"), out.dtype
    strides, pads, dilations = (ints(attrs, a) for a in ("strides", "pads", "dilations"))
    per_group = data.shape[1] // int(str(attrs["groups"]))
    group = c // per_group
    row = point // kernel[1]
    column = point - row * kernel[1]
    slot = group * prod(kernel) + point
    at: list[Expr] = []
    for d, (window, o) in enumerate(((row, oy), (column, ox))):
        base = o * strides[d] + window * dilations[d] - pads[d]
        moved = cast(offset(n, slot * 2 + d, oy, ox), t)
        at.append(add(from_index(base, t), moved))
    total: Expr = literal(0.0, t)
    for tap in taps(k, at, data.shape[2:]):
        assert tap.inside is not None and tap.weight is not None
        value = select(tap.inside, data(n, c, *tap.index), literal(0.0, t))
        total = add(total, mul(value, tap.weight))
    return total if mask is None else mul(total, mask(n, slot, oy, ox))


def _import(node: ImportNode) -> Sequence[str]:
    """The columns times the weights, group by group."""
    x, w, offset = node.type(0), node.type(1), node.type(2)
    if x.rank != 4 or w.rank != 4:
        raise node.fail(f"deformable convolution of {x} is not supported: two spatial dims are")
    group = int(node.attr("group", 1))
    if group < 1 or w.shape[0] % group or w.shape[1] * group != x.shape[1]:
        raise node.fail(f"{x} and weights {w} do not fit {group} groups: repair the model")
    kernel, (n, rows, points) = w.shape[2:], (x.shape[0], *offset.shape[2:4])
    attrs = {
        "kernel": kernel,
        "strides": tuple(node.attr("strides", (1, 1))),
        "pads": tuple(node.attr("pads", (0, 0, 0, 0)))[:2],
        "dilations": tuple(node.attr("dilations", (1, 1))),
        "groups": int(node.attr("offset_group", 1)),
    }
    mask = node.inputs[4] if node.has(4) else ""
    (columns,) = node.add("deform_columns", [node.inputs[0], node.inputs[2], mask], attrs)
    inner = w.shape[1] * prod(kernel)
    (columns,) = node.add("reshape", [columns], {"shape": (n, group, inner, rows * points)})
    weights = (1, group, w.shape[0] // group, inner)
    (weight,) = node.add("reshape", [node.inputs[1]], {"shape": weights})
    (y,) = node.add("matmul", [weight, columns])
    (y,) = node.add("reshape", [y], {"shape": (n, w.shape[0], rows, points)})
    if not node.has(3):
        return [y]
    (bias,) = node.add("reshape", [node.inputs[3]], {"shape": (1, w.shape[0], 1, 1)})
    return node.add("add", [y, bias])


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    plain = {"kernel": (2, 3), "strides": (1, 1), "pads": (0, 1), "dilations": (1, 1), "groups": 1}
    for changes, shape in (
        ({}, (2, 2, 5, 4)), ({"strides": (2, 1), "groups": 2}, (1, 4, 6, 7)),
        ({"dilations": (2, 2), "pads": (1, 2)}, (1, 1, 5, 6)),
    ):  # fmt: skip
        attrs = {**plain, **changes}
        x = rng.standard_normal(shape).astype(np.float32)
        groups = attrs["groups"]
        for masked in (False, True):
            offset = rng.uniform(-2, 2, (shape[0], groups * 12, 3, 4)).astype(np.float32)
            mask = rng.uniform(0, 1, (shape[0], groups * 6, 3, 4)).astype(np.float32)
            yield Sample((x, offset, mask if masked else None), attrs)  # type: ignore[arg-type]


OPERATORS = [
    Operator(
        name="deform_columns",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"kernel": tuple, "strides": tuple, "pads": tuple, "dilations": tuple, "groups": int},
        compute=_compute,
        samples=_samples,
        depth=lambda types, attrs: 4,
        onnx={"DeformConv": _import},
        doc="what the windows of a deformable convolution see",
    )
]
