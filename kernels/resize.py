"""Resampling of an image or any tensor: nearest, linear or cubic interpolation per dim.

Output position o maps to the source coordinate c = (a*o + b) / q by the model's coordinate
transformation; then
    nearest  y[o] = x[c rounded]
    linear   y[o] = sum over the 2 neighbours of c of weight * x
    cubic    y[o] = sum over the 4 neighbours (Keys 1981, coefficient a)
with neighbours outside of the tensor taken from its edge.
A node may also give a, b and q of each dim (`lines`), and the type of the result (`to`).
Invariant: a, b and q are exact integers, so positions are index expressions and weights polynomials
in the fraction of c; there are no tables, and rounding at a tie does not depend on float arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np

from tilewright.core.attributes import axes_of, ints
from tilewright.core.dtypes import F32, F64, I64, DType, dtype
from tilewright.core.index import Ix, imax, imin
from tilewright.core.resampling import Line, coordinate, line_rounded, over_common, rounded, weights
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    cast,
    const,
    div,
    fma,
    from_index,
    maximum,
    minimum,
    mul,
    select,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners",
    "tf_half_pixel_for_nn",
)  # fmt: skip
#: `simple` is what ONNX did before opset 11: down for enlarging, up for shrinking.
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    sizes, scales = ints(attrs, "sizes"), _scales(attrs)
    for name, known in (("mode", _MODES), ("coord", _COORDINATES), ("nearest_mode", _ROUNDINGS)):
        if attrs[name] not in known:
            raise ModelError(f"`resize`: {name} {attrs[name]} is not one of {', '.join(known)}")
    if not len(sizes) == len(scales) == x.rank or any(n < 1 for n in (*sizes, *x.shape)):
        raise ModelError(
            f"`resize` of {x} to {list(sizes)} wants {x.rank} sizes, none of them 0: repair the model"
        )
    if any(not 0 < s < float("inf") for s in scales):
        raise ModelError(f"`resize` of {x}: scales {list(scales)} must be positive")
    if attrs["mode"] != "nearest" and x.dtype.kind == "bool":
        raise ModelError(f"`resize` interpolates numbers, got {x}: cast it")
    if "lines" in attrs and len(ints(attrs, "lines")) != 3 * x.rank:
        raise ModelError(f"`resize` of {x}: lines {attrs['lines']} must be 3 numbers per dim")
    return [TensorType(dtype(str(attrs["to"])) if "to" in attrs else x.dtype, sizes)]


def _scales(attrs: Attrs) -> tuple[float, ...]:
    scales = attrs["scales"]
    assert isinstance(scales, tuple)
    return tuple(float(s) for s in scales)


# ---------------------------------------------------------------- geometry of one dim


@dataclass(frozen=True, slots=True)
class _Axis:
    """How one dim is resampled.

    Tap t of output position o is source element floor((a*o + b) / q) + first + t, clamped to the dim; its
    weight is the polynomial `weights[t]` (lowest power first) in the fraction ((a*o + b) mod q) / q.
    """

    line: Line
    first: int
    weights: tuple[tuple[float, ...], ...]


def _axis(attrs: Attrs, n_in: int, d: int) -> _Axis | None:
    """The resampling of dim d, None if the dim stays as it is."""
    n_out, scale = ints(attrs, "sizes")[d], _scales(attrs)[d]
    if n_in == n_out and scale == 1.0:
        return None
    if "lines" in attrs:
        a, b, q = ints(attrs, "lines")[3 * d : 3 * d + 3]
        slope, offset = Fraction(a, q), Fraction(b, q)
    else:
        slope, offset = coordinate(str(attrs["coord"]), n_in, n_out, scale)
    if attrs["mode"] == "nearest":
        rounding = str(attrs["nearest_mode"])
        if rounding == "simple":
            rounding = "floor" if scale >= 1 else "ceil"
        return _Axis(line_rounded(slope, offset, rounding), 0, ((1.0,),))
    line = over_common(slope, offset)
    if attrs["mode"] == "linear":
        return _trimmed(_Axis(line, 0, ((1.0, -1.0), (0.0, 1.0))))
    a = float(attrs["cubic_a"])  # type: ignore[arg-type]
    keys = (
        (0.0, a, -2 * a, a),
        (1.0, 0.0, -(a + 3), a + 2),
        (0.0, -a, 2 * a + 3, -(a + 2)),
        (0.0, 0.0, a, -a),
    )
    return _trimmed(_Axis(line, -1, keys))


def _trimmed(axis: _Axis) -> _Axis:
    """Without fractions (q = 1) only one tap has a weight other than 0."""
    if axis.line.q > 1:
        return axis
    return _Axis(axis.line, 0, ((1.0,),))


# ---------------------------------------------------------------- reference


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    y = x.astype(np.float64) if attrs["mode"] != "nearest" else x
    for d, n_in in enumerate(x.shape):
        axis = _axis(attrs, n_in, d)
        if axis is None:
            continue
        at = np.arange(ints(attrs, "sizes")[d]) * axis.line.a + axis.line.b
        rows = (at // axis.line.q + axis.first)[:, None] + np.arange(len(axis.weights))
        inside = (rows >= 0) & (rows < n_in)
        rows = np.clip(rows, 0, n_in - 1)
        if attrs["mode"] == "nearest":
            y = np.take(y, rows[:, 0], axis=d)
            continue
        t = at % axis.line.q / axis.line.q
        powers = t[:, None] ** np.arange(len(axis.weights[0]))
        weights = powers @ np.array(axis.weights).T
        if _excludes(attrs):
            weights = np.where(inside, weights, 0)
            weights = weights / weights.sum(axis=1, keepdims=True)
        bend = [1] * x.ndim
        bend[d] = -1
        parts = (
            np.take(y, r, axis=d) * w.reshape(bend) for r, w in zip(rows.T, weights.T, strict=True)
        )
        y = np.asarray(sum(parts))
    to = dtype(str(attrs["to"])).numpy if "to" in attrs else x.dtype
    if to.kind in "iu" and attrs["mode"] != "nearest":
        info = np.iinfo(to)
        y = np.clip(y, info.min, info.max)
    return [np.asarray(y).astype(to)]


def _excludes(attrs: Attrs) -> bool:
    """Whether taps outside of the tensor get no weight (ONNX means this for cubic only)."""
    return bool(attrs["exclude_outside"]) and attrs["mode"] == "cubic"


# ---------------------------------------------------------------- expression

#: Source positions of one dim with their weights; None: a weight of 1.
_Taps = list[tuple[Ix, Expr | None]]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    """Dim by dim: the weighted sum over one dim's taps of the weighted sums over the later dims."""
    source = x[0]
    assert source is not None
    work = F64 if out.dtype is F64 else F32
    interpolates = attrs["mode"] != "nearest"
    taps: list[_Taps] = []
    for d, i in enumerate(index):
        axis = _axis(attrs, source.shape[d], d)
        taps.append(
            [(i, None)] if axis is None else _taps(axis, attrs, i, source.shape[d], work, k)
        )

    def total(at: tuple[Ix, ...]) -> Expr:
        if len(at) == len(taps):
            value = source(*at)
            return cast(value, work) if interpolates else value
        acc: Expr | None = None
        for position, weight in taps[len(at)]:
            value = total((*at, position))
            if weight is not None:
                value = mul(value, weight) if acc is None else fma(value, weight, acc)
            acc = value
        assert acc is not None
        return acc

    return _delivered(total(()), out.dtype)


def _delivered(value: Expr, to: DType) -> Expr:
    """The result in its own type: integers truncate and saturate."""
    if value.dtype is to or not to.is_integer:
        return cast(value, to)
    info = np.iinfo(to.numpy)  # type: ignore[arg-type]
    low, high = const(float(info.min), value.dtype), const(float(info.max), value.dtype)
    return cast(minimum(maximum(value, low), high), to)


def _taps(axis: _Axis, attrs: Attrs, i: Ix, n: int, work: DType, k: KernelBuilder) -> _Taps:
    line = axis.line
    at = i * line.a + line.b
    base = at // line.q + axis.first
    rows = [base + t for t in range(len(axis.weights))]
    clamped = [imin(imax(r, 0), n - 1) for r in rows]
    if len(rows) == 1:
        return [(clamped[0], None)]
    (phase,) = k.simplify((at % line.q,))
    t = k.let("t", mul(from_index(phase, work), const(1 / line.q, work)))
    weights = [k.let("w", _polynomial(p, t, work)) for p in axis.weights]
    if _excludes(attrs):
        weights = _renormalised(rows, weights, n, work, k)
    return list(zip(clamped, weights, strict=True))


def _polynomial(coefficients: Sequence[float], t: Expr, work: DType) -> Expr:
    value: Expr = const(coefficients[-1], work)
    for c in reversed(coefficients[:-1]):
        value = fma(value, t, const(c, work))
    return value


def _renormalised(
    rows: Sequence[Ix], weights: Sequence[Expr], n: int, work: DType, k: KernelBuilder
) -> list[Expr]:
    """Weights of rows outside 0 .. n - 1 become 0, the others are scaled to a sum of 1."""
    kept: list[Expr] = []
    for row, w in zip(rows, weights, strict=True):
        r = from_index(row, I64)
        here = binary("and", binary("ge", r, const(0, I64)), binary("lt", r, const(n, I64)))
        kept.append(k.let("w", select(here, w, const(0.0, work))))
    whole = kept[0]
    for w in kept[1:]:
        whole = add(whole, w)
    scale = k.let("s", div(const(1.0, work), whole))
    return [k.let("w", mul(w, scale)) for w in kept]


# ---------------------------------------------------------------- importers


def _import_resize(node: ImportNode) -> Sequence[str]:
    """Scales are input 1 before opset 11; then scales or sizes, of all dims or of `axes`."""
    shape = node.type(0).shape
    legacy = node.opset < 11
    coord = "asymmetric"
    if not legacy:
        coord = str(node.attr("coordinate_transformation_mode", "half_pixel"))
    axes = axes_of(node.attr("axes", tuple(range(len(shape)))), len(shape))
    scales_at = 1 if legacy else 2
    if not legacy and node.has(3) and node.need_const(3, "the sizes").size:
        sizes, scales = _from_sizes(node, shape, axes)
    else:
        given = node.need_const(scales_at, "the scales").reshape(-1)
        sizes, scales = _from_scales(shape, axes, given)
    if coord == "tf_crop_and_resize" or (node.attr("antialias", 0) and min(scales) < 1):
        return _by_tables(node, axes, sizes, scales, coord)
    return _resize(node, sizes, scales, coord, "simple" if legacy else "round_prefer_floor")


#: Longer filters are a product with a dense table.
_LONGEST = 48


def _by_tables(
    node: ImportNode,
    axes: Sequence[int],
    sizes: Sequence[int],
    scales: Sequence[float],
    coord: str,
) -> Sequence[str]:
    """Dim by dim with a table of indices or weights; what a crop shows of outside is one value."""
    x, mode = node.type(0), str(node.attr("mode", "nearest"))
    if mode not in _MODES or coord not in (*_COORDINATES, "tf_crop_and_resize"):
        raise node.fail(f"mode {mode} of {coord} is not known: repair the model")
    crop = coord == "tf_crop_and_resize"
    roi = node.need_const(1, "the region of interest").reshape(-1) if crop else np.zeros(0)
    if crop and roi.size != 2 * len(axes):
        raise node.fail(f"the region of interest has {roi.size} numbers, not {2 * len(axes)}")
    value = node.inputs[0]
    if mode != "nearest" and not x.dtype.is_float:
        (value,) = node.add("cast", [value], {"to": "f32"})
    outside: list[tuple[int, Array]] = []
    for i, d in enumerate(axes):
        n, part = x.shape[d], (0.0, 1.0)
        if crop:
            part = (float(roi[i]), float(roi[len(axes) + i]))
        if sizes[d] == n and scales[d] == 1 and part == (0.0, 1.0):
            continue
        slope, offset = coordinate(coord, n, sizes[d], scales[d], part)
        places = [o * slope + offset for o in range(sizes[d])]
        if crop and any(not 0 <= p <= n - 1 for p in places):
            outside.append((d, np.array([not 0 <= p <= n - 1 for p in places])))
        value = _along(node, value, d, places, mode, scales[d])
    if outside:
        value = _extrapolated(node, value, outside)
    if node.type_of(value).dtype is not x.dtype:
        (value,) = node.add("cast", [value], {"to": x.dtype.name})
    return [value]


def _along(
    node: ImportNode, value: str, d: int, places: Sequence[Fraction], mode: str, scale: float
) -> str:
    """`value` at these coordinates of dim d."""
    t = node.type_of(value)
    n = t.shape[d]
    if mode == "nearest":
        near = str(node.attr("nearest_mode", "round_prefer_floor"))
        at = np.clip(np.array([rounded(p, near) for p in places], np.int64), 0, n - 1)
        return node.add("gather", [value, node.constant(at, "at")], {"axis": d})[0]
    stretch = min(scale, 1.0) if node.attr("antialias", 0) else 1.0
    exclude = bool(node.attr("exclude_outside", 0))
    a = float(node.attr("cubic_coeff_a", -0.75))
    table = weights(list(places), n, mode, stretch, a, exclude)
    used = table != 0
    starts = used.argmax(axis=1)
    taps = int((n - used[:, ::-1].argmax(axis=1) - starts).max())
    if taps > _LONGEST:
        order = (*(k for k in range(t.rank) if k != d), d)
        back = tuple(int(k) for k in np.argsort(order))
        (value,) = node.add("transpose", [value], {"perm": order})
        full = node.constant(table.T.astype(t.dtype.numpy), "weights")
        return node.add("transpose", node.add("matmul", [value, full]), {"perm": back})[0]
    starts = np.minimum(starts, n - taps).astype(np.int64)
    short = np.take_along_axis(table, starts[:, None] + np.arange(taps), axis=1)
    names = [node.constant(starts, "starts"), node.constant(short.astype(t.dtype.numpy), "weights")]
    return node.add("resample", [value, *names], {"axis": d})[0]


def _extrapolated(node: ImportNode, value: str, outside: Sequence[tuple[int, Array]]) -> str:
    t = node.type_of(value)
    mask: Array = np.zeros((1,) * t.rank, np.bool_)
    for d, flags in outside:
        mask = mask | flags.reshape([-1 if k == d else 1 for k in range(t.rank)])
    fill = np.asarray(node.attr("extrapolation_value", 0.0)).astype(t.dtype.numpy)
    names = [node.constant(mask, "outside"), node.constant(fill, "fill"), value]
    return node.add("where", names)[0]


def _from_scales(
    shape: Sequence[int], axes: Sequence[int], given: Array
) -> tuple[list[int], list[float]]:
    """The product is rounded to float32 before it is rounded down, as in ONNX Runtime."""
    sizes, scales = list(shape), [1.0] * len(shape)
    for a, s in zip(axes, given, strict=True):
        sizes[a], scales[a] = floor(np.float32(shape[a]) * np.float32(s)), float(s)
    return sizes, scales


def _from_sizes(
    node: ImportNode, shape: Sequence[int], axes: Sequence[int]
) -> tuple[list[int], list[float]]:
    given = [int(v) for v in node.need_const(3, "the sizes").reshape(-1)]
    sizes, scales = list(shape), [1.0] * len(shape)
    ratios = [n / shape[a] for a, n in zip(axes, given, strict=True)]
    policy = str(node.attr("keep_aspect_ratio_policy", "stretch"))
    if policy not in ("stretch", "not_larger", "not_smaller"):
        raise node.fail(f"keep_aspect_ratio_policy {policy} is unknown: repair the model")
    if policy != "stretch":
        r = min(ratios) if policy == "not_larger" else max(ratios)
        ratios = [r] * len(axes)
        given = [floor(r * shape[a] + 0.5) for a in axes]
    for a, n, r in zip(axes, given, ratios, strict=True):
        sizes[a], scales[a] = n, r
    return sizes, scales


def _import_upsample(node: ImportNode) -> Sequence[str]:
    """Scales are an attribute before opset 9 and an input from then on."""
    shape = node.type(0).shape
    given = node.attr("scales")
    values = node.need_const(1, "the scales").reshape(-1) if given is None else np.asarray(given)
    sizes, scales = _from_scales(shape, range(len(shape)), values)
    return _resize(node, sizes, scales, "asymmetric", "simple")


def _resize(
    node: ImportNode, sizes: Sequence[int], scales: Sequence[float], coord: str, near: str
) -> Sequence[str]:
    mode = str(node.attr("mode", "nearest"))
    if mode not in _MODES:
        raise node.fail(f"mode {mode} is not supported: use one of {', '.join(_MODES)}")
    attrs = {
        "sizes": tuple(sizes),
        "scales": tuple(scales),
        "mode": mode,
        "coord": coord,
        "nearest_mode": str(node.attr("nearest_mode", near)),
        "cubic_a": float(node.attr("cubic_coeff_a", -0.75)),
        "exclude_outside": bool(node.attr("exclude_outside", 0)),
    }
    return node.add("resize", [node.inputs[0]], attrs)


# ---------------------------------------------------------------- samples


def _attrs(
    shape: Sequence[int],
    sizes: Sequence[int],
    mode: str,
    coord: str = "half_pixel",
    near: str = "round_prefer_floor",
    exclude: bool = False,
) -> Attrs:
    scales = tuple(b / a for a, b in zip(shape, sizes, strict=True))
    return {
        "sizes": tuple(sizes), "scales": scales, "mode": mode, "coord": coord, "nearest_mode": near,
        "cubic_a": -0.75, "exclude_outside": exclude,
    }  # fmt: skip


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(shape: Sequence[int]) -> Array:
        return np.asarray(rng.standard_normal(shape), np.float32)

    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
        ((1, 2, 3, 5), (1, 2, 6, 10)), ((1, 3, 8, 8), (1, 3, 4, 12)), ((1, 1, 5, 7), (1, 1, 8, 1)),
    )  # fmt: skip
    for shape, sizes in shapes:
        for mode in _MODES:
            for coord in ("half_pixel", "asymmetric", "align_corners"):
                yield Sample((f(shape),), _attrs(shape, sizes, mode, coord))
    for coord in _COORDINATES:
        yield Sample((f((7,)),), _attrs((7,), (17,), "linear", coord))
        for near in _ROUNDINGS:
            yield Sample((f((7,)),), _attrs((7,), (16,), "nearest", coord, near))
            yield Sample((f((16,)),), _attrs((16,), (7,), "nearest", coord, near))
    bytes_ = rng.integers(-128, 128, (1, 3, 5, 4)).astype(np.int8)
    lines = (1, 0, 1, 1, 0, 1, 731, -147, 1024, 455, 0, 1024)
    given = {**_attrs((1, 3, 5, 4), (1, 3, 7, 9), "linear"), "lines": lines, "to": "f32"}
    yield Sample((bytes_,), given)
    yield Sample((f((2, 3, 5, 4)),), _attrs((2, 3, 5, 4), (2, 3, 7, 9), "cubic", exclude=True))
    yield Sample((f((3, 4, 5)),), _attrs((3, 4, 5), (5, 3, 33), "linear"))
    yield Sample((f(()),), _attrs((), (), "linear"))
    yield Sample((f((2, 1, 3, 1, 4)),), _attrs((2, 1, 3, 1, 4), (2, 1, 5, 2, 7), "linear"))
    yield Sample((f((1, 1, 4)),), {**_attrs((1, 1, 4), (1, 1, 5), "linear"), "scales": (1, 1, 1.3)})
    for kind in (np.uint8, np.int32, np.float16):
        x = rng.integers(0, 99, (3, 5)).astype(kind)
        yield Sample((x,), _attrs((3, 5), (6, 9), "linear"))
        yield Sample((x,), _attrs((3, 5), (2, 9), "nearest"))


OPERATORS = [
    Operator(
        name="resize",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={
            "sizes": tuple,
            "scales": tuple,
            "mode": str,
            "coord": str,
            "nearest_mode": str,
            "cubic_a": (int, float),
            "exclude_outside": bool,
        },
        optional_attrs={"lines": tuple, "to": str},
        compute=_compute,
        quantized=lambda q: q.node.attrs["mode"] == "nearest" and movement(q),
        samples=_samples,
        onnx={"Resize": _import_resize, "Upsample": _import_upsample},
        doc="y = x resampled to `sizes`",
    )
]
