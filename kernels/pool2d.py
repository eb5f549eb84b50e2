"""Maximum and average over windows of two spatial dims.

y[n, c, oh, ow] = max (or mean) over kh, kw of x[n, c, oh*sh + kh*dh - top, ow*sw + kw*dw - left]

Indices outside the image read -inf (max) or 0 (mean) from the border that the layout pass provides.
A mean that does not count padding divides by the number of taps inside the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.index import Ix, imax, imin
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, add, const, from_index, maximum, mul
from tilewright.loop.ir import Binary, Expr, Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import depthwise
from tilewright.schedule.trace import Trace


def _ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def _window(attrs: Attrs) -> list[tuple[int, ...]]:
    return [_ints(attrs, a) for a in ("kernel", "strides", "pads", "dilations")]


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    k, s, p, d = _window(attrs)
    if x.rank != 4:
        raise ModelError(f"pooling of {x}: rank 4 is wanted")
    size = [
        (x.shape[2 + i] + p[i] + p[2 + i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i in (0, 1)
    ]
    if min(size) < 1:
        raise ModelError(f"pooling of {x} with a window of {k}: the output is empty")
    return [TensorType(x.dtype, (*x.shape[:2], *size))]


def _lowest(t: Any) -> float | int:
    return -np.inf if t.is_float else int(np.iinfo(t.numpy).min)


def _windows(x: Array, attrs: Attrs, fill: float) -> Array:
    """All windows as (n, c, oh, ow, kh, kw), padded with `fill`."""
    (kh, kw), (sh, sw), p, (dh, dw) = _window(attrs)
    padded = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])), constant_values=fill)
    oh = (padded.shape[2] - dh * (kh - 1) - 1) // sh + 1
    ow = (padded.shape[3] - dw * (kw - 1) - 1) // sw + 1
    a, b, c, d = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded, (*x.shape[:2], oh, ow, kh, kw), (a, b, sh * c, sw * d, dh * c, dw * d)
    )


def _max_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    from tilewright.core.dtypes import dtype

    x = np.asarray(inputs[0])
    return [_windows(x, attrs, _lowest(dtype(x.dtype))).max(axis=(4, 5))]


def _avg_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    total = _windows(x.astype(np.float64), attrs, 0.0).sum(axis=(4, 5))
    count: Any = np.prod(_ints(attrs, "kernel"))
    if not attrs["count_include_pad"]:
        count = _windows(np.ones_like(x, np.float64), attrs, 0.0).sum(axis=(4, 5))
    return [(total / count).astype(x.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs, average: bool) -> None:
    x = k.inputs[0]
    assert x is not None
    (kh_n, kw_n), (sh, sw), pads, (dh, dw) = _window(attrs)
    batch, channels, height, width = k.out_shape
    start = 0 if average else _lowest(k.out_dtype)
    with (
        k.loop("n", batch) as n,
        k.loop("oh", height) as oh,
        k.loop("ow", width) as ow,
        k.loop("c", channels) as c,
    ):
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(start, k.out_dtype))
        with k.loop("kh", kh_n) as kh, k.loop("kw", kw_n) as kw:
            pixel = x(n, c, oh * sh + kh * dh - pads[0], ow * sw + kw * dw - pads[1])
            k.set(acc, add(acc(), pixel) if average else maximum(acc(), pixel))
        value: Expr = acc()
        if average:
            value = mul(value, _inverse_count(x.shape, attrs, oh, ow, k))
        k.emit((n, c, oh, ow), value)


def _inverse_count(
    shape: tuple[int, ...], attrs: Attrs, oh: Ix, ow: Ix, k: KernelBuilder
) -> Expr:
    """1 / number of taps that count."""
    (kh, kw), (sh, sw), p, (dh, dw) = _window(attrs)
    if attrs["count_include_pad"] or (not any(p)):
        return const(1.0 / (kh * kw), k.out_dtype)
    taps: list[Expr] = []
    for o, n, count, s, d, before in ((oh, shape[2], kh, sh, dh, p[0]), (ow, shape[3], kw, sw, dw, p[1])):
        start = o * s - before
        first = imax((start * -1 + (d - 1)) // d, 0)  # first tap with index >= 0
        last = imin((start * -1 + (n - 1 + d)) // d, count)  # one past the last tap inside
        taps.append(from_index(k.simplify((last - first,))[0], k.out_dtype))
    return Binary("div", const(1.0, k.out_dtype), mul(taps[0], taps[1]))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return depthwise(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs, fill: float) -> LayoutWish:
    x = types[0]
    assert x is not None
    k, s, p, d = _window(attrs)
    out = _infer(types, attrs)[0]
    halo: list[tuple[int, int]] = [(0, 0), (0, 0)]
    for i in (0, 1):
        reach = (out.shape[2 + i] - 1) * s[i] + (k[i] - 1) * d[i] - p[i] - (x.shape[2 + i] - 1)
        halo.append((p[i], max(reach, 0)))
    return LayoutWish(
        orders={0: (0, 2, 3, 1)}, halos={0: tuple(halo)}, fill=fill, out_order=(0, 2, 3, 1)
    )


def _max_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    assert types[0] is not None
    return _wishes(types, attrs, float(_lowest(types[0].dtype)))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    kh, kw = _ints(attrs, "kernel")
    return _infer(types, attrs)[0].size * kh * kw


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    kh, kw = _ints(attrs, "kernel")
    return kh * kw


# ---------------------------------------------------------------- importers


def _geometry(node: ImportNode) -> tuple[str, dict[str, Any], int]:
    """Input (as rank 4), attributes and number of spatial dims of MaxPool / AveragePool."""
    x = node.type(0)
    spatial = x.rank - 2
    if spatial not in (1, 2):
        raise node.fail(f"{node.op_type} over {spatial} spatial dims is not supported (1 and 2 are)")
    kernel = [int(v) for v in node.attr("kernel_shape")]
    strides = [int(v) for v in node.attr("strides", (1,) * spatial)]
    dilations = [int(v) for v in node.attr("dilations", (1,) * spatial)]
    pads = [int(v) for v in node.attr("pads", (0,) * (2 * spatial))]
    auto = str(node.attr("auto_pad", "NOTSET"))
    for i in range(spatial):
        n, reach = x.shape[2 + i], dilations[i] * (kernel[i] - 1) + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-n // strides[i]) - 1) * strides[i] + reach - n, 0)
            lo = total // 2 if auto == "SAME_UPPER" else total - total // 2
            pads[i], pads[spatial + i] = lo, total - lo
        elif auto == "VALID":
            pads[i] = pads[spatial + i] = 0
        if node.attr("ceil_mode", 0):
            room = n + pads[i] + pads[spatial + i] - reach
            count = -(-room // strides[i]) + 1
            if (count - 1) * strides[i] >= n + pads[i]:
                count -= 1  # the last window would start in the padding
            pads[spatial + i] += max((count - 1) * strides[i] - room, 0)
    value = node.inputs[0]
    if spatial == 1:
        (value,) = node.add("reshape", [value], {"shape": (*x.shape[:2], 1, x.shape[2])})
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
    attrs = {
        "kernel": tuple(kernel), "strides": tuple(strides), "pads": tuple(pads),
        "dilations": tuple(dilations),
    }  # fmt: skip
    return value, attrs, spatial


def _finish(node: ImportNode, y: str, spatial: int) -> Sequence[str]:
    if spatial == 1:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _import_max(node: ImportNode) -> Sequence[str]:
    if node.output_count > 1:
        raise node.fail("MaxPool with the Indices output is not supported")
    value, attrs, spatial = _geometry(node)
    (y,) = node.add("max_pool2d", [value], attrs)
    return _finish(node, y, spatial)


def _import_avg(node: ImportNode) -> Sequence[str]:
    declared = tuple(int(v) for v in node.attr("pads", ()))
    value, attrs, spatial = _geometry(node)
    include = bool(node.attr("count_include_pad", 0))
    if include and node.attr("ceil_mode", 0) and attrs["pads"] != declared and spatial == 2:
        raise node.fail("AveragePool with count_include_pad and ceil_mode is not supported")
    (y,) = node.add("avg_pool2d", [value], {**attrs, "count_include_pad": include})
    return _finish(node, y, spatial)


def _samples(average: bool) -> Any:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        cases = (
            ((1, 17, 8, 9), (3, 3), (2, 2), (1, 1, 1, 1)), ((1, 4, 7, 6), (2, 2), (2, 2), (0, 0, 1, 0)),
            ((2, 20, 5, 5), (5, 5), (1, 1), (2, 2, 2, 2)), ((1, 3, 6, 1), (3, 1), (1, 1), (1, 0, 1, 0)),
        )  # fmt: skip
        for shape, kernel, strides, pads in cases:
            for include in (True, False) if average else (False,):
                attrs: dict[str, Any] = {
                    "kernel": kernel, "strides": strides, "pads": pads, "dilations": (1, 1),
                }  # fmt: skip
                if average:
                    attrs["count_include_pad"] = include
                yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)

    return samples


_ATTRS = {"kernel": tuple, "strides": tuple, "pads": tuple, "dilations": tuple}

OPERATORS = [
    Operator(
        name="max_pool2d", trait="reduction", infer=_infer, reference=_max_reference, attrs=_ATTRS,
        lower=lambda k, attrs: _lower(k, attrs, average=False), schedule=_schedule,
        wishes=_max_wishes, samples=_samples(False), flops=_flops, onnx={"MaxPool": _import_max},
        doc="largest value of each window; pads are (top, left, bottom, right)",
    ),
    Operator(
        name="avg_pool2d", trait="reduction", infer=_infer, reference=_avg_reference,
        attrs={**_ATTRS, "count_include_pad": bool},
        lower=lambda k, attrs: _lower(k, attrs, average=True), schedule=_schedule,
        wishes=lambda types, attrs: _wishes(types, attrs, 0.0), samples=_samples(True),
        flops=_flops, depth=_depth, onnx={"AveragePool": _import_avg},
        doc="mean of each window; pads are (top, left, bottom, right)",
    ),
]  # fmt: skip
