"""Two-dimensional convolution (cross-correlation), dense or grouped:

y[n, g*CO+co, oh, ow] = bias[g*CO+co] + sum over kh, kw, ci of
    x[n, g*CI+ci, oh*sh + kh*dh - top, ow*sw + kw*dw - left] * w[g*CO+co, ci, kh, kw]

Indices outside the image, or in one of `more_channels`, read zeros (`pad_value`): the layout pass gives x a border, so nothing tests for
edges. Bytes are summed in i32; with `raised`, signed pixels count as x + 128.
Maps have their channels last, but with `planar` every channel is a plane: a way for layers with few channels.
One-dimensional convolutions import with a height of 1; those over more dims fold all but two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from math import inf, prod
from typing import Any

import numpy as np

from tilewright.core.attributes import integer, ints
from tilewright.core.dtypes import I8, U8, sum_of_products
from tilewright.core.window import Line, read_lines, window_of, window_over
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType
from tilewright.graph.quantized import contraction
from tilewright.loop.builder import KernelBuilder, add, cast, const, fma
from tilewright.loop.ir import Kernel
from tilewright.loop.raised import raised
from tilewright.registry import ImportNode, LayoutWish, Operator, Rows, Sample, window_rows
from tilewright.schedule.target import Target
from tilewright.schedule.templates import convolution, convolution_space
from tilewright.schedule.templates.ways import Convolution, direct_cycles, planar_cycles
from tilewright.schedule.trace import Trace


def _group(attrs: Attrs) -> int:
    g = attrs["group"]
    assert isinstance(g, int)
    return g


def _pad_value(attrs: Attrs) -> int:
    """What lies around the image: 0, or the zero point of integers."""
    return integer(attrs, "pad_value") if "pad_value" in attrs else 0


def _more_channels(attrs: Attrs) -> int:
    """Channels of the weights beyond those of the image, which read `pad_value`."""
    return integer(attrs, "more_channels") if "more_channels" in attrs else 0


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, w, bias = (*types, None)[:3]
    assert x is not None and w is not None
    g = _group(attrs)
    total = sum_of_products(x.dtype, w.dtype)
    fits = x.rank == 4 and w.rank == 4 and total is not None and g >= 1
    more = _more_channels(attrs)
    fits = fits and more >= 0 and (g == 1 or not more)
    if total is None or not fits or x.shape[1] + more != w.shape[1] * g or w.shape[0] % g:
        raise ModelError(f"`conv2d` of {x} with weights {w} in {g} groups: they do not fit")
    if attrs.get("raised", False) and (x.dtype is not I8 or w.dtype is not I8):
        raise ModelError(f"`conv2d` of {x} with weights {w}: only signed bytes can be raised")
    if bias is not None and bias != TensorType(total, (w.shape[0],)):
        raise ModelError(f"`conv2d`: bias {bias} is not {total}[{w.shape[0]}]")
    try:
        oh, ow = window_of(attrs, w.shape[2:]).output(x.shape[2:])
    except ValueError as err:
        raise ModelError(f"`conv2d` of {x} with weights {w}: {err}") from None
    if oh < 1 or ow < 1:
        raise ModelError(f"`conv2d` of {x} with weights {w}: the output is empty")
    return [TensorType(total, (x.shape[0], w.shape[0], oh, ow))]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    """One matrix product per image and group over the windows laid out as columns."""
    x, w, bias = (*inputs, None)[:3]
    o, ci, kh, kw = w.shape
    window, g = window_of(attrs, (kh, kw)), _group(attrs)
    (sh, sw), (dh, dw), p = window.strides, window.dilations, window.pads
    oh, ow = window.output(x.shape[2:])
    around = ((0, 0), (0, _more_channels(attrs)), (p[0], p[2]), (p[1], p[3]))
    padded = np.pad(x, around, constant_values=_pad_value(attrs))
    if attrs.get("raised", False):
        padded = padded.astype(np.int16) + 128
    s0, s1, s2, s3 = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (x.shape[0], g, ci, kh, kw, oh, ow),
        (s0, ci * s1, s1, dh * s2, dw * s3, sh * s2, sw * s3),
    )
    y = np.empty((x.shape[0], g, o // g, oh * ow), np.float64)
    filters = w.reshape(g, o // g, ci * kh * kw).astype(np.float64)
    for i in range(x.shape[0]):
        for j in range(g):
            columns = windows[i, j].reshape(ci * kh * kw, oh * ow)
            y[i, j] = filters[j] @ columns.astype(np.float64)
    y = y.reshape(x.shape[0], o, oh, ow)
    total = x.dtype if x.dtype.itemsize > 1 else np.dtype(np.int32)  # bytes: exact in float64
    return [(y if bias is None else y + bias.reshape(1, o, 1, 1)).astype(total)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, w, bias = (*k.inputs, None)[:3]
    assert x is not None and w is not None
    window = window_of(attrs, w.shape[2:])
    (sh, sw), (dh, dw), (top, left) = window.strides, window.dilations, window.pads[:2]
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
        taps = {"kh": w.shape[2], "kw": w.shape[3]}
        counts = (
            {"ci": ci_count, **taps} if attrs.get("planar", False) else {**taps, "ci": ci_count}
        )
        with ExitStack() as sums:  # in the order in which pixels lie in memory
            at = {name: sums.enter_context(k.loop(name, count)) for name, count in counts.items()}
            kh, kw, ci = at["kh"], at["kw"], at["ci"]
            pixel = x(n, g * ci_count + ci, oh * sh + kh * dh - top, ow * sw + kw * dw - left)
            weight = w(o, ci, kh, kw)
            pixel = raised(pixel) if attrs.get("raised", False) else pixel
            k.set(acc, fma(cast(pixel, k.out_dtype), cast(weight, k.out_dtype), acc()))
        k.emit((n, o, oh, ow), acc() if bias is None else add(acc(), bias(o)))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return convolution(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Channels last unless `planar`, and a border as wide as the taps reach over the edge."""
    x, w = types[0], types[1]
    assert x is not None and w is not None
    border = window_of(attrs, w.shape[2:]).border(x.shape[2:])
    halo = ((0, 0), (0, _more_channels(attrs)), *border)
    order = (0, 1, 2, 3) if attrs.get("planar", False) else (0, 2, 3, 1)
    return LayoutWish(orders={0: order}, halos={0: halo}, fill=_pad_value(attrs), out_order=order)


def _rows(types: Sequence[TensorType | None], attrs: Attrs, first: int, end: int) -> Rows | None:
    x, w = types[:2]
    assert x is not None and w is not None
    if attrs.get("planar", False):
        return None
    return window_rows(window_of(attrs, w.shape[2:]), x.shape[2], attrs, first, end)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return 2 * _infer(types, attrs)[0].size * _depth(types, attrs)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    w = types[1]
    assert w is not None
    return (w.shape[1] - _more_channels(attrs)) * w.shape[2] * w.shape[3]


# ---------------------------------------------------------------- importer


def _import(node: ImportNode) -> Sequence[str]:
    """Conv over any number of spatial dims; depthwise ones become their own operator."""
    return _convolved(node, *node.inputs[: 3 if node.has(2) else 2])


def _convolved(node: ImportNode, *operands: str) -> Sequence[str]:
    """The convolution of `operands` (image, weights, maybe a bias) with the node's attributes."""
    x, w = node.type_of(operands[0]), node.type_of(operands[1])
    if x.rank < 3:
        raise node.fail(f"convolution of {x} is not possible: it has no spatial dims, repair it")
    if w.rank != x.rank or tuple(node.attr("kernel_shape", w.shape[2:])) != w.shape[2:]:
        raise node.fail(
            f"the kernel_shape or rank of the weights {w} does not fit: repair the model"
        )
    try:
        lines = read_lines(node.attr, x.shape[2:], w.shape[2:])
    except ValueError as err:
        raise node.fail(str(err)) from None
    if x.rank > 4:
        return _over_more_dims(node, operands, lines)
    window = window_over(lines)
    inputs = list(operands)
    if x.rank == 3:
        for i in (0, 1):
            t = node.type_of(inputs[i])
            shape = (*t.shape[:2], 1, t.shape[2])
            inputs[i] = node.add("reshape", [inputs[i]], {"shape": shape})[0]
    group = int(node.attr("group", 1))
    attrs: dict[str, Any] = {
        "strides": window.strides, "pads": window.pads, "dilations": window.dilations
    }  # fmt: skip
    if group > 1 and group == x.shape[1] == w.shape[0]:
        (y,) = node.add("depthwise_conv2d", inputs, attrs)
    else:
        (y,) = node.add("conv2d", inputs, {**attrs, "group": group})
    if x.rank == 3:
        n, c, _, length = node.type_of(y).shape
        return node.add("reshape", [y], {"shape": (n, c, length)})
    return [y]


def _over_more_dims(
    node: ImportNode, operands: Sequence[str], lines: Sequence[Line]
) -> Sequence[str]:
    """All but the last two spatial dims fold: outputs into the batch, taps into the channels of a group."""
    x, w, group = node.type_of(operands[0]), node.type_of(operands[1]), int(node.attr("group", 1))
    extra, outer = len(lines) - 2, lines[:-2]
    n, c, *size = x.shape
    counts = [
        (m + v.before + v.after - v.dilation * (v.kernel - 1) - 1) // v.stride + 1
        for m, v in zip(size, outer, strict=False)
    ]
    if group < 1 or c != w.shape[1] * group or w.shape[0] % group or min(counts) < 1:
        raise node.fail(
            f"convolution of {x} with weights {w} in {group} groups does not fit: repair"
        )
    image = operands[0]
    if any(v.before or v.after for v in outer):
        before, after = (
            (0, 0, *p, 0, 0) for p in zip(*((v.before, v.after) for v in outer), strict=True)
        )
        padding: Attrs = {"before": before, "after": after, "mode": "constant", "value": 0.0}
        (image,) = node.add("pad", [image], padding)
    taps: list[str] = []
    for place in product(*(range(v.kernel) for v in outer)):
        starts = [at * v.dilation for at, v in zip(place, outer, strict=True)]
        ends = [a + m * v.stride for a, m, v in zip(starts, counts, outer, strict=True)]
        cut: Attrs = {
            "starts": (0, 0, *starts, 0, 0), "ends": (n, c, *ends, *size[extra:]),
            "steps": (1, 1, *(v.stride for v in outer), 1, 1),
        }  # fmt: skip
        (part,) = node.add("slice", [image], cut)
        shape = (n, group, 1, c // group, *counts, *size[extra:])
        taps += node.add("reshape", [part], {"shape": shape})
    (stack,) = node.add("concat", taps, {"axis": 2}) if len(taps) > 1 else taps
    perm = (0, *range(4, 4 + extra), 1, 2, 3, 4 + extra, 5 + extra)
    (stack,) = node.add("transpose", [stack], {"perm": perm})
    flat = (n * prod(counts), c * len(taps), *size[extra:])
    (image,) = node.add("reshape", [stack], {"shape": flat})
    last = (2 + extra, 3 + extra)
    (kernel,) = node.add("transpose", [operands[1]], {"perm": (0, *range(2, 2 + extra), 1, *last)})
    shape = (w.shape[0], len(taps) * w.shape[1], *w.shape[-2:])
    (kernel,) = node.add("reshape", [kernel], {"shape": shape})
    window = window_over(lines[-2:])
    attrs: Attrs = {
        "strides": window.strides, "pads": window.pads, "dilations": window.dilations, "group": group
    }  # fmt: skip
    (y,) = node.add("conv2d", [image, kernel, *operands[2:]], attrs)
    _, o, *rest = node.type_of(y).shape
    (y,) = node.add("reshape", [y], {"shape": (n, *counts, o, *rest)})
    back = (0, 1 + extra, *range(1, 1 + extra), 2 + extra, 3 + extra)
    return node.add("transpose", [y], {"perm": back})


def _import_integer(node: ImportNode) -> Sequence[str]:
    """ConvInteger: conv(x - z, w) = conv(x, w) - z * conv(1, w), whose borders are 0 as they should.

    The second convolution is of constants; the zero points of the weights move into them.
    """
    x, w = node.type(0), node.need_const(1, "the weights")
    if not {x.dtype, node.type(1).dtype} <= {I8, U8}:
        raise node.fail(f"integer convolution of {x} is not supported: use bytes")
    weights = w.astype(np.int32)
    if node.has(3):
        zeros = node.need_const(3, "the zero point of the weights")
        weights = weights - zeros.reshape(-1, *[1] * (w.ndim - 1) if zeros.size > 1 else ())
    kinds = (np.int8, np.uint8, np.int16)
    kind = next(k for k in kinds if np.array_equal(weights, weights.astype(k)))
    (y,) = _convolved(node, node.inputs[0], node.constant(weights.astype(kind), "weights"))
    zero = node.const(2)
    if not node.has(2) or (zero is not None and not zero.any()):
        return [y]
    if node.type(2).size != 1:
        raise node.fail(f"the zero point {node.type(2)} of the image is not a scalar: repair it")
    node.reserve(*x.shape)
    ones = node.constant(np.ones(x.shape, np.uint8), "ones")
    (share,) = _convolved(node, ones, node.constant(weights.astype(kind), "weights"))
    (z,) = node.add("cast", [node.inputs[2]], {"to": "i32"})
    (z,) = node.add("reshape", [z], {"shape": ()})
    return node.add("sub", [y, *node.add("mul", [share, z])])


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
        attrs: dict[str, AttrValue] = {
            "strides": (s, s), "pads": pads, "dilations": (d, d), "group": g
        }  # fmt: skip
        yield Sample((f(n, ci, h, w), f(co, ci // g, kh, kw), f(co)), attrs)
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    yield Sample((f(1, 3, 6, 7), f(8, 3, 3, 3)), attrs)
    for co in (1, 5):
        yield Sample((f(1, 3, 6, 21), f(co, 3, 3, 4), f(co)), {**attrs, "planar": True})
    for kind, zero in ((np.int8, -7), (np.uint8, 130)):
        for ci in (3, 16):
            low = -128 if kind is np.int8 else 0
            x = rng.integers(low, low + 256, (1, ci, 6, 7)).astype(kind)
            w = rng.integers(-128, 128, (5, ci, 3, 3)).astype(np.int8)
            bias = rng.integers(-999, 999, 5).astype(np.int32)
            yield Sample((x, w, bias), {**attrs, "pad_value": zero})
        wide = rng.integers(-255, 256, (5, ci, 3, 3)).astype(np.int16)
        yield Sample((x, wide, bias), {**attrs, "pad_value": zero})
        if zero < 0:
            yield Sample((x, w, bias), {**attrs, "pad_value": zero, "raised": True})
            less: dict[str, AttrValue] = {**attrs, "pad_value": zero, "more_channels": 1}
            yield Sample((x[:, :-1].copy(), w, bias), less)


# ---------------------------------------------------------------- the variant of conv2d


def _planar(graph: Graph, node: Node) -> list[Node] | None:
    """The same with planes for channels; None for a convolution that would not gain on any machine."""
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    fits = x.dtype.is_float and node.inputs[1] in graph.constants and _group(node.attrs) == 1
    if not fits or w.shape[0] > MOST_PLANES or ints(node.attrs, "strides")[1] != 1:
        return None
    return [node.with_(attrs={**node.attrs, "planar": True})]


#: Channels out that planes may be made of: more fill vectors of their own.
MOST_PLANES = 8


def _direct_cost(graph: Graph, node: Node, target: Target) -> float:
    """Cycles that the operator's own way is expected to take."""
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    if target.family != "simd" or node.inputs[1] not in graph.constants:
        return 0.0  # there is no other way
    return direct_cycles(_sizes(x, w, node.attrs), target)


def _planar_cost(graph: Graph, node: Node, target: Target) -> float:
    """Cycles that planes for channels are expected to take."""
    if target.family != "simd" or _planar(graph, node) is None:
        return inf
    x, w = graph.types[node.inputs[0]], graph.types[node.inputs[1]]
    return planar_cycles(_sizes(x, w, node.attrs), target)


def _sizes(x: TensorType, w: TensorType, attrs: Attrs) -> Convolution:
    size = window_of(attrs, w.shape[2:]).output(x.shape[2:])
    return Convolution.of(x.shape, w.shape, size, _group(attrs))


#: Other ways to compute an operator: operator -> name -> rewrite.
VARIANTS = {"conv2d": {"planar": _planar}}

#: What ways cost where no log knows, the operator's own under no name: operator -> name -> cost.
COSTS = {"conv2d": {"": _direct_cost, "planar": _planar_cost}}


OPERATORS = [
    Operator(
        name="conv2d",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        attrs={"strides": tuple, "pads": tuple, "dilations": tuple, "group": int},
        optional_attrs={"pad_value": int, "raised": bool, "more_channels": int, "planar": bool},
        lower=_lower,
        schedule=_schedule,
        space=convolution_space,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        quantized=partial(contraction, channel=0),
        rows=_rows,
        onnx={"Conv": _import, "ConvInteger": _import_integer},
        doc="convolution over two spatial dims; pads are (top, left, bottom, right)",
    )
]
