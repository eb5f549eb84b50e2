"""Reductions along axes: sum, mean, maximum, minimum, product (and norms composed of them).

y[o..] = combination over all r.. of x[o.., r..]; the mean divides the sum by their number.
Global pools are reductions over the spatial dims.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.core.dtypes import BOOL, DType, dtype
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import IntegerForm, average, movement
from tilewright.loop.builder import KernelBuilder, binary, cast, const, div, mul
from tilewright.loop.ir import BinaryOp, Expr, Kernel
from tilewright.registry import ImportNode, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import reduction, reduction_space
from tilewright.schedule.trace import Trace

#: operator -> (combining op, NumPy reduction)
_TABLE: dict[str, tuple[BinaryOp, Callable[..., Any]]] = {
    "reduce_sum": ("add", np.sum),
    "reduce_mean": ("add", np.mean),
    "reduce_max": ("max", np.max),
    "reduce_min": ("min", np.min),
    "reduce_prod": ("mul", np.prod),
}
#: The largest of booleans is their disjunction, the smallest their conjunction.
_LOGICAL: dict[str, BinaryOp] = {"reduce_max": "or", "reduce_min": "and"}


def _axes(attrs: Attrs) -> tuple[int, ...]:
    axes = attrs["axes"]
    assert isinstance(axes, tuple)
    return tuple(int(a) for a in axes)


def _infer(name: str, types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    axes = _axes(attrs)
    if x.dtype is BOOL and name not in _LOGICAL:
        raise ModelError(f"`{name}` of {x}: a tensor of numbers is wanted")
    if any(not 0 <= a < x.rank for a in axes):
        raise ModelError(f"the reduction of {x} along {list(axes)} is not defined")
    if attrs["keepdims"]:
        shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    else:
        shape = tuple(n for d, n in enumerate(x.shape) if d not in axes)
    return [TensorType(_result(x.dtype, attrs), shape)]


def _result(number: DType, attrs: Attrs) -> DType:
    """The type of the result: that of x, or `to` (bytes are summed in i32)."""
    to = attrs.get("to", number.name)
    assert isinstance(to, str)
    return dtype(to)


def _reference(name: str) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        number = _result(dtype(x.dtype), attrs).numpy
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x.astype(number)
        start = {} if name not in _LOGICAL else {"initial": _least(name, wide.dtype)}
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of nothing is not a number
            y = _TABLE[name][1](wide, axis=_axes(attrs), keepdims=bool(attrs["keepdims"]), **start)
            return [np.asarray(y).astype(number)]

    return reference


def _least(name: str, t: np.dtype[Any]) -> Any:
    """The extremum of no elements: what every number of this type replaces."""
    largest = name == "reduce_max"
    if t.kind == "b":
        return not largest
    if t.kind == "f":
        return -np.inf if largest else np.inf
    info = np.iinfo(t)
    return info.min if largest else info.max


def _start(op: BinaryOp, t: DType) -> Expr:
    """The neutral element of the combining operation."""
    if op in ("add", "mul", "or", "and"):
        return const(0 if op == "add" else 1 if op == "mul" else op == "and", t)
    if t.is_float:
        return const(-np.inf if op == "max" else np.inf, t)
    lowest = -(1 << (t.bits - 1)) if t.kind == "int" else 0
    return const(lowest if op == "max" else lowest + (1 << t.bits) - 1, t)


def _lower(name: str) -> Callable[[KernelBuilder, Attrs], None]:
    def lower(k: KernelBuilder, attrs: Attrs) -> None:
        x = k.inputs[0]
        assert x is not None
        axes = _axes(attrs)
        index: list[Ix] = [Ix(0)] * len(x.shape)
        with ExitStack() as outer:
            for d, n in enumerate(x.shape):
                if d not in axes:
                    index[d] = outer.enter_context(k.loop(f"o{d}", n))
            op = _LOGICAL[name] if k.out_dtype is BOOL else _TABLE[name][0]
            acc = k.local("acc", k.out_dtype)
            k.set(acc, _start(op, k.out_dtype))
            with ExitStack() as inner:
                for d in axes:
                    index[d] = inner.enter_context(k.loop(f"r{d}", x.shape[d]))
                k.set(acc, binary(op, acc(), cast(x(*index), k.out_dtype)))
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


def _sum(q: IntegerForm) -> bool:
    """A sum or mean of bytes, summed in i32."""
    x = q.integers(q.node.inputs[0])
    if x is None:
        return False
    source, scale = x
    count = prod(q.type_of(source).shape[a] for a in _axes(q.node.attrs))
    if count * 255 >= 1 << 31:
        return False
    total = q.make("reduce_sum", (source,), {**q.node.attrs, "to": "i32"})
    total = q.shifted(total, -scale.zero * count)
    divisor = np.asarray(count if q.node.op == "reduce_mean" else 1)
    return average(q, total, scale, divisor, count)


_INTEGER: dict[str, Callable[[IntegerForm], bool]] = {
    "reduce_sum": _sum, "reduce_mean": _sum, "reduce_max": movement, "reduce_min": movement
}  # fmt: skip


# ---------------------------------------------------------------- importers


def _attributes(node: ImportNode) -> dict[str, Any] | None:
    """Axes are an attribute in old opsets and an input in new ones; None means nothing to reduce.

    What surrounds a reduction (the square of ReduceSumSquare, say) is applied in any case.
    """
    rank = node.type(0).rank
    axes = node.attr("axes")
    if axes is None and node.has(1):
        axes = node.need_const(1, "the axes")
    if axes is None or np.asarray(axes).size == 0:
        if node.attr("noop_with_empty_axes", 0):
            return None
        axes = range(rank)
    listed = [int(a) for a in np.asarray(list(axes)).reshape(-1)]
    if any(not -rank <= a < rank for a in listed):
        raise node.fail(f"axes {listed} are out of range for {node.type(0)}: repair the model")
    fixed = tuple(sorted({a % rank for a in listed}))
    return {"axes": fixed, "keepdims": bool(node.attr("keepdims", 1))}


def _importer(
    name: str, before: str = "", after: str = ""
) -> Callable[[ImportNode], Sequence[str]]:
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
    """top + log(sum(exp(x - top))) with the maximum as top: never overflows.

    An infinite maximum is made finite, so that infinities come out as themselves and not as NaN.
    """
    attrs, x = _attributes(node), node.inputs[0]
    number = node.type(0).dtype
    if not number.is_float:
        raise node.fail(f"ReduceLogSumExp of {node.type(0)} is not supported: cast it to float")
    if attrs is None or not attrs["axes"]:
        return [x]
    limit = float(np.finfo(number.numpy).max)  # type: ignore[type-var]
    (top,) = node.add("reduce_max", [x], {**attrs, "keepdims": True})
    (top,) = node.add("clip", [top], {"min": -limit, "max": limit})
    (shifted,) = node.add("sub", [x, top])
    (e,) = node.add("exp", [shifted])
    (total,) = node.add("reduce_sum", [e], attrs)
    (log,) = node.add("log", [total])
    if not attrs["keepdims"]:
        (top,) = node.add("reshape", [top], {"shape": node.type_of(log).shape})
    return node.add("add", [log, top])


def _lp_normalize(node: ImportNode) -> Sequence[str]:
    """x / (sum |x|^p)^(1/p) along an axis; 0 where the norm is 0."""
    p, t = int(node.attr("p", 2)), node.type(0)
    attrs = {"axes": (axis_of(node.attr("axis", -1), t.rank),), "keepdims": True}
    x = node.inputs[0]
    (value,) = node.add("abs", [x]) if p == 1 else node.add("mul", [x, x])
    (norm,) = node.add("reduce_sum", [value], attrs)
    if p == 2:
        (norm,) = node.add("sqrt", [norm])
    zero = node.constant(np.zeros((), t.dtype.numpy), "zero")
    one = node.constant(np.ones((), t.dtype.numpy), "one")
    (empty,) = node.add("eq", [norm, zero])
    (norm,) = node.add("where", [empty, one, norm])
    return node.add("div", [x, norm])


def _global_lp(node: ImportNode) -> Sequence[str]:
    """(sum |x|^p)^(1/p) over all spatial dims."""
    p, number = int(node.attr("p", 2)), node.type(0).dtype.numpy
    (value,) = node.add("abs", [node.inputs[0]])
    (value,) = node.add("pow", [value, node.constant(np.asarray(p, number), "p")])
    axes = tuple(range(2, node.type(0).rank))
    (value,) = node.add("reduce_sum", [value], {"axes": axes, "keepdims": True})
    return node.add("pow", [value, node.constant(np.asarray(1 / p, number), "root")])


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
        "GlobalLpPool": _global_lp,
        "LpNormalization": _lp_normalize,
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
    x = rng.integers(-128, 128, (1, 5, 3, 4)).astype(np.int8)
    yield Sample((x,), {"axes": (2, 3), "keepdims": True, "to": "i32"})


OPERATORS = [
    Operator(
        name=name,
        trait="reduction",
        infer=partial(_infer, name),
        reference=_reference(name),
        attrs={"axes": tuple, "keepdims": bool},
        optional_attrs={"to": str},
        lower=_lower(name),
        schedule=_schedule,
        space=reduction_space,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        quantized=_INTEGER.get(name),
        onnx=_ONNX[name],
        doc=f"{name[len('reduce_') :]} along `axes`",
    )
    for name in _TABLE
]
