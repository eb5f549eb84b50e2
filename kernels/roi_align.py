"""Regions of an image resampled to one size (He et al., 2017: RoIAlign).

y[r, c, i, j] = mean or maximum over a grid of points in bin (i, j) of region r, of image batch[r], linear
between points; a point more than one step outside of the image counts 0. `counts[r]` is the grid's size.
The maximum is, as in ONNX, over the weighted corner points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    add,
    binary,
    cast,
    const,
    div,
    from_index,
    maximum,
    mul,
    select,
    sub,
)
from tilewright.loop.ir import Expr
from tilewright.loop.sampling import taps
from tilewright.registry import ImportNode, Operator, Sample


def _number(attrs: Attrs, name: str) -> float:
    value = attrs[name]
    assert isinstance(value, int | float)
    return float(value)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, rois, batch, counts = types
    assert x is not None and rois is not None and batch is not None and counts is not None
    regions = rois.shape[0] if rois.rank else 0
    fits = rois.shape == (regions, 4) and batch.shape == (regions,) and counts.shape == (regions, 2)
    if x.rank != 4 or 0 in x.shape or not x.dtype.is_float or not fits:
        raise ModelError(f"`roi_align` of {x} in {rois} of images {batch} is not defined")
    return [TensorType(x.dtype, (regions, x.shape[1], *ints(attrs, "sizes")))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, rois = np.asarray(inputs[0], np.float64), np.asarray(inputs[1], np.float64)
    sizes = ints(attrs, "sizes")
    y = np.zeros((len(rois), x.shape[1], *sizes))
    for r, roi in enumerate(rois):
        image = x[np.clip(inputs[2][r], 0, len(x) - 1)]
        low, extent = _region(roi, attrs)
        for i, j in np.ndindex(*sizes):
            points = [
                _point(image, low, extent, (i, j), (a, b), inputs[3][r], sizes)
                for a, b in np.ndindex(*(int(n) for n in inputs[3][r]))
            ]
            if not points:
                continue
            if attrs["maximum"]:
                y[r, :, i, j] = np.max([np.max(p, axis=0) for p in points], axis=0)
            else:
                y[r, :, i, j] = np.mean([np.sum(p, axis=0) for p in points], axis=0)
    return [y.astype(np.asarray(inputs[0]).dtype)]


def _region(roi: Array, attrs: Attrs) -> tuple[Array, Array]:
    """First corner (y, x) and extent."""
    shift = 0.5 if attrs["half_pixel"] else 0.0
    x1, y1, x2, y2 = roi * _number(attrs, "scale") - shift
    extent = np.array([y2 - y1, x2 - x1])
    return np.array([y1, x1]), extent if attrs["half_pixel"] else np.maximum(extent, 1.0)


def _point(
    image: Array,
    low: Array,
    extent: Array,
    bin_: tuple[int, int],
    at: tuple[int, int],
    count: Array,
    sizes: tuple[int, ...],
) -> Array:
    """The weighted corner points `[4, c]` of one sampling point."""
    step = extent / np.array(sizes)
    p = low + step * np.array(bin_) + (np.array(at) + 0.5) * step / count
    dims = np.array(image.shape[1:])
    if (p < -1).any() or (p > dims).any():
        return np.zeros((4, image.shape[0]))
    p = np.clip(p, 0, dims - 1)
    base = np.floor(p).astype(int)
    f = p - base
    corners = [
        image[:, min(base[0] + a, dims[0] - 1), min(base[1] + b, dims[1] - 1)]
        * ((f[0] if a else 1 - f[0]) * (f[1] if b else 1 - f[1]))
        for a in range(2)
        for b in range(2)
    ]
    return np.asarray(corners)


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, _, batch, counts = k.inputs
    assert x is not None and batch is not None and counts is not None
    t, most = k.out_dtype, ints(attrs, "most")
    peak = bool(attrs["maximum"])
    regions, channels, rows, columns = k.out_shape
    with (
        k.loop("r", regions) as r, k.loop("c", channels) as c,
        k.loop("i", rows) as i, k.loop("j", columns) as j,
    ):  # fmt: skip
        image = k.index(batch(r), x.shape[0], wrap=False)
        acc = k.local("acc", t)
        k.set(acc, const(-np.inf if peak else 0.0, t))
        edges = _edges(k, attrs, r)
        with k.loop("a", most[0]) as a, k.loop("b", most[1]) as b:
            at = [
                _position(k, e, o, p, n, counts(r, d), t)
                for d, (e, o, p, n) in enumerate(
                    zip(edges, (i, j), (a, b), ints(attrs, "sizes"), strict=True)
                )
            ]
            value = _value(k, attrs, at, x.shape[2:], lambda index: x(image, c, *index))
            counted = _both(_below(a, counts(r, 0)), _below(b, counts(r, 1)))
            if peak:
                k.set(acc, select(counted, maximum(acc(), value), acc()))
            else:
                k.set(acc, select(counted, add(acc(), value), acc()))
        number = mul(cast(counts(r, 0), t), cast(counts(r, 1), t))
        empty = binary("eq", number, const(0.0, t))
        total = acc() if peak else div(acc(), maximum(number, const(1.0, t)))
        k.emit((r, c, i, j), select(empty, const(0.0, t), total))


def _below(i: Ix, count: Expr) -> Expr:
    return binary("lt", from_index(i, count.dtype), count)


def _both(a: Expr, b: Expr) -> Expr:
    assert a.dtype is BOOL
    return binary("and", a, b)


def _edges(k: KernelBuilder, attrs: Attrs, r: Ix) -> list[tuple[Expr, Expr]]:
    """(first, extent) of region r along y and x."""
    rois, t = k.inputs[1], k.out_dtype
    assert rois is not None
    scale = const(_number(attrs, "scale"), t)
    shift = const(0.5 if attrs["half_pixel"] else 0.0, t)
    out: list[tuple[Expr, Expr]] = []
    for d in (1, 0):
        first = k.let("first", sub(mul(cast(rois(r, d), t), scale), shift))
        extent = sub(sub(mul(cast(rois(r, d + 2), t), scale), shift), first)
        if not attrs["half_pixel"]:
            extent = maximum(extent, const(1.0, t))
        out.append((first, k.let("extent", extent)))
    return out


def _position(
    k: KernelBuilder,
    edge: tuple[Expr, Expr],
    bin_: Ix,
    point: Ix,
    bins: int,
    count: Expr,
    t: Any,
) -> Expr:
    """first + (bin + (point + 1/2) / count) * extent / bins"""
    step = mul(edge[1], const(1 / bins, t))
    inner = div(add(from_index(point, t), const(0.5, t)), cast(count, t))
    return k.let("at", add(edge[0], mul(step, add(from_index(bin_, t), inner))))


def _value(
    k: KernelBuilder, attrs: Attrs, at: Sequence[Expr], extents: Sequence[int], read: Any
) -> Expr:
    """The sum, or the maximum, of weighted corner points; 0 far outside of the image."""
    t = k.out_dtype
    total: Expr | None = None
    for tap in taps(k, at, extents, "linear", "border"):
        assert tap.weight is not None
        value = mul(read(tap.index), tap.weight)
        if total is None:
            total = value
        else:
            total = maximum(total, value) if attrs["maximum"] else add(total, value)
    assert total is not None
    for p, n in zip(at, extents, strict=True):
        near = _both(binary("ge", p, const(-1.0, t)), binary("le", p, const(float(n), t)))
        total = select(near, total, const(0.0, t))
    return total


# ---------------------------------------------------------------- import


def _import(node: ImportNode) -> Sequence[str]:
    sizes = (int(node.attr("output_height", 1)), int(node.attr("output_width", 1)))
    ratio = int(node.attr("sampling_ratio", 0))
    mode = str(node.attr("coordinate_transformation_mode", "half_pixel"))
    attrs: dict[str, Any] = {
        "sizes": sizes,
        "scale": float(node.attr("spatial_scale", 1.0)),
        "half_pixel": node.opset >= 16 and mode == "half_pixel",
        "maximum": str(node.attr("mode", "avg")) == "max",
    }
    regions = node.type(1).shape[0]
    if ratio > 0:
        counts = np.full((regions, 2), ratio, np.int32)
    else:  # as many points as a bin has pixels: another number for each region
        rois = node.need_const(1, "regions of interest without a sampling ratio")
        counts = np.array(
            [
                [max(0, ceil(e / n)) for e, n in zip(_region(r, attrs)[1], sizes, strict=True)]
                for r in rois
            ],
            np.int32,
        ).reshape(regions, 2)
    attrs["most"] = tuple(int(n) for n in counts.max(axis=0, initial=1))
    inputs = [*node.inputs[:3], node.constant(counts, "points")]
    return node.add("roi_align", inputs, attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = rng.standard_normal((2, 3, 7, 6)).astype(np.float32)
    rois = np.array([[0, 0, 5, 6], [-2, 1, 3, 3.5], [4, 4, 9, 9], [2, 2, 2, 2]], np.float32)
    batch, counts = np.array([0, 1, 1, 0]), np.array([[2, 2], [2, 1], [1, 2], [2, 2]], np.int32)
    for half_pixel in (True, False):
        for maximum_ in (True, False):
            attrs = {
                "sizes": (2, 3), "scale": 0.9, "half_pixel": half_pixel, "maximum": maximum_,
                "most": (2, 2),
            }  # fmt: skip
            yield Sample((x, rois, batch, counts), attrs)


OPERATORS = [
    Operator(
        name="roi_align",
        trait="opaque",
        infer=_infer,
        reference=_reference,
        attrs={"sizes": tuple, "scale": float, "half_pixel": bool, "maximum": bool, "most": tuple},
        lower=_lower,
        samples=_samples,
        depth=lambda types, attrs: 64,
        onnx={"RoiAlign": _import},
        doc="regions of an image resampled to one size",
    )
]
