"""Transposed convolution, written as a gather so that every output is summed in registers:

y[n, g*CO+co, oh, ow] = bias + sum over kh, kw, ci of x[n, g*CI+ci, ih, iw] * w[g*CI+ci, co, kh, kw]
    where ih*sh + kh*dh = oh + top and iw*sw + kw*dw = ow + left.

Outputs with the same remainder modulo the stride (a phase) use the same taps, so each phase is an
ordinary small convolution over x: no zeros are inserted and nothing is divided at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, add, const, fma
from tilewright.loop.ir import Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import phases
from tilewright.schedule.trace import Trace


def _ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def _group(attrs: Attrs) -> int:
    g = attrs["group"]
    assert isinstance(g, int)
    return g


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, bias = (*types, None)[:3]
    assert x is not None and w is not None
    g = _group(attrs)
    fits = x.rank == 4 and w.rank == 4 and x.dtype is w.dtype
    if not fits or x.shape[1] != w.shape[0] or w.shape[0] % g:
        raise ModelError(f"`conv_transpose2d` of {x} with weights {w}: the shapes do not fit")
    if bias is not None and bias.shape != (w.shape[1] * g,):
        raise ModelError(f"`conv_transpose2d`: bias {bias} is not [{w.shape[1] * g}]")
    s, d, p, extra = (_ints(attrs, a) for a in ("strides", "dilations", "pads", "output_padding"))
    size = [
        (x.shape[2 + i] - 1) * s[i] + d[i] * (w.shape[2 + i] - 1) + 1 + extra[i] - p[i] - p[2 + i]
        for i in (0, 1)
    ]
    if min(size) < 1:
        raise ModelError(f"`conv_transpose2d` of {x} with weights {w}: the output is empty")
    return [TensorType(x.dtype, (x.shape[0], w.shape[1] * g, size[0], size[1]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, w, bias = (*inputs, None)[:3]
    out = _infer([TensorType(_dt(x), x.shape), TensorType(_dt(w), w.shape)], attrs)[0]
    (sh, sw), (dh, dw), p = (_ints(attrs, a) for a in ("strides", "dilations", "pads"))
    g = _group(attrs)
    n, c, h, wd = x.shape
    co, kh, kw = w.shape[1:]
    _, channels, oh, ow = out.shape
    full = np.zeros((n, channels, oh + p[0] + p[2] + sh + dh * kh, ow + p[1] + p[3] + sw + dw * kw))
    for j in range(g):
        part = x[:, j * c // g : (j + 1) * c // g].astype(np.float64)
        filters = w[j * c // g : (j + 1) * c // g].astype(np.float64)
        for a in range(kh):
            for b in range(kw):
                rows = slice(a * dh, a * dh + (h - 1) * sh + 1, sh)
                cols = slice(b * dw, b * dw + (wd - 1) * sw + 1, sw)
                value = np.einsum("nchw,co->nohw", part, filters[:, :, a, b])
                full[:, j * co : (j + 1) * co, rows, cols] += value
    y = full[:, :, p[0] : p[0] + oh, p[1] : p[1] + ow]
    if bias is not None:
        y = y + bias.reshape(1, -1, 1, 1)
    return [np.ascontiguousarray(y).astype(x.dtype)]


def _dt(x: Array) -> Any:
    from tilewright.core.dtypes import dtype

    return dtype(x.dtype)


def _phase(out: int, phase: int, kernel: int, stride: int, dilation: int, before: int) -> tuple[int, list[tuple[int, int]]]:
    """Outputs of a phase (o = stride*q + phase) and its taps (k, shift): input index is q + shift."""
    count = max(0, -(-(out - phase) // stride))
    taps = [
        (k, (phase + before - k * dilation) // stride)
        for k in range(kernel)
        if (phase + before - k * dilation) % stride == 0
    ]
    return count, taps


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, bias = (*k.inputs, None)[:3]
    assert x is not None and w is not None
    (sh, sw), (dh, dw), p = (_ints(attrs, a) for a in ("strides", "dilations", "pads"))
    g_count = _group(attrs)
    batch, channels, height, width = k.out_shape
    ci_count, co_count = x.shape[1] // g_count, channels // g_count
    for ph in range(sh):
        rows, taps_h = _phase(height, ph, w.shape[2], sh, dh, p[0])
        for pw in range(sw):
            cols, taps_w = _phase(width, pw, w.shape[3], sw, dw, p[1])
            if rows == 0 or cols == 0:
                continue
            with (
                k.loop("n", batch) as n,
                k.loop("g", g_count) as g,
                k.loop("oh", rows) as oh,
                k.loop("ow", cols) as ow,
                k.loop("co", co_count) as co,
            ):
                acc = k.local("acc", k.out_dtype)
                k.set(acc, const(0, k.out_dtype))
                for kh, ah in taps_h:
                    for kw, aw in taps_w:
                        with k.loop("ci", ci_count) as ci:
                            c = g * ci_count + ci
                            k.set(acc, fma(x(n, c, oh + ah, ow + aw), w(c, co, kh, kw), acc()))
                o = g * co_count + co
                value = acc() if bias is None else add(acc(), bias(o))
                k.emit((n, o, oh * sh + ph, ow * sw + pw), value)


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return phases(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    out = _infer(types, attrs)[0]
    s, d, p = (_ints(attrs, a) for a in ("strides", "dilations", "pads"))
    halo: list[tuple[int, int]] = [(0, 0), (0, 0)]
    for i in (0, 1):
        lo = hi = 0
        for phase in range(s[i]):
            count, taps = _phase(out.shape[2 + i], phase, w.shape[2 + i], s[i], d[i], p[i])
            for _, shift in taps:
                lo = max(lo, -shift)
                hi = max(hi, count - 1 + shift - (x.shape[2 + i] - 1))
        halo.append((lo, hi))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: tuple(halo)}, out_order=(0, 2, 3, 1))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    return 2 * x.size * w.shape[1] * w.shape[2] * w.shape[3]


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    w = types[1]
    assert w is not None
    return w.shape[0] * w.shape[2] * w.shape[3]


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    x, w = node.type(0), node.type(1)
    spatial = x.rank - 2
    if spatial not in (1, 2):
        raise node.fail(f"ConvTranspose over {spatial} spatial dims is not supported (1 and 2 are)")
    strides = [int(v) for v in node.attr("strides", (1,) * spatial)]
    dilations = [int(v) for v in node.attr("dilations", (1,) * spatial)]
    pads = [int(v) for v in node.attr("pads", (0,) * (2 * spatial))]
    extra = [int(v) for v in node.attr("output_padding", (0,) * spatial)]
    auto = str(node.attr("auto_pad", "NOTSET"))
    wanted = node.attr("output_shape")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        for i, n in enumerate(list(wanted)[-spatial:]):
            full = strides[i] * (x.shape[2 + i] - 1) + dilations[i] * (w.shape[2 + i] - 1) + 1
            total = max(full + extra[i] - int(n), 0)
            small = total // 2
            upper = auto != "SAME_UPPER"
            pads[i], pads[spatial + i] = (total - small, small) if upper else (small, total - small)
    if any(v < 0 for v in pads):
        raise node.fail(f"ConvTranspose with negative pads {pads} is not supported")
    inputs = list(node.inputs[: 3 if node.has(2) else 2])
    if spatial == 1:
        strides, dilations, extra = [1, *strides], [1, *dilations], [0, *extra]
        pads = [0, pads[0], 0, pads[1]]
        for i in (0, 1):
            t = node.type(i)
            shape = (*t.shape[:2], 1, t.shape[2])
            inputs[i] = node.add("reshape", [inputs[i]], {"shape": shape})[0]
    attrs = {
        "strides": tuple(strides), "pads": tuple(pads), "dilations": tuple(dilations),
        "output_padding": tuple(extra), "group": int(node.attr("group", 1)),
    }  # fmt: skip
    (y,) = node.add("conv_transpose2d", inputs, attrs)
    if spatial == 1:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    cases = (
        (1, 4, 5, 6, 17, 2, 2, 2, (0, 0, 0, 0), 1, 1, 0), (1, 3, 4, 5, 6, 3, 3, 2, (1, 1, 1, 1), 1, 1, 1),
        (1, 4, 5, 4, 4, 3, 3, 1, (1, 1, 1, 1), 1, 2, 0), (2, 2, 3, 3, 3, 3, 3, 3, (0, 0, 0, 0), 2, 1, 0),
    )  # fmt: skip
    for n, ci, h, w, co, kh, kw, s, pads, d, g, extra in cases:
        attrs = {
            "strides": (s, s), "pads": pads, "dilations": (d, d), "output_padding": (extra, extra),
            "group": g,
        }  # fmt: skip
        yield Sample((f(n, ci, h, w), f(ci, co // g, kh, kw), f(co)), attrs)


OPERATORS = [
    Operator(
        name="conv_transpose2d",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        attrs={
            "strides": tuple, "pads": tuple, "dilations": tuple, "output_padding": tuple, "group": int,
        },  # fmt: skip
        lower=_lower,
        schedule=_schedule,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        onnx={"ConvTranspose": _import},
        doc="transposed convolution over two spatial dims",
    )
]
