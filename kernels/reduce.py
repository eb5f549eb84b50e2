"""Reductions along axes: sum, mean, maximum, minimum, product (and norms composed of them)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, binary, const, div, mul
from tilewright.loop.ir import BinaryOp, Expr, Kernel
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import reduction
from tilewright.schedule.trace import Trace

#: operator -> (combining op, NumPy reduction)
_TABLE: dict[str, tuple[BinaryOp, Callable[..., Any]]] = {
    "reduce_sum": ("add", np.sum),
    "reduce_mean": ("add", np.mean),
    "reduce_max": ("max", np.max),
    "reduce_min": ("min", np.min),
    "reduce_prod": ("mul", np.prod),
}


def _axes(attrs: Attrs) -> tuple[int, ...]:
    axes = attrs["axes"]
    assert isinstance(axes, tuple)
    return tuple(int(a) for a in axes)


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    axes = _axes(attrs)
    if any(not 0 <= a < x.rank for a in axes) or prod(x.shape[a] for a in axes) == 0:
        raise ModelError(f"a reduction of {x} along {list(axes)} is not defined")
    if attrs["keepdims"]:
        shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    else:
        shape = tuple(n for d, n in enumerate(x.shape) if d not in axes)
    return [TensorType(x.dtype, shape)]


def _reference(name: str) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        y = _TABLE[name][1](wide, axis=_axes(attrs), keepdims=bool(attrs["keepdims"]))
        return [np.asarray(y).astype(x.dtype)]

    return reference


def _start(op: BinaryOp, k: KernelBuilder) -> Expr:
    """The neutral element of the combining operation."""
    if op in ("add", "mul"):
        return const(0 if op == "add" else 1, k.out_dtype)
    if k.out_dtype.is_float:
        return const(-np.inf if op == "max" else np.inf, k.out_dtype)
    info = np.iinfo(k.out_dtype.numpy)  # type: ignore[arg-type]
    return const(int(info.min if op == "max" else info.max), k.out_dtype)


def _lower(name: str) -> Callable[[KernelBuilder, Attrs], None]:
    op = _TABLE[name][0]

    def lower(k: KernelBuilder, attrs: Attrs) -> None:
        x = k.inputs[0]
        assert x is not None
        axes = _axes(attrs)
        index: list[Ix] = [Ix(0)] * len(x.shape)
        with ExitStack() as outer:
            for d, n in enumerate(x.shape):
                if d not in axes:
                    index[d] = outer.enter_context(k.loop(f"o{d}", n))
            acc = k.local("acc", k.out_dtype)
            k.set(acc, _start(op, k))
            with ExitStack() as inner:
                for d in axes:
                    index[d] = inner.enter_context(k.loop(f"r{d}", x.shape[d]))
                k.set(acc, binary(op, acc(), x(*index)))
            value: Expr = acc()
            if name == "reduce_mean":
                count = prod(x.shape[d] for d in axes)
                if k.out_dtype.is_float:
                    value = mul(value, const(1.0 / count, k.out_dtype))
                else:
                    value = div(value, const(count, k.out_dtype))
            kept = [
                Ix(0) if d in axes else i
                for d, i in enumerate(index)
                if attrs["keepdims"] or d not in axes
            ]
            k.emit(kept, value)

    return lower


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return reduction(kernel, target)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].size


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return prod(types[0].shape[a] for a in _axes(attrs))


# ---------------------------------------------------------------- importers


def _attributes(node: ImportNode) -> dict[str, Any] | None:
    """Axes are an attribute in old opsets and an input in new ones; None means nothing to reduce."""
    rank = node.type(0).rank
    axes = node.attr("axes")
    if axes is None and node.has(1):
        axes = node.need_const(1, "the axes")
    if axes is None or np.asarray(axes).size == 0:
        if node.attr("noop_with_empty_axes", 0):
            return None
        axes = range(rank)
    fixed = sorted({int(a) % max(rank, 1) for a in np.asarray(list(axes)).reshape(-1)})
    return {"axes": tuple(fixed) if rank else (), "keepdims": bool(node.attr("keepdims", 1))}


def _importer(name: str, before: str = "", after: str = "") -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        attrs = _attributes(node)
        value = node.inputs[0]
        if before == "square":
            (value,) = node.add("mul", [value, value])
        elif before:
            (value,) = node.add(before, [value])
        if attrs is not None and attrs["axes"]:
            (value,) = node.add(name, [value], attrs)
        return node.add(after, [value]) if after else [value]

    return importer


def _log_sum_exp(node: ImportNode) -> Sequence[str]:
    """max + log(sum(exp(x - max))): never overflows."""
    attrs = _attributes(node)
    if attrs is None:
        return [node.inputs[0]]
    x = node.inputs[0]
    (top,) = node.add("reduce_max", [x], {**attrs, "keepdims": True})
    (shifted,) = node.add("sub", [x, top])
    (e,) = node.add("exp", [shifted])
    (total,) = node.add("reduce_sum", [e], attrs)
    (log,) = node.add("log", [total])
    if not attrs["keepdims"]:
        (top,) = node.add("reshape", [top], {"shape": node.type_of(log).shape})
    return node.add("add", [log, top])


def _global(name: str) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        axes = tuple(range(2, node.type(0).rank))
        return node.add(name, [node.inputs[0]], {"axes": axes, "keepdims": True})

    return importer


_ONNX: dict[str, dict[str, Callable[[ImportNode], Sequence[str]]]] = {
    "reduce_sum": {
        "ReduceSum": _importer("reduce_sum"),
        "ReduceL1": _importer("reduce_sum", before="abs"),
        "ReduceL2": _importer("reduce_sum", before="square", after="sqrt"),
        "ReduceSumSquare": _importer("reduce_sum", before="square"),
        "ReduceLogSum": _importer("reduce_sum", after="log"),
        "ReduceLogSumExp": _log_sum_exp,
    },
    "reduce_mean": {
        "ReduceMean": _importer("reduce_mean"),
        "GlobalAveragePool": _global("reduce_mean"),
    },
    "reduce_max": {"ReduceMax": _importer("reduce_max"), "GlobalMaxPool": _global("reduce_max")},
    "reduce_min": {"ReduceMin": _importer("reduce_min")},
    "reduce_prod": {"ReduceProd": _importer("reduce_prod")},
}


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    cases = (
        ((17,), (0,), False), ((3, 33), (1,), True), ((3, 33), (0,), False),
        ((2, 5, 4, 3), (2, 3), True), ((2, 1, 40), (0, 2), True), ((1, 70), (1,), False),
        ((2, 3, 4, 5), (0, 1, 2, 3), True),
    )  # fmt: skip
    for shape, axes, keep in cases:
        attrs = {"axes": axes, "keepdims": keep}
        yield Sample((rng.standard_normal(shape).astype(np.float32),), attrs)
    yield Sample((rng.integers(-3, 4, (3, 20)).astype(np.int32),), {"axes": (1,), "keepdims": True})


OPERATORS = [
    Operator(
        name=name,
        trait="reduction",
        infer=_infer,
        reference=_reference(name),
        attrs={"axes": tuple, "keepdims": bool},
        lower=_lower(name),
        schedule=_schedule,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        onnx=_ONNX[name],
        doc=f"{name[len('reduce_') :]} along `axes`",
    )
    for name in _TABLE
]
