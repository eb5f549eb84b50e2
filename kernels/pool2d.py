"""Maximum and average over windows of two spatial dims.

y[n, c, oh, ow] = max (or mean) over kh, kw of x[n, c, oh*sh + kh*dh - top, ow*sw + kw*dw - left]

Indices outside the image read -inf (max) or 0 (mean) from the border that the layout pass provides.
A mean that does not count padding divides by the number of taps inside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.core.dtypes import BOOL, I64, DType, dtype
from tilewright.core.index import Ix, imax, imin
from tilewright.core.window import Line, Window, read_lines, window_of, window_over
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import IntegerForm, average, movement
from tilewright.loop.builder import (
    KernelBuilder,
    add,
    binary,
    const,
    div,
    from_index,
    index_in,
    maximum,
    mul,
    select,
)
from tilewright.loop.ir import Expr, Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Rows, Sample, window_rows
from tilewright.schedule.target import Target
from tilewright.schedule.templates import depthwise, depthwise_space
from tilewright.schedule.trace import Trace


def _window(attrs: Attrs) -> Window:
    kernel = attrs["kernel"]
    assert isinstance(kernel, tuple)
    return window_of(attrs, [int(k) for k in kernel])


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    average = "count_include_pad" in attrs
    if x.rank != 4 or x.dtype is BOOL or (average and not x.dtype.is_float):
        kind = "float" if average else "number"
        raise ModelError(f"pooling of {x}: a {kind} tensor of rank 4 is wanted")
    try:
        size = _window(attrs).output(x.shape[2:])
    except ValueError as err:
        raise ModelError(f"pooling of {x}: {err}") from None
    if min(size) < 1:
        raise ModelError(f"pooling of {x} with a window of {attrs['kernel']}: the output is empty")
    return [TensorType(x.dtype, (*x.shape[:2], *size))]


def _lowest(t: DType) -> float | int:
    """The neutral element of max."""
    return -np.inf if t.is_float else -(1 << (t.bits - 1)) if t.kind == "int" else 0


def _windows(x: Array, attrs: Attrs, fill: float) -> Array:
    """All windows as (n, c, oh, ow, kh, kw), padded with `fill`."""
    window = _window(attrs)
    (sh, sw), (dh, dw), p = window.strides, window.dilations, window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])), constant_values=fill)
    a, b, c, d = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (*x.shape[:2], *window.output(x.shape[2:]), *window.kernel),
        (a, b, sh * c, sw * d, dh * c, dw * d),
    )


def _max_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    return [_windows(x, attrs, _lowest(dtype(x.dtype))).max(axis=(4, 5))]


def _avg_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    total = _windows(x.astype(np.float64), attrs, 0.0).sum(axis=(4, 5))
    count: Any = np.prod(_window(attrs).kernel)
    if not attrs["count_include_pad"]:
        count = _windows(np.ones((1, 1, *x.shape[2:])), attrs, 0.0).sum(axis=(4, 5))
    return [(total / count).astype(x.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs, average: bool) -> None:
    x = k.inputs[0]
    assert x is not None
    window = _window(attrs)
    (sh, sw), (dh, dw), (top, left) = window.strides, window.dilations, window.pads[:2]
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
        with k.loop("kh", window.kernel[0]) as kh, k.loop("kw", window.kernel[1]) as kw:
            pixel = x(n, c, oh * sh + kh * dh - top, ow * sw + kw * dw - left)
            k.set(acc, add(acc(), pixel) if average else maximum(acc(), pixel))
        value: Expr = acc()
        if average:
            value = mul(value, _inverse_count(x.shape, attrs, oh, ow, k))
        k.emit((n, c, oh, ow), value)


def _inverse_count(shape: tuple[int, ...], attrs: Attrs, oh: Ix, ow: Ix, k: KernelBuilder) -> Expr:
    """1 / number of taps that count."""
    window = _window(attrs)
    if attrs["count_include_pad"] or not any(window.pads):
        return const(1.0 / (window.kernel[0] * window.kernel[1]), k.out_dtype)
    taps: list[Expr] = []
    for i, o in enumerate((oh, ow)):
        start = o * window.strides[i] - window.pads[i]
        step = window.dilations[i]
        first = imax((step - 1 - start) // step, 0)  # the first tap at or after element 0
        last = imin((shape[2 + i] + step - 1 - start) // step, window.kernel[i])  # the first beyond
        taps.append(from_index(k.simplify((last - first,))[0], k.out_dtype))
    return div(const(1.0, k.out_dtype), mul(taps[0], taps[1]))


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return depthwise(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs, fill: float) -> LayoutWish:
    """Channels last, and a border of `fill` as wide as the windows reach over the edge."""
    x = types[0]
    assert x is not None
    halo = ((0, 0), (0, 0), *_window(attrs).border(x.shape[2:]))
    return LayoutWish(orders={0: (0, 2, 3, 1)}, halos={0: halo}, fill=fill, out_order=(0, 2, 3, 1))


def _rows(types: Sequence[TensorType | None], attrs: Attrs, first: int, end: int) -> Rows:
    assert types[0] is not None
    return window_rows(_window(attrs), types[0].shape[2], attrs, first, end)


def _max_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    assert types[0] is not None
    return _wishes(types, attrs, _lowest(types[0].dtype))


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    return _infer(types, attrs)[0].size * _depth(types, attrs)


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    kh, kw = _window(attrs).kernel
    return kh * kw


def _integer_mean(q: IntegerForm) -> bool:
    """A sum over windows is a convolution with ones; a border of zero points adds nothing to it."""
    x, window = q.integers(q.node.inputs[0]), _window(q.node.attrs)
    if x is None:
        return False
    source, scale = x
    (kh, kw), shape = window.kernel, q.type_of(source).shape
    if kh * kw * 255 >= 1 << 31:
        return False
    ones = q.constant("ones", np.ones((shape[1], 1, kh, kw), np.int8))
    offset = q.constant("offset", np.full(shape[1], -scale.zero * kh * kw, np.int32))
    attrs: dict[str, Any] = {k: q.node.attrs[k] for k in ("strides", "pads", "dilations")}
    attrs["pad_value"] = scale.zero
    total = q.make("depthwise_conv2d", (source, ones, offset), attrs)
    counts = np.asarray(kh * kw)
    if not q.node.attrs["count_include_pad"] and any(window.pads):
        inside = _windows(np.ones((1, 1, *shape[2:])), q.node.attrs, 0.0)
        counts = inside.sum(axis=(4, 5))[0]
    return average(q, total, scale, counts, kh * kw)


# ---------------------------------------------------------------- importers


#: (image of rank 4, window, pads (bottom, right) that ceil_mode adds to it) -> result
_Step = Callable[[str, Window, tuple[int, int]], str]


def _pooled(node: ImportNode, value: str, step: _Step) -> str:
    """`step` over the spatial dims of `value`, of which there may be any number: the last two at once, those
    before them one by one, which is the same for maxima, means and sums."""
    x, lines = node.type(0), _lines(node)
    shape, extra = list(x.shape), max(len(lines) - 2, 0)
    over = bool(node.attr("ceil_mode", 0))
    for i in range(2, 2 + extra):
        n, c, rest = shape[0], prod(shape[1:i]), prod(shape[i + 1 :])
        (value,) = node.add("reshape", [value], {"shape": (n, c, shape[i], rest)})
        window = window_over([lines[i - 2], Line(1, 1, 1, 0, 0)])
        value = step(value, window, window.overhang((shape[i], rest)) if over else (0, 0))
        shape[i] = node.type_of(value).shape[2]
    size = (1, *shape[-1:]) if len(lines) == 1 else tuple(shape[-2:])
    flat = (shape[0], prod(shape[1 : 2 + extra]), *size)
    if flat != node.type_of(value).shape:
        (value,) = node.add("reshape", [value], {"shape": flat})
    window = window_over(lines[extra:])
    value = step(value, window, window.overhang(size) if over else (0, 0))
    last = node.type_of(value).shape
    final = (*shape[: 2 + extra], *last[2 if len(lines) > 1 else 3 :])
    return value if final == last else node.add("reshape", [value], {"shape": final})[0]


def _lines(node: ImportNode) -> list[Line]:
    x, kernel = node.type(0), node.attr("kernel_shape")
    if x.rank < 3:
        raise node.fail(f"pooling of {x} is not possible: it has no spatial dims, repair the model")
    if kernel is None:
        raise node.fail("the attribute kernel_shape is missing: repair the model")
    try:
        lines = read_lines(node.attr, x.shape[2:], tuple(int(k) for k in kernel))
    except ValueError as err:
        raise node.fail(str(err)) from None
    if any(max(v.before, v.after) > v.dilation * (v.kernel - 1) for v in lines):
        pads = [*(v.before for v in lines), *(v.after for v in lines)]
        raise node.fail(f"pads {pads} as large as the window leave windows with nothing in them")
    return lines


def _attributes(window: Window, over: tuple[int, int]) -> dict[str, Any]:
    top, left, below, beside = window.pads
    return {
        "kernel": window.kernel, "strides": window.strides, "dilations": window.dilations,
        "pads": (top, left, below + over[0], beside + over[1]),
    }  # fmt: skip


def _import_max(node: ImportNode) -> Sequence[str]:
    def step(value: str, window: Window, over: tuple[int, int]) -> str:
        return node.add("max_pool2d", [value], _attributes(window, over))[0]

    y = _pooled(node, node.inputs[0], step)
    return [y] if node.output_count < 2 else [y, _indices(node)]


def _indices(node: ImportNode) -> str:
    """Where the maxima are: offsets into the whole tensor, by rows or (`storage_order` 1) by columns."""
    x = node.type(0)
    if x.rank > 4:
        raise node.fail(
            f"Indices of maxima of {x} are not supported: over one or two dims they are"
        )

    def step(value: str, window: Window, over: tuple[int, int]) -> str:
        columns = bool(node.attr("storage_order", 0)) and x.rank == 4
        attrs = {**_attributes(window, over), "by_columns": columns}
        return node.add("max_pool2d_index", [value], attrs)[0]

    return _pooled(node, node.inputs[0], step)


def _import_avg(node: ImportNode) -> Sequence[str]:
    """Pads count if the model says so; what ceil_mode adds never does."""
    include = bool(node.attr("count_include_pad", 0))

    def step(value: str, window: Window, over: tuple[int, int]) -> str:
        attrs = {**_attributes(window, over), "count_include_pad": include}
        if include and any(over):  # make the pads part of the image, then leave out the rest
            top, left, below, beside = window.pads
            before, after = (0, 0, top, left), (0, 0, below, beside)
            padding: dict[str, Any] = {"before": before, "after": after}
            padding.update(mode="constant", value=0.0)
            (value,) = node.add("pad", [value], padding)
            attrs.update(pads=(0, 0, *over), count_include_pad=False)
        return node.add("avg_pool2d", [value], attrs)[0]

    return [_pooled(node, node.inputs[0], step)]


def _import_lp(node: ImportNode) -> Sequence[str]:
    """(sum |x|^p)^(1/p): a mean of powers, times the number of taps, under the root."""
    p, number = int(node.attr("p", 2)), node.type(0).dtype.numpy

    def step(value: str, window: Window, over: tuple[int, int]) -> str:
        attrs = {**_attributes(window, over), "count_include_pad": True}
        return node.add("avg_pool2d", [value], attrs)[0]

    (value,) = node.add("abs", [node.inputs[0]])
    if p != 1:
        (value,) = node.add("pow", [value, node.constant(np.asarray(p, number), "p")])
    y = _pooled(node, value, step)
    taps = prod(v.kernel for v in _lines(node))
    (y,) = node.add("mul", [y, node.constant(np.asarray(taps, number), "taps")])
    if p != 1:
        (y,) = node.add("pow", [y, node.constant(np.asarray(1 / p, number), "root")])
    return [y]


# ---------------------------------------------------------------- indices of maxima


def _index_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    return [TensorType(I64, _infer(types, attrs)[0].shape)]


def _index_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    planes = np.arange(x.size).reshape(x.shape)
    if attrs["by_columns"]:
        n, c, h, w = x.shape
        planes = planes.reshape(n, c, w, h).transpose(0, 1, 3, 2)
    values = _windows(x, attrs, _lowest(dtype(x.dtype)))
    places = _windows(planes, attrs, -1)
    values, places = (v.reshape(*v.shape[:4], -1) for v in (values, places))
    # an element of the border never wins against one of the image
    best = np.where(places < 0, False, values == values.max(axis=-1, keepdims=True)).argmax(axis=-1)
    return [np.take_along_axis(places, best[..., None], axis=-1)[..., 0].astype(np.int64)]


def _index_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x = k.inputs[0]
    assert x is not None
    window = _window(attrs)
    (sh, sw), (dh, dw), (top, left) = window.strides, window.dilations, window.pads[:2]
    batch, channels, h, w = x.shape
    _, _, height, width = k.out_shape
    with (
        k.loop("n", batch) as n,
        k.loop("oh", height) as oh,
        k.loop("ow", width) as ow,
        k.loop("c", channels) as c,
    ):
        best, at = k.local("best", x.dtype), k.local("at", I64)
        k.set(best, const(_lowest(x.dtype), x.dtype))
        k.set(at, const(-1, I64))
        with k.loop("kh", window.kernel[0]) as kh, k.loop("kw", window.kernel[1]) as kw:
            (row,) = k.simplify((oh * sh + kh * dh - top,))
            (column,) = k.simplify((ow * sw + kw * dw - left,))
            pixel = k.let("pixel", x(n, c, row, column))
            plane = (n * channels + c) * (h * w)
            place = plane + (row + column * h if attrs["by_columns"] else row * w + column)
            inside = binary("and", index_in(row, 0, h), index_in(column, 0, w))
            first = binary("lt", at(), const(0, I64))
            better = binary("or", first, binary("gt", pixel, best()))
            wins = k.let("wins", binary("and", inside, better))
            k.set(best, select(wins, pixel, best()))
            k.set(at, select(wins, from_index(place, I64), at()))
        k.emit((n, c, oh, ow), at())


def _index_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for columns in (False, True):
        for sample in _samples(False)(rng):
            x = np.round(np.asarray(sample.inputs[0]))
            yield Sample((x,), {**sample.attrs, "by_columns": columns})


def _samples(average: bool) -> Any:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        cases = (
            ((1, 17, 8, 9), (3, 3), (2, 2), (1, 1, 1, 1)),
            ((1, 4, 7, 6), (2, 2), (2, 2), (0, 0, 1, 0)),
            ((2, 20, 5, 5), (5, 5), (1, 1), (2, 2, 2, 2)),
            ((1, 3, 6, 1), (3, 1), (1, 1), (1, 0, 1, 0)),
        )
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
        lower=lambda k, attrs: _lower(k, attrs, average=False), schedule=_schedule, space=depthwise_space,
        wishes=_max_wishes, samples=_samples(False), flops=_flops, quantized=movement, rows=_rows,
        onnx={"MaxPool": _import_max},
        doc="largest value of each window; pads are (top, left, bottom, right)",
    ),
    Operator(
        name="max_pool2d_index", trait="reduction", infer=_index_infer, reference=_index_reference,
        attrs={**_ATTRS, "by_columns": bool}, lower=_index_lower, schedule=lambda kernel, target: (),
        wishes=_max_wishes, samples=_index_samples,
        doc="where the largest value of each window is: an offset into the whole tensor",
    ),
    Operator(
        name="avg_pool2d", trait="reduction", infer=_infer, reference=_avg_reference,
        attrs={**_ATTRS, "count_include_pad": bool},
        lower=lambda k, attrs: _lower(k, attrs, average=True), schedule=_schedule, space=depthwise_space,
        wishes=lambda types, attrs: _wishes(types, attrs, 0.0), samples=_samples(True),
        flops=_flops, depth=_depth, quantized=_integer_mean, rows=_rows, onnx={"AveragePool": _import_avg, "LpPool": _import_lp},
        doc="mean of each window; pads are (top, left, bottom, right)",
    ),
]  # fmt: skip
