"""Transposed convolution, written as a gather so that every output is summed in registers:

y[n, g*CO+co, oh, ow] = bias + sum over kh, kw, ci of x[n, g*CI+ci, ih, iw] * w[g*CI+ci, co, kh, kw]
    where ih*sh + kh*dh = oh + top and iw*sw + kw*dw = ow + left.

Outputs with the same remainder modulo the stride (a phase) use the same taps, so each phase is an
ordinary small convolution over x: no zeros are inserted and nothing is divided at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import inf, prod
from typing import Any

import numpy as np

from tilewright.core.attributes import ints
from tilewright.core.dtypes import F32
from tilewright.core.window import (
    Line,
    Window,
    read_auto_pad,
    read_lines,
    read_numbers,
    window_of,
    window_over,
)
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType, type_of
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
    """ConvTranspose over any number of spatial dims."""
    x, w = node.type(0), node.type(1)
    if x.rank < 3:
        raise node.fail(f"transposed convolution of {x} is not possible: it has no spatial dims")
    if w.rank != x.rank or tuple(node.attr("kernel_shape", w.shape[2:])) != w.shape[2:]:
        raise node.fail(
            f"the kernel_shape or rank of the weights {w} does not fit: repair the model"
        )
    try:
        lines, extra = _read_lines(node, x.shape[2:], w.shape[2:])
    except ValueError as err:
        raise node.fail(str(err)) from None
    inputs = list(node.inputs[: 3 if node.has(2) else 2])
    if x.rank > 4:
        return _over_more_dims(node, inputs, lines, extra)
    if x.rank == 3:
        for i in (0, 1):
            t = node.type(i)
            shape = (*t.shape[:2], 1, t.shape[2])
            inputs[i] = node.add("reshape", [inputs[i]], {"shape": shape})[0]
    (y,) = node.add("conv_transpose2d", inputs, _attributes(node, lines, extra))
    if x.rank == 3:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _attributes(node: ImportNode, lines: Sequence[Line], extra: Sequence[int]) -> Attrs:
    window = window_over(lines)
    return {
        "strides": window.strides, "pads": window.pads, "dilations": window.dilations,
        "output_padding": (0, *extra) if len(extra) == 1 else tuple(extra),
        "group": int(node.attr("group", 1)),
    }  # fmt: skip


def _over_more_dims(
    node: ImportNode, operands: Sequence[str], lines: Sequence[Line], extra: Sequence[int]
) -> Sequence[str]:
    """All but the last two spatial dims fold: inputs into the batch, taps into the channels of a group;
    then every tap's result, spread by the strides, is added where it belongs."""
    x, w, group = node.type(0), node.type(1), int(node.attr("group", 1))
    outer, k = lines[:-2], len(lines) - 2
    (n, c, *size), per = x.shape, w.shape[1]
    if group < 1 or c != w.shape[0] or c % group:
        raise node.fail(
            f"transposed convolution of {x} with {w} in {group} groups does not fit: repair"
        )
    last = (2 + k, 3 + k)
    perm = (0, *range(2, 2 + k), 1, *last)
    (image,) = node.add("transpose", [operands[0]], {"perm": perm})
    (image,) = node.add("reshape", [image], {"shape": (n * prod(size[:k]), c, *size[k:])})
    (kernel,) = node.add("transpose", [operands[1]], {"perm": perm})
    taps = [range(v.kernel) for v in outer]
    count = prod(v.kernel for v in outer)
    (kernel,) = node.add("reshape", [kernel], {"shape": (c, count * per, *w.shape[-2:])})
    attrs = _attributes(node, lines[-2:], extra[-2:])
    (y,) = node.add("conv_transpose2d", [image, kernel], attrs)
    plane = node.type_of(y).shape[2:]
    (y,) = node.add("reshape", [y], {"shape": (n, *size[:k], group, count, per, *plane)})
    perm = (k + 2, 0, k + 1, k + 3, *range(1, 1 + k), k + 4, k + 5)
    (y,) = node.add("transpose", [y], {"perm": perm})
    total = ""
    for i, place in enumerate(product(*taps)):
        cut: Attrs = {
            "starts": (i, *[0] * (5 + k)), "ends": (i + 1, *node.type_of(y).shape[1:]),
            "steps": (1,) * (6 + k),
        }  # fmt: skip
        (part,) = node.add("slice", [y], cut)
        (part,) = node.add("reshape", [part], {"shape": (n, group * per, *size[:k], *plane)})
        for d, (at, v) in enumerate(zip(place, outer, strict=True)):
            part = _spread(node, part, 2 + d, at * v.dilation - v.before, v, extra[d])
        total = node.add("add", [total, part])[0] if total else part
    if len(operands) < 3:
        return [total]
    (bias,) = node.add("reshape", [operands[2]], {"shape": (group * per, *[1] * len(lines))})
    return node.add("add", [total, bias])


def _spread(node: ImportNode, x: str, axis: int, shift: int, line: Line, extra: int) -> str:
    """Elements along `axis` at shift + stride * i of the whole result, zeros between them."""
    t = node.type_of(x)
    n, zeros = t.shape[axis], (0,) * (t.rank - axis - 1)
    lead = (0,) * axis
    reach = line.dilation * (line.kernel - 1) + 1
    size = line.stride * (n - 1) + reach + extra - line.before - line.after
    if line.stride > 1:
        (x,) = node.add("reshape", [x], {"shape": (*t.shape[: axis + 1], 1, *t.shape[axis + 1 :])})
        x = _padded(node, x, (*lead, 0, 0, *zeros), (*lead, 0, line.stride - 1, *zeros))
        shape = (*t.shape[:axis], n * line.stride, *t.shape[axis + 1 :])
        (x,) = node.add("reshape", [x], {"shape": shape})
    shape = node.type_of(x).shape
    low, high = max(0, -shift), min(shape[axis], size - shift)
    if low >= high:  # no element of this tap is kept
        x = _cut(node, x, axis, 0, 1)
        nothing = np.zeros((), t.dtype.numpy)
        (x,) = node.add("mul", [x, node.constant(nothing, "zero")])
        return _padded(node, x, (*lead, 0, *zeros), (*lead, size - 1, *zeros))
    x = _cut(node, x, axis, low, high)
    before, after = low + shift, size - (high + shift)
    return _padded(node, x, (*lead, before, *zeros), (*lead, after, *zeros))


def _cut(node: ImportNode, x: str, axis: int, low: int, high: int) -> str:
    shape = node.type_of(x).shape
    if (low, high) == (0, shape[axis]):
        return x
    starts = tuple(low if d == axis else 0 for d in range(len(shape)))
    ends = tuple(high if d == axis else m for d, m in enumerate(shape))
    return node.add("slice", [x], {"starts": starts, "ends": ends, "steps": (1,) * len(shape)})[0]


def _padded(node: ImportNode, x: str, before: tuple[int, ...], after: tuple[int, ...]) -> str:
    if not any((*before, *after)):
        return x
    attrs: Attrs = {"before": before, "after": after, "mode": "constant", "value": 0.0}
    return node.add("pad", [x], attrs)[0]


def _read_lines(
    node: ImportNode, size: Sequence[int], kernel: Sequence[int]
) -> tuple[list[Line], list[int]]:
    """The window and the output padding, dim by dim.

    A wanted output size (`output_shape`, or stride * size for SAME_*) decides the pads: the odd one
    comes last for SAME_UPPER and first otherwise. What pads cannot give is output padding.
    """
    dims, mode = len(size), read_auto_pad(node.attr)
    given = {"NOTSET": node.attr}.get(
        mode, lambda name, default: _without_pads(node, name, default)
    )
    lines = read_lines(given, size, kernel)
    extra = list(read_numbers(node.attr, "output_padding", dims, 0))
    if min(extra) < 0:
        raise ValueError(f"output_padding {extra} must be {dims} numbers of at least 0")
    wanted = node.attr("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [n * v.stride for n, v in zip(size, lines, strict=True)]
    if wanted is not None:
        for i, n in enumerate([int(n) for n in wanted][-dims:]):
            v = lines[i]
            full = v.stride * (size[i] - 1) + v.dilation * (v.kernel - 1) + 1 + extra[i]
            total = max(full - n, 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            lines[i] = replace(v, before=before, after=total - before)
            extra[i] += max(n - full, 0)
    return lines, extra


def _without_pads(node: ImportNode, name: str, default: Any) -> Any:
    """Attributes as if `auto_pad` were not there: it says something else here."""
    return default if name in ("auto_pad", "pads") else node.attr(name, default)


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


# ---------------------------------------------------------------- another way, for few channels


def _as_convolution(graph: Graph, node: Node) -> list[Node] | None:
    """Each phase as channels of its own of one ordinary convolution, and blocks of channels to pixels.

    With one or a few output channels vectors then hold all phases, too. None where phases differ in size.
    """
    attrs = node.attrs
    x, w, y = (graph.types[v] for v in (*node.inputs[:2], node.outputs[0]))
    weights = graph.constants.get(node.inputs[1])
    if weights is None or w.dtype is not F32 or _group(attrs) != 1:
        return None
    bias = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    window = _window(attrs, w.shape)
    s = window.strides[0]
    if s < 2 or window.strides[1] != s or (bias is None and len(node.inputs) > 2):
        return None
    if y.shape[2] % s or y.shape[3] % s:
        return None
    rows = [[_phase(window, i, y.shape[2 + i], p)[1] for p in range(s)] for i in (0, 1)]
    reach = [[shift for taps in phases for _, shift in taps] for phases in rows]
    if not all(reach):
        return None
    low, high = [min(r) for r in reach], [max(r) for r in reach]
    after = [y.shape[2 + i] // s - 1 + high[i] - (x.shape[2 + i] - 1) for i in (0, 1)]
    if max(low) > 0 or min(after) < 0:
        return None
    spread = np.zeros(
        (w.shape[1], s, s, w.shape[0], *(h - n + 1 for n, h in zip(low, high, strict=True)))
    )
    for ph, pw in product(range(s), repeat=2):
        for (kh, ah), (kw, aw) in product(rows[0][ph], rows[1][pw]):
            spread[:, ph, pw, :, ah - low[0], aw - low[1]] = weights[:, :, kh, kw].T
    filters = spread.reshape(-1, *spread.shape[3:]).astype(np.float32)
    inputs = [node.inputs[0], graph.add_constant(f"{node.inputs[1]}.phases", filters)]
    if bias is not None:
        inputs.append(graph.add_constant(f"{node.inputs[2]}.phases", np.repeat(bias, s * s)))
    blocks = graph.fresh(f"{node.name}.phases")
    graph.types[blocks] = TensorType(
        F32, (x.shape[0], len(filters), y.shape[2] // s, y.shape[3] // s)
    )
    conv: dict[str, AttrValue] = {
        "strides": (1, 1), "pads": (-low[0], -low[1], after[0], after[1]), "dilations": (1, 1), "group": 1,
    }  # fmt: skip
    return [
        Node(f"{node.name}/phases", "conv2d", tuple(inputs), (blocks,), conv),
        Node(node.name, "depth_to_space", (blocks,), node.outputs, {"blocksize": s, "mode": "CRD"}),
    ]


def _cost(graph: Graph, node: Node, target: Target) -> float:
    """Nothing where vectors of the direct form would be almost empty: a convolution always gains there."""
    w, s = graph.types[node.inputs[1]], ints(node.attrs, "strides")
    few = w.shape[1] * s[0] * s[1] <= target.lanes(4)
    return 0.0 if target.family == "simd" and few else inf


VARIANTS = {"conv_transpose2d": {"convolution": _as_convolution}}

#: Where no log knows: operator -> name -> (graph, node, target) -> cycles.
COSTS = {"conv_transpose2d": {"convolution": _cost}}
