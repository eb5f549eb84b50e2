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

from tilewright.core.window import Window, lift, read_auto_pad, read_numbers, window_of
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, TensorType, type_of
from tilewright.loop.builder import KernelBuilder, add, const, fma
from tilewright.loop.ir import Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import phases
from tilewright.schedule.trace import Trace


def _group(attrs: Attrs) -> int:
    g = attrs["group"]
    assert isinstance(g, int)
    return g


def _window(attrs: Attrs, w: Sequence[int]) -> Window:
    """The window of the convolution that this one transposes; `w` is the shape of the weights."""
    return window_of(attrs, w[2:])


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, bias = (*types, None)[:3]
    assert x is not None and w is not None
    g, extra = _group(attrs), attrs["output_padding"]
    fits = x.rank == 4 and w.rank == 4 and x.dtype is w.dtype and g >= 1
    if not fits or x.shape[1] != w.shape[0] or w.shape[0] % g:
        raise ModelError(
            f"`conv_transpose2d` of {x} with weights {w} in {g} groups: the shapes do not fit"
        )
    if bias is not None and bias != TensorType(x.dtype, (w.shape[1] * g,)):
        raise ModelError(f"`conv_transpose2d`: bias {bias} is not {x.dtype}[{w.shape[1] * g}]")
    if not isinstance(extra, tuple) or len(extra) != 2 or min(extra) < 0:
        raise ModelError(f"`conv_transpose2d`: output_padding {extra} is not two numbers >= 0")
    try:
        window = _window(attrs, w.shape)
    except ValueError as err:
        raise ModelError(f"`conv_transpose2d` of {x} with weights {w}: {err}") from None
    size = [
        (x.shape[2 + i] - 1) * window.strides[i]
        + (window.extent[i] + int(extra[i]) - window.pads[i] - window.pads[2 + i])
        for i in (0, 1)
    ]
    if min(size) < 1:
        raise ModelError(f"`conv_transpose2d` of {x} with weights {w}: the output is empty")
    return [TensorType(x.dtype, (x.shape[0], w.shape[1] * g, size[0], size[1]))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    """Scatter tap by tap into the unpadded result, then cut the pads off."""
    x, w, bias = (*inputs, None)[:3]
    g, window = _group(attrs), _window(attrs, w.shape)
    (sh, sw), (dh, dw), p = window.strides, window.dilations, window.pads
    (n, c, h, wd), (_, co, kh, kw) = x.shape, w.shape
    _, channels, oh, ow = _infer([type_of(x), type_of(w)], attrs)[0].shape
    full = np.zeros((n, g, co, p[0] + oh + p[2] + sh, p[1] + ow + p[3] + sw))
    pixels = x.reshape(n, g, c // g, h * wd).astype(np.float64)
    filters = w.reshape(g, c // g, co, kh, kw).astype(np.float64)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a * dh, a * dh + (h - 1) * sh + 1, sh)
            cols = slice(b * dw, b * dw + (wd - 1) * sw + 1, sw)
            share = filters[:, :, :, a, b].transpose(0, 2, 1) @ pixels
            full[:, :, :, rows, cols] += share.reshape(n, g, co, h, wd)
    y = full.reshape(n, channels, *full.shape[3:])[:, :, p[0] : p[0] + oh, p[1] : p[1] + ow]
    return [(y if bias is None else y + bias.reshape(1, -1, 1, 1)).astype(x.dtype)]


def _phase(window: Window, axis: int, size: int, phase: int) -> tuple[int, list[tuple[int, int]]]:
    """The outputs o = stride*q + phase along `axis` of an output of `size`: how many there are,
    and their taps (k, shift), which read the input at q + shift."""
    stride, dilation = window.strides[axis], window.dilations[axis]
    count = max(0, -(-(size - phase) // stride))
    reach = [(k, phase + window.pads[axis] - k * dilation) for k in range(window.kernel[axis])]
    return count, [(k, at // stride) for k, at in reach if at % stride == 0]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, bias = (*k.inputs, None)[:3]
    assert x is not None and w is not None
    window, g_count = _window(attrs, w.shape), _group(attrs)
    sh, sw = window.strides
    batch, channels, height, width = k.out_shape
    ci_count, co_count = x.shape[1] // g_count, channels // g_count
    for ph in range(sh):
        rows, taps_h = _phase(window, 0, height, ph)
        for pw in range(sw):
            cols, taps_w = _phase(window, 1, width, pw)
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
    """Channels last, and a border as wide as the taps of any phase reach over the edge."""
    x, w = types[0], types[1]
    assert x is not None and w is not None
    out, window = _infer(types, attrs)[0], _window(attrs, w.shape)
    halo: list[tuple[int, int]] = [(0, 0), (0, 0)]
    for i in (0, 1):
        lo = hi = 0
        for phase in range(window.strides[i]):
            count, taps = _phase(window, i, out.shape[2 + i], phase)
            for _, shift in taps if count else ():
                lo = max(lo, -shift)
                hi = max(hi, count - 1 + shift - (x.shape[2 + i] - 1))
        halo.append((lo, hi))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: tuple(halo)}, out_order=(0, 2, 3, 1))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    return 2 * x.size * w.shape[1] * w.shape[2] * w.shape[3]


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    """Channels of a group times the most taps that one phase has."""
    w, out = types[1], _infer(types, attrs)[0]
    assert w is not None
    window = _window(attrs, w.shape)
    taps = [
        max(
            len(_phase(window, i, out.shape[2 + i], phase)[1]) for phase in range(window.strides[i])
        )
        for i in (0, 1)
    ]
    return w.shape[0] // _group(attrs) * max(taps[0] * taps[1], 1)


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    """ConvTranspose of rank 3 (one spatial dim) or 4."""
    x, w = node.type(0), node.type(1)
    if x.rank not in (3, 4):
        raise node.fail(
            f"transposed convolution of {x} is not supported: one and two spatial dims are"
        )
    if w.rank != x.rank or tuple(node.attr("kernel_shape", w.shape[2:])) != w.shape[2:]:
        raise node.fail(
            f"the kernel_shape or rank of the weights {w} does not fit: repair the model"
        )
    try:
        window, extra = _read_window(node, x.shape[2:], w.shape[2:])
    except ValueError as err:
        raise node.fail(str(err)) from None
    inputs = list(node.inputs[: 3 if node.has(2) else 2])
    if x.rank == 3:
        for i in (0, 1):
            t = node.type(i)
            shape = (*t.shape[:2], 1, t.shape[2])
            inputs[i] = node.add("reshape", [inputs[i]], {"shape": shape})[0]
    attrs: dict[str, AttrValue] = {
        "strides": window.strides, "pads": window.pads, "dilations": window.dilations,
        "output_padding": extra, "group": int(node.attr("group", 1)),
    }  # fmt: skip
    (y,) = node.add("conv_transpose2d", inputs, attrs)
    if x.rank == 3:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _read_window(
    node: ImportNode, size: Sequence[int], kernel: Sequence[int]
) -> tuple[Window, tuple[int, int]]:
    """The window and the output padding, both over two dims.

    A wanted output size (`output_shape`, or stride * size for SAME_*) decides the pads: the odd one
    comes last for SAME_UPPER and first otherwise. What pads cannot give is output padding.
    """
    dims, mode = len(size), read_auto_pad(node.attr)
    strides = read_numbers(node.attr, "strides", dims, 1)
    dilations = read_numbers(node.attr, "dilations", dims, 1)
    pads = list(read_numbers(node.attr, "pads", 2 * dims, 0))
    extra = list(read_numbers(node.attr, "output_padding", dims, 0))
    wanted = node.attr("output_shape")
    if mode == "VALID":
        pads = [0] * (2 * dims)
    elif wanted is None and mode != "NOTSET":
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
    if wanted is not None:
        for i, n in enumerate([int(n) for n in wanted][-dims:]):
            full = strides[i] * (size[i] - 1) + dilations[i] * (kernel[i] - 1) + 1 + extra[i]
            total = max(full - n, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[i], pads[dims + i] = before, total - before
            extra[i] += max(n - full, 0)
    both = (0, extra[0]) if dims == 1 else (extra[0], extra[1])
    return lift(kernel, strides, dilations, pads), both


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    cases = (
        # n, ci, h, w, co, kh, kw, stride, pads, dilation, group, output padding
        (1, 4, 5, 6, 17, 2, 2, 2, (0, 0, 0, 0), 1, 1, 0),
        (1, 3, 4, 5, 6, 3, 3, 2, (1, 1, 1, 1), 1, 1, 1),
        (1, 4, 5, 4, 4, 3, 3, 1, (1, 1, 1, 1), 1, 2, 0),
        (2, 2, 3, 3, 3, 3, 3, 3, (0, 0, 0, 0), 2, 1, 0),
        (1, 2, 3, 1, 5, 2, 1, 3, (0, 0, 1, 0), 1, 1, 0),
        (1, 3, 4, 4, 4, 4, 4, 2, (1, 0, 2, 1), 1, 1, 0),
    )
    for n, ci, h, w, co, kh, kw, s, pads, d, g, extra in cases:
        attrs: dict[str, AttrValue] = {
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
            "strides": tuple,
            "pads": tuple,
            "dilations": tuple,
            "output_padding": tuple,
            "group": int,
        },
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
