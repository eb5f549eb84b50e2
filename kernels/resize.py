"""Resampling of an image or any tensor: nearest, linear or cubic interpolation per dim.

Output coordinate o maps to a source coordinate c by the model's coordinate transformation; then
    nearest  y[o] = x[round(c)]
    linear   y[o] = sum over the 2 neighbours of c of weight * x
    cubic    y[o] = sum over the 4 neighbours (Keys 1981, coefficient a)
Shapes are static, so source positions and weights are tables computed at compile time; where a
position is an affine function of o (factor-2 upsampling) it stays an index expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, floor
from typing import Any

import numpy as np

from tilewright.core.dtypes import I64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    const,
    from_index,
    mul,
    select,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

_COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric",
)  # fmt: skip


def _tuple(attrs: Attrs, name: str) -> tuple[Any, ...]:
    value = attrs[name]
    assert isinstance(value, tuple)
    return value


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    sizes = tuple(int(n) for n in _tuple(attrs, "sizes"))
    if len(sizes) != x.rank or any(n < 1 for n in sizes):
        raise ModelError(f"`resize` of {x} to {list(sizes)}: sizes do not fit")
    return [TensorType(x.dtype, sizes)]


def _coordinate(o: int, n_in: int, n_out: int, scale: float, mode: str) -> float:
    match mode:
        case "half_pixel":
            return (o + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (o + 0.5) / scale - 0.5 if n_out > 1 else 0.0
        case "asymmetric":
            return o / scale
        case "align_corners":
            return o * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
        case _:  # half_pixel_symmetric
            adjust = n_out / (scale * n_in)
            return n_in / 2 * (1 - adjust) + (o + 0.5) / scale - 0.5


def _nearest(c: float, mode: str) -> int:
    match mode:
        case "round_prefer_floor":
            return ceil(c - 0.5)
        case "round_prefer_ceil":
            return floor(c + 0.5)
        case "floor":
            return floor(c)
        case _:
            return ceil(c)


def _cubic(t: float, a: float) -> list[float]:
    """Keys' weights of the neighbours at -1, 0, 1, 2 for the fraction t."""
    s = 1 - t
    return [
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * s - (a + 3)) * s * s + 1,
        ((a * (s + 1) - 5 * a) * (s + 1) + 8 * a) * (s + 1) - 4 * a,
    ]


def _taps(attrs: Attrs, shape: Sequence[int], d: int) -> tuple[np.ndarray, np.ndarray]:
    """Source positions and weights of dim d: two arrays of shape (outputs, taps)."""
    n_in, n_out = shape[d], int(_tuple(attrs, "sizes")[d])
    scale = float(_tuple(attrs, "scales")[d])
    mode, coord = str(attrs["mode"]), str(attrs["coord"])
    rows: list[list[int]] = []
    weights: list[list[float]] = []
    for o in range(n_out):
        c = _coordinate(o, n_in, n_out, scale, coord)
        if mode == "nearest":
            rows.append([min(max(_nearest(c, str(attrs["nearest_mode"])), 0), n_in - 1)])
            weights.append([1.0])
            continue
        if mode == "linear":
            c = min(max(c, 0.0), n_in - 1.0)
            base, w = floor(c), [1 - (c - floor(c)), c - floor(c)]
            at = [base, base + 1]
        else:
            base = floor(c)
            w = _cubic(c - base, float(attrs["cubic_a"]))  # type: ignore[arg-type]
            at = [base - 1, base, base + 1, base + 2]
            if attrs["exclude_outside"]:
                w = [v if 0 <= p < n_in else 0.0 for v, p in zip(w, at, strict=True)]
                w = [v / sum(w) for v in w]
        rows.append([min(max(p, 0), n_in - 1) for p in at])
        weights.append(w)
    return np.array(rows), np.array(weights)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    y = x.astype(np.float64) if x.dtype.kind == "f" else x
    for d in range(x.ndim):
        if (
            int(_tuple(attrs, "sizes")[d]) == x.shape[d]
            and float(_tuple(attrs, "scales")[d]) == 1.0
        ):
            continue
        rows, weights = _taps(attrs, x.shape, d)
        if attrs["mode"] == "nearest":
            y = np.take(y, rows[:, 0], axis=d)
            continue
        bend = [1] * x.ndim
        bend[d] = -1
        parts = [
            np.take(y, rows[:, t], axis=d) * weights[:, t].reshape(bend)
            for t in range(rows.shape[1])
        ]
        y = sum(parts[1:], parts[0])
    return [np.asarray(y).astype(x.dtype)]


def _affine(rows: np.ndarray) -> tuple[int, int, int] | None:
    """(a, b, q) with rows[o] == (a*o + b) // q for all o, if there is such a small form."""
    n = len(rows)
    o = np.arange(n)
    for q in (1, 2, 3, 4, 8, 16, 32):
        for a in (1, 2, 3, 4, 8):
            b = int(rows[0]) * q
            for shift in range(q):
                if np.array_equal((a * o + b + shift) // q, rows):
                    return a, b + shift, q
    return None


def _position(rows: np.ndarray, i: Ix, k: KernelBuilder, n: int) -> Ix:
    """Source position as an index: a quotient where possible, else a choice among constants."""
    form = _affine(rows)
    if form is not None:
        a, b, q = form
        return (i * a + b) // q
    return k.index(_table(rows, i), n, wrap=False)


def _table(values: np.ndarray, i: Ix) -> Expr:
    """values[i] by binary search over constants (tables are short: one entry per output row)."""

    def pick(lo: int, hi: int) -> Expr:
        if len(set(values[lo:hi].tolist())) == 1:
            return const(int(values[lo]), I64)
        mid = (lo + hi) // 2
        here = binary("lt", from_index(i, I64), const(mid, I64))
        return select(here, pick(lo, mid), pick(mid, hi))

    return pick(0, len(values))


def _weight(weights: np.ndarray, i: Ix, out: TensorType, k: KernelBuilder) -> Expr:
    def pick(lo: int, hi: int) -> Expr:
        if np.ptp(weights[lo:hi]) == 0:
            return const(float(weights[lo]), out.dtype)
        mid = (lo + hi) // 2
        here = binary("lt", from_index(i, I64), const(mid, I64))
        return select(here, pick(lo, mid), pick(mid, hi))

    period = next(
        (p for p in (1, 2, 4, 8) if len(weights) > 2 * p and np.ptp(weights[p:] - weights[:-p]) == 0
         and weights[0] == weights[p]),
        None,
    )  # fmt: skip
    if period:
        short = weights[:period]
        return _weight_periodic(short, i % period, out)
    return pick(0, len(weights))


def _weight_periodic(weights: np.ndarray, i: Ix, out: TensorType) -> Expr:
    value: Expr = const(float(weights[-1]), out.dtype)
    for p in range(len(weights) - 2, -1, -1):
        here = binary("eq", from_index(i, I64), const(p, I64))
        value = select(here, const(float(weights[p]), out.dtype), value)
    return value


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    source = x[0]
    assert source is not None
    choices: list[list[tuple[Ix, Expr | None]]] = []
    for d, i in enumerate(index):
        same = source.shape[d] == out.shape[d] and float(_tuple(attrs, "scales")[d]) == 1.0
        if same:
            choices.append([(i, None)])
            continue
        rows, weights = _taps(attrs, source.shape, d)
        taps: list[tuple[Ix, Expr | None]] = []
        for t in range(rows.shape[1]):
            w = None if rows.shape[1] == 1 else k.let("w", _weight(weights[:, t], i, out, k))
            taps.append((_position(rows[:, t], i, k, source.shape[d]), w))
        choices.append(taps)
    total: Expr | None = None
    for combo in product(*choices):
        value = source(*(at for at, _ in combo))
        for _, w in combo:
            if w is not None:
                value = mul(value, w)
        total = value if total is None else add(total, value)
    assert total is not None
    return total


# ---------------------------------------------------------------- importers


def _import_resize(node: ImportNode) -> Sequence[str]:
    shape = node.type(0).shape
    mode = str(node.attr("mode", "nearest"))
    coord = str(node.attr("coordinate_transformation_mode", "half_pixel"))
    legacy = node.opset < 11
    if legacy:
        coord = "asymmetric"
    if mode not in ("nearest", "linear", "cubic") or coord not in _COORDINATES:
        raise node.fail(f"Resize with mode `{mode}` and coordinates `{coord}` is not supported")
    if node.attr("antialias", 0):
        raise node.fail("Resize with antialias is not supported")
    scales_at = 1 if legacy else 2
    axes = [int(a) % len(shape) for a in node.attr("axes", tuple(range(len(shape))))]
    sizes = list(shape)
    scales = [1.0] * len(shape)
    if not legacy and node.has(3) and node.need_const(3, "the sizes").size:
        given = [int(v) for v in node.need_const(3, "the sizes")]
        ratios = [n / shape[a] for a, n in zip(axes, given, strict=True)]
        policy = str(node.attr("keep_aspect_ratio_policy", "stretch"))
        if policy != "stretch":
            r = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [r] * len(axes)
            given = [floor(r * shape[a] + 0.5) for a in axes]
        for a, n, r in zip(axes, given, ratios, strict=True):
            sizes[a], scales[a] = n, r
    else:
        for a, s in zip(axes, node.need_const(scales_at, "the scales").reshape(-1), strict=True):
            scales[a] = float(s)
            sizes[a] = floor(shape[a] * float(s) + 1e-6)
    return _resize(node, sizes, scales, mode, coord, "floor" if legacy else "round_prefer_floor")


def _import_upsample(node: ImportNode) -> Sequence[str]:
    shape = node.type(0).shape
    given = node.attr("scales")
    scales = [
        float(s)
        for s in (given if given is not None else node.need_const(1, "the scales").reshape(-1))
    ]
    sizes = [floor(n * s + 1e-6) for n, s in zip(shape, scales, strict=True)]
    mode = str(node.attr("mode", "nearest"))
    if mode not in ("nearest", "linear"):
        raise node.fail(f"Upsample with mode `{mode}` is not supported")
    return _resize(node, sizes, scales, mode, "asymmetric", "floor")


def _resize(
    node: ImportNode,
    sizes: Sequence[int],
    scales: Sequence[float],
    mode: str,
    coord: str,
    near: str,
) -> Sequence[str]:
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


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, sizes in (
        ((1, 2, 3, 5), (1, 2, 6, 10)),
        ((1, 3, 8, 8), (1, 3, 4, 12)),
        ((1, 1, 5, 7), (1, 1, 8, 9)),
    ):
        for mode in ("nearest", "linear", "cubic"):
            for coord in ("half_pixel", "asymmetric", "align_corners"):
                attrs = {
                    "sizes": sizes,
                    "scales": tuple(b / a for a, b in zip(shape, sizes, strict=True)),
                    "mode": mode,
                    "coord": coord,
                    "nearest_mode": "floor" if coord == "asymmetric" else "round_prefer_floor",
                    "cubic_a": -0.75,
                    "exclude_outside": False,
                }
                yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)


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
        compute=_compute,
        samples=_samples,
        onnx={"Resize": _import_resize, "Upsample": _import_upsample},
        doc="y = x resampled to `sizes`",
    )
]
