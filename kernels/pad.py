"""Padding around a tensor: with a constant, by reflection, by repeating the edge, or cyclically.

A negative amount removes elements instead; what is left is then padded on the other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axes_of, ints
from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix, imax, imin
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import IntegerForm
from tilewright.loop.builder import KernelBuilder, Reader, binary, const, index_in, select
from tilewright.loop.ir import Expr
from tilewright.registry import Border, ImportNode, Operator, Sample

_MODES = ("constant", "reflect", "edge", "wrap")


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    before, after = ints(attrs, "before"), ints(attrs, "after")
    mode = attrs["mode"]
    if mode not in _MODES:
        raise ModelError(f"`pad`: mode {mode} is not one of {', '.join(_MODES)}: repair the model")
    if len(before) != x.rank or len(after) != x.rank:
        raise ModelError(
            f"`pad` of {x}: {len(before)} and {len(after)} amounts for {x.rank} dims: repair the model"
        )
    for n, a, b in zip(x.shape, before, after, strict=True):
        low, high = _kept(n, a, b)
        if high < low:
            raise ModelError(f"`pad` of {x} by {before}, {after}: removes more than there is")
        widest, left = max(a, b, 0), high - low
        if widest and mode != "constant" and left < 1:
            raise ModelError(f"`pad` of {x} by {before}, {after}: a dim has nothing to repeat")
        if widest and mode == "reflect" and widest >= left:
            raise ModelError(
                f"`pad` of {x}: reflection by {before}, {after} is wider than the tensor: pad with "
                "`edge`, or in several steps"
            )
    shape = (n + a + b for n, a, b in zip(x.shape, before, after, strict=True))
    return [TensorType(x.dtype, tuple(shape))]


def _kept(n: int, before: int, after: int) -> tuple[int, int]:
    """The source elements low .. high - 1 that negative amounts leave."""
    return max(-before, 0), n - max(-after, 0)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    before, after = ints(attrs, "before"), ints(attrs, "after")
    crop = tuple(slice(*_kept(*d)) for d in zip(x.shape, before, after, strict=True))
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(before, after, strict=True)]
    mode = str(attrs["mode"])
    if not widths:
        return [np.array(x)]
    if mode == "constant":
        return [np.pad(x[crop], widths, constant_values=x.dtype.type(attrs["value"]))]
    return [np.pad(x[crop], widths, mode=mode)]  # type: ignore[call-overload]


def _compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    """Every load is in bounds: indices are clamped (or folded), then the constant is selected."""
    assert x[0] is not None
    mode = attrs["mode"]
    if 0 in x[0].shape:
        return const(_value(attrs, out), out.dtype)
    inside: Expr | None = None
    source: list[Ix] = []
    before, after = ints(attrs, "before"), ints(attrs, "after")
    for i, a, b, n in zip(index, before, after, x[0].shape, strict=True):
        at = i - a
        if a <= 0 and b <= 0:
            source.append(at)
            continue
        low, high = _kept(n, a, b)
        if mode == "constant":
            here = index_in(at, low, high)
            inside = here if inside is None else binary("and", inside, here)
            source.append(imin(imax(at, 0), n - 1))
        else:
            source.append(_folded(at - low, high - low, str(mode)) + low)
    value = x[0](*source)
    return value if inside is None else select(inside, value, const(_value(attrs, out), out.dtype))


def _border(attrs: Attrs) -> Border | None:
    before, after, value = ints(attrs, "before"), ints(attrs, "after"), attrs["value"]
    if attrs["mode"] != "constant" or min((*before, *after), default=-1) < 0:
        return None
    assert isinstance(value, int | float)
    return Border(tuple(zip(before, after, strict=True)), value)


def _folded(at: Ix, n: int, mode: str) -> Ix:
    """A position inside or outside 0 .. n - 1 as one inside."""
    if mode == "wrap":
        return at % n
    if mode == "reflect":  # at both ends: |at|, then 2(n - 1) - at
        at = imax(at, -at)
        at = imin(at, 2 * (n - 1) - at)
    return imin(imax(at, 0), n - 1)


def _value(attrs: Attrs, out: TensorType) -> float | int | bool:
    v = attrs["value"]
    assert isinstance(v, int | float)
    return bool(v) if out.dtype is BOOL else float(v) if out.dtype.is_float else int(v)


def _integer_form(q: IntegerForm) -> bool:
    """Bytes, with the value around them as a byte if it is one."""
    x, value = q.integers(q.node.inputs[0]), float(str(q.node.attrs["value"]))
    if x is None:
        return False
    source, scale = x
    fill, info = round(value / scale.step) + scale.zero, np.iinfo(str(scale.dtype.numpy))
    if q.node.attrs["mode"] == "constant" and (
        not info.min <= fill <= info.max or (fill - scale.zero) * scale.step != value
    ):
        return False
    padded = (q.node.op, (source,), {**q.node.attrs, "value": fill})
    return q.finish(*padded) if scale == q.scale and q.whole else q.rescale(q.make(*padded), scale)


def _import(node: ImportNode) -> Sequence[str]:
    """Amounts are an attribute before opset 11 and an input from then on."""
    rank = node.type(0).rank
    mode = str(node.attr("mode", "constant"))
    value: float | int = 0.0
    if node.opset < 11:
        pads = [int(p) for p in (node.attr("pads") or node.attr("paddings"))]
        value = float(node.attr("value", 0.0))
    else:
        pads = [int(p) for p in node.need_const(1, "the amounts").reshape(-1)]
        if node.has(2):
            value = node.need_const(2, "the value").reshape(-1)[0].item()
            value = int(value) if isinstance(value, bool) else value
    before, after = [0] * rank, [0] * rank
    axes = list(range(rank))
    if node.has(3):
        axes = axes_of(node.need_const(3, "the axes").reshape(-1), rank)
    if len(pads) != 2 * len(axes):
        raise node.fail(f"Pad has {len(pads)} amounts for {len(axes)} dims: repair the model")
    if not any(pads):
        return [node.inputs[0]]
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    attrs = {"before": tuple(before), "after": tuple(after), "mode": mode, "value": value}
    return node.add("pad", [node.inputs[0]], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases = (
        ((5,), (2,), (3,)), ((3, 17), (0, 1), (1, 0)), ((1, 2, 5, 4), (0, 0, 1, 2), (0, 0, 2, 1)),
        ((6,), (-2,), (1,)), ((9,), (3,), (-4,)), ((33,), (1,), (0,)), ((), (), ()),
        ((7, 16), (-1, 3), (2, -5)), ((2, 3, 2, 3, 4), (0, 1, 0, 2, 0), (1, 0, 1, 0, 3)),
    )  # fmt: skip
    for shape, a, b in cases:
        for mode in _MODES:
            attrs = {"before": a, "after": b, "mode": mode, "value": 1.5}
            yield Sample((np.asarray(rng.standard_normal(shape), np.float32),), attrs)
    attrs = {"before": (5,), "after": (9,), "mode": "wrap", "value": 0}
    yield Sample((rng.standard_normal(3).astype(np.float32),), attrs)
    for kind, value in ((np.int64, 2**60 + 1), (np.uint8, 200), (np.bool_, 1)):
        attrs = {"before": (1, 0), "after": (0, 2), "mode": "constant", "value": value}
        yield Sample((rng.integers(0, 2, (2, 5)).astype(kind),), attrs)
    attrs = {"before": (2,), "after": (1,), "mode": "constant", "value": float("-inf")}
    yield Sample((rng.standard_normal(4).astype(np.float32),), attrs)
    yield Sample((np.zeros((0,), np.float32),), attrs)


OPERATORS = [
    Operator(
        name="pad",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"before": tuple, "after": tuple, "mode": str, "value": (int, float)},
        compute=_compute,
        border=_border,
        quantized=_integer_form,
        samples=_samples,
        onnx={"Pad": _import},
        doc="y = x with `before` and `after` elements added around each dim",
    )
]
