"""Two-dimensional convolution (cross-correlation), dense or grouped:

y[n, g*CO+co, oh, ow] = bias[g*CO+co] + sum over kh, kw, ci of
    x[n, g*CI+ci, oh*sh + kh*dh - top, ow*sw + kw*dw - left] * w[g*CO+co, ci, kh, kw]

Indices outside the image read zeros: the layout pass gives x a border, so no kernel tests for edges.
One-dimensional convolutions import with a height of 1.
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
from tilewright.schedule.templates import convolution
from tilewright.schedule.trace import Trace


def _ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    """An attribute that is a tuple of integers."""
    value = attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def _group(attrs: Attrs) -> int:
    g = attrs["group"]
    assert isinstance(g, int)
    return g


def _output_size(x: TensorType, w: TensorType, attrs: Attrs) -> tuple[int, int]:
    s, d, p = _ints(attrs, "strides"), _ints(attrs, "dilations"), _ints(attrs, "pads")
    size = [
        (x.shape[2 + i] + p[i] + p[2 + i] - d[i] * (w.shape[2 + i] - 1) - 1) // s[i] + 1
        for i in (0, 1)
    ]
    return size[0], size[1]


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, bias = (*types, None)[:3]
    assert x is not None and w is not None
    g = _group(attrs)
    fits = x.rank == 4 and w.rank == 4 and x.dtype is w.dtype and g >= 1
    if not fits or x.shape[1] != w.shape[1] * g or w.shape[0] % g:
        raise ModelError(f"`conv2d` of {x} with weights {w} in {g} groups: the shapes do not fit")
    if bias is not None and bias.shape != (w.shape[0],):
        raise ModelError(f"`conv2d`: bias {bias} is not [{w.shape[0]}]")
    oh, ow = _output_size(x, w, attrs)
    if oh < 1 or ow < 1:
        raise ModelError(f"`conv2d` of {x} with weights {w}: the output is empty")
    return [TensorType(x.dtype, (x.shape[0], w.shape[0], oh, ow))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, w, bias = (*inputs, None)[:3]
    (sh, sw), (dh, dw), p = (_ints(attrs, k) for k in ("strides", "dilations", "pads"))
    g = _group(attrs)
    padded = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])))
    o, ci, kh, kw = w.shape
    n, c, h, wd = padded.shape
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (wd - dw * (kw - 1) - 1) // sw + 1
    a, b, s2, s3 = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded, (n, g, ci, kh, kw, oh, ow), (a, ci * b, b, dh * s2, dw * s3, sh * s2, sw * s3)
    )
    out = np.empty((n, g, o // g, oh * ow), np.float64)
    for i in range(n):
        for j in range(g):
            cols = windows[i, j].reshape(ci * kh * kw, oh * ow).astype(np.float64)
            part = w[j * (o // g) : (j + 1) * (o // g)].reshape(o // g, -1).astype(np.float64)
            out[i, j] = part @ cols
    y = out.reshape(n, o, oh, ow)
    if bias is not None:
        y = y + bias.reshape(1, o, 1, 1)
    return [y.astype(x.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, bias = (*k.inputs, None)[:3]
    assert x is not None and w is not None
    (sh, sw), (dh, dw), pads = (_ints(attrs, a) for a in ("strides", "dilations", "pads"))
    top, left = pads[0], pads[1]
    batch, channels, height, width = k.out_shape
    g_count = _group(attrs)
    co_count, ci_count = channels // g_count, w.shape[1]
    with (
        k.loop("n", batch) as n,
        k.loop("g", g_count) as g,
        k.loop("oh", height) as oh,
        k.loop("ow", width) as ow,
        k.loop("co", co_count) as co,
    ):
        o = g * co_count + co
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(0, k.out_dtype))
        with (
            k.loop("kh", w.shape[2]) as kh,
            k.loop("kw", w.shape[3]) as kw,
            k.loop("ci", ci_count) as ci,
        ):
            pixel = x(n, g * ci_count + ci, oh * sh + kh * dh - top, ow * sw + kw * dw - left)
            k.set(acc, fma(pixel, w(o, ci, kh, kw), acc()))
        k.emit((n, o, oh, ow), acc() if bias is None else add(acc(), bias(o)))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return convolution(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Channels last, and a border as wide as the taps reach over the edge."""
    x, w = types[0], types[1]
    assert x is not None and w is not None
    (sh, sw), (dh, dw), p = (_ints(attrs, a) for a in ("strides", "dilations", "pads"))
    oh, ow = _output_size(x, w, attrs)
    reach_h = (oh - 1) * sh + (w.shape[2] - 1) * dh - p[0] - (x.shape[2] - 1)
    reach_w = (ow - 1) * sw + (w.shape[3] - 1) * dw - p[1] - (x.shape[3] - 1)
    halo = ((0, 0), (0, 0), (p[0], max(reach_h, 0)), (p[1], max(reach_w, 0)))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: halo}, out_order=(0, 2, 3, 1))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return 2 * _infer(types, attrs)[0].size * _depth(types, attrs)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    w = types[1]
    assert w is not None
    return w.shape[1] * w.shape[2] * w.shape[3]


# ---------------------------------------------------------------- importer


def _auto_pads(mode: str, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
               dilations: Sequence[int]) -> tuple[int, ...]:  # fmt: skip
    """Pads of SAME_UPPER / SAME_LOWER: the output has ceil(size / stride) elements."""
    before: list[int] = []
    after: list[int] = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        small = total // 2
        lower = mode == "SAME_LOWER"
        before.append(total - small if lower else small)
        after.append(small if lower else total - small)
    return (*before, *after)


def _import(node: ImportNode) -> Sequence[str]:
    """Conv of rank 3 (one spatial dim) or 4; depthwise ones become their own operator."""
    x, w = node.type(0), node.type(1)
    spatial = x.rank - 2
    if spatial not in (1, 2):
        raise node.fail(f"Conv over {spatial} spatial dims is not supported (1 and 2 are)")
    strides = tuple(int(s) for s in node.attr("strides", (1,) * spatial))
    dilations = tuple(int(d) for d in node.attr("dilations", (1,) * spatial))
    auto = str(node.attr("auto_pad", "NOTSET"))
    pads = tuple(int(p) for p in node.attr("pads", (0,) * (2 * spatial)))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _auto_pads(auto, x.shape[2:], w.shape[2:], strides, dilations)
    elif auto == "VALID":
        pads = (0,) * (2 * spatial)
    inputs = list(node.inputs[: 3 if node.has(2) else 2])
    if spatial == 1:
        strides, dilations, pads = (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1])
        for i in (0, 1):
            t = node.type(i)
            shape = (*t.shape[:2], 1, t.shape[2])
            inputs[i] = node.add("reshape", [inputs[i]], {"shape": shape})[0]
    if any(p < 0 for p in pads):
        raise node.fail(f"Conv with negative pads {list(pads)} is not supported")
    group = int(node.attr("group", 1))
    attrs: dict[str, Any] = {"strides": strides, "pads": pads, "dilations": dilations}
    if group == x.shape[1] == w.shape[0] and group > 1:
        (y,) = node.add("depthwise_conv2d", inputs, attrs)
    else:
        (y,) = node.add("conv2d", inputs, {**attrs, "group": group})
    if spatial == 1:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    cases = (
        # n, ci, h, w, co, kh, kw, stride, pads, dilation, group
        (1, 3, 8, 9, 17, 3, 3, 1, (1, 1, 1, 1), 1, 1),
        (1, 5, 7, 7, 16, 1, 1, 1, (0, 0, 0, 0), 1, 1),
        (2, 4, 9, 8, 6, 3, 3, 2, (0, 0, 1, 1), 1, 2),
        (1, 2, 11, 10, 40, 5, 3, 1, (2, 1, 2, 1), 2, 1),
        (1, 6, 5, 5, 33, 3, 3, 2, (1, 1, 1, 1), 1, 3),
        (1, 1, 6, 1, 8, 3, 1, 1, (1, 0, 1, 0), 1, 1),
    )
    for n, ci, h, w, co, kh, kw, s, pads, d, g in cases:
        attrs = {"strides": (s, s), "pads": pads, "dilations": (d, d), "group": g}
        yield Sample((f(n, ci, h, w), f(co, ci // g, kh, kw), f(co)), attrs)
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    yield Sample((f(1, 3, 6, 7), f(8, 3, 3, 3)), attrs)


OPERATORS = [
    Operator(
        name="conv2d",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        attrs={"strides": tuple, "pads": tuple, "dilations": tuple, "group": int},
        lower=_lower,
        schedule=_schedule,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        onnx={"Conv": _import},
        doc="convolution over two spatial dims; pads are (top, left, bottom, right)",
    )
]
