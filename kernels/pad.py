"""Padding around a tensor: with a constant, by reflection, or by repeating the edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix, imax, imin
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, binary, const, index_in, select
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    value = attrs[name]
    assert isinstance(value, tuple)
    return tuple(int(v) for v in value)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    before, after = _ints(attrs, "before"), _ints(attrs, "after")
    if len(before) != x.rank or len(after) != x.rank:
        raise ModelError(f"`pad` of {x}: {len(before)} paddings for {x.rank} dims")
    shape = tuple(n + a + b for n, a, b in zip(x.shape, before, after, strict=True))
    if any(n < 0 for n in shape):
        raise ModelError(f"`pad` of {x} by {before}, {after}: a dim becomes negative")
    if attrs["mode"] == "reflect" and any(
        max(a, b) >= n for n, a, b in zip(x.shape, before, after, strict=True) if a or b
    ):
        raise ModelError(f"`pad` of {x}: reflection by {before}, {after} is wider than the tensor")
    return [TensorType(x.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x = np.asarray(inputs[0])
    before, after = _ints(attrs, "before"), _ints(attrs, "after")
    crop = tuple(
        slice(max(-a, 0), n - max(-b, 0)) for n, a, b in zip(x.shape, before, after, strict=True)
    )
    widths = [(max(a, 0), max(b, 0)) for a, b in zip(before, after, strict=True)]
    mode = str(attrs["mode"])
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
    """Every load is in bounds: indices are clamped (or reflected), then the constant is selected."""
    assert x[0] is not None
    mode = attrs["mode"]
    inside: Expr | None = None
    source: list[Ix] = []
    for d, (i, a, b, n) in enumerate(
        zip(index, _ints(attrs, "before"), _ints(attrs, "after"), x[0].shape, strict=True)
    ):
        at = i - a
        if a <= 0 and b <= 0:
            source.append(at)
            continue
        if mode == "reflect":  # fold at both ends: |at|, then 2(n-1) - at
            at = imax(at, -at)
            at = imin(at, 2 * (n - 1) - at)
        source.append(imin(imax(at, 0), n - 1))
        if mode == "constant":
            here = index_in(index[d] - a, 0, n)
            inside = here if inside is None else binary("and", inside, here)
    value = x[0](*source)
    return value if inside is None else select(inside, value, const(_value(attrs, out), out.dtype))


def _value(attrs: Attrs, out: TensorType) -> float | int | bool:
    v = attrs["value"]
    assert isinstance(v, int | float)
    return bool(v) if out.dtype is BOOL else float(v) if out.dtype.is_float else int(v)


def _import(node: ImportNode) -> Sequence[str]:
    """Amounts are an attribute before opset 11 and an input from then on."""
    rank = node.type(0).rank
    mode = str(node.attr("mode", "constant"))
    if mode not in ("constant", "reflect", "edge"):
        raise node.fail(f"Pad mode `{mode}` is not supported")
    value = 0.0
    if node.opset < 11:
        pads = [int(p) for p in (node.attr("pads") or node.attr("paddings"))]
        value = float(node.attr("value", 0.0))
    else:
        pads = [int(p) for p in node.need_const(1, "the amounts").reshape(-1)]
        if node.has(2):
            value = node.need_const(2, "the value").reshape(-1)[0].item()
    before, after = [0] * rank, [0] * rank
    axes = list(range(rank))
    if node.has(3):
        axes = [int(a) % rank for a in node.need_const(3, "the axes").reshape(-1)]
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    attrs = {"before": tuple(before), "after": tuple(after), "mode": mode, "value": value}
    return node.add("pad", [node.inputs[0]], attrs)


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases = (
        ((5,), (2,), (3,)), ((3, 17), (0, 1), (1, 0)), ((1, 2, 5, 4), (0, 0, 1, 2), (0, 0, 2, 1)),
        ((6,), (-2,), (1,)),
    )  # fmt: skip
    for shape, a, b in cases:
        for mode in ("constant", "reflect", "edge"):
            if mode == "reflect" and min(a) < 0:
                continue
            attrs = {"before": a, "after": b, "mode": mode, "value": 1.5}
            yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)


OPERATORS = [
    Operator(
        name="pad",
        trait="injective",
        infer=_infer,
        reference=_reference,
        attrs={"before": tuple, "after": tuple, "mode": str, "value": (int, float)},
        compute=_compute,
        samples=_samples,
        onnx={"Pad": _import},
        doc="y = x with `before` and `after` elements added around each dim",
    )
]
