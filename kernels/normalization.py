"""Normalisation: y = (x - mean) / sqrt(variance + epsilon) * scale + bias.

batch_norm     mean and variance are constants per channel (dim 1); folded away by a graph pass
layer_norm     statistics over the dims from `axis` on
instance_norm  statistics over the spatial dims of each channel; scale and bias per channel
Statistics take two passes over the data (mean, then squared distance): no cancellation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from math import prod
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Local, Reader, add, const, fma, mul, sub, unary
from tilewright.loop.ir import Expr, Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import row_reduction, rows_space
from tilewright.schedule.trace import Trace


def _epsilon(attrs: Attrs) -> float:
    e = attrs["epsilon"]
    assert isinstance(e, int | float)
    return float(e)


# ---------------------------------------------------------------- batch_norm


def _batch_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    wanted = TensorType(x.dtype, (x.shape[1],) if x.rank > 1 else (1,))
    if x.rank < 1 or not x.dtype.is_float:
        raise ModelError(f"`batch_norm` of {x}: a float tensor of rank 1 or more is wanted")
    for t in types[1:]:
        if t != wanted:
            raise ModelError(f"`batch_norm` of {x}: a parameter is {t}, not {wanted}")
    return [x]


def _batch_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, bias, mean, var = (np.asarray(v, np.float64) for v in inputs)
    bend = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (1,)
    a = scale / np.sqrt(var + _epsilon(attrs))
    y = (x - mean.reshape(bend)) * a.reshape(bend) + bias.reshape(bend)
    return [y.astype(inputs[0].dtype)]


def _batch_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    data, scale, bias, mean, var = (r for r in x if r is not None)
    c = index[1] if len(index) > 1 else Ix(0)
    inverse = unary("rsqrt", add(var(c), const(_epsilon(attrs), out.dtype)))
    return fma(sub(data(*index), mean(c)), mul(inverse, scale(c)), bias(c))


def _import_batch(node: ImportNode) -> Sequence[str]:
    if node.attr("training_mode", 0):
        return _batch_training(node)
    if node.output_count > 1:
        raise node.fail("its statistics outputs are not supported: export the model for inference")
    if not node.attr("spatial", 1):
        raise node.fail("statistics per element (spatial=0) are not supported: export with opset 9")
    return node.add("batch_norm", node.inputs[:5], {"epsilon": float(node.attr("epsilon", 1e-5))})


def _batch_training(node: ImportNode) -> Sequence[str]:
    """Normalisation with the batch's own statistics; those given move towards them by 1 - momentum."""
    t = node.type(0)
    axes = tuple(d for d in range(t.rank) if d != 1)
    momentum = float(node.attr("momentum", 0.9))

    def number(value: float) -> str:
        return node.constant(np.asarray(value, t.dtype.numpy), "number")

    (mean,) = node.add("reduce_mean", [node.inputs[0]], {"axes": axes, "keepdims": True})
    (delta,) = node.add("sub", [node.inputs[0], mean])
    (square,) = node.add("mul", [delta, delta])
    (variance,) = node.add("reduce_mean", [square], {"axes": axes, "keepdims": True})
    statistics: list[str] = []
    for own, kept in ((mean, node.inputs[3]), (variance, node.inputs[4])):
        (flat,) = node.add("reshape", [own], {"shape": node.type_of(kept).shape})
        statistics.append(flat)
    inputs = [*node.inputs[:3], *statistics]
    (y,) = node.add("batch_norm", inputs, {"epsilon": float(node.attr("epsilon", 1e-5))})
    results = [y]
    for own, kept in zip(statistics, node.inputs[3:5], strict=True):
        (old,) = node.add("mul", [kept, number(momentum)])
        (new,) = node.add("mul", [own, number(1 - momentum)])
        results += node.add("add", [old, new])
    return results


# ---------------------------------------------------------------- layer_norm and instance_norm


def _statistics(
    k: KernelBuilder, x: Reader, outer: list[Ix], dims: Sequence[int], epsilon: float
) -> tuple[Expr, Expr, Local]:
    """Mean and 1/sqrt(variance + epsilon) over `dims`; the row x - mean is kept in scratch."""
    sizes = [x.shape[d] for d in dims]
    count = prod(sizes)
    dtype = k.out_dtype
    row = k.local("row", dtype, (count,))
    total, spread = k.local("total", dtype), k.local("spread", dtype)

    def at(j: Ix) -> tuple[Ix, ...]:
        index = list(outer)
        rest = count
        for d, n in zip(dims, sizes, strict=True):
            rest //= n
            index[d] = (j // rest) % n if d != dims[0] else j // rest
        return tuple(index)

    k.set(total, const(0.0, dtype))
    with k.loop("j", count) as j:
        k.set(total, add(total(), x(*at(j))))
    mean = k.let("mean", mul(total(), const(1.0 / count, dtype)))
    k.set(spread, const(0.0, dtype))
    with k.loop("d", count) as j:
        delta = k.let("delta", sub(x(*at(j)), mean))
        k.set(row, delta, j)
        k.set(spread, fma(delta, delta, spread()))
    variance = mul(spread(), const(1.0 / count, dtype))
    inverse = k.let("inverse", unary("rsqrt", add(variance, const(epsilon, dtype))))
    return mean, inverse, row


def _layer_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, bias = (*types, None)[:3]
    assert x is not None and scale is not None
    axis = integer(attrs, "axis")
    if not 0 <= axis < x.rank or not x.dtype.is_float or prod(x.shape[axis:]) == 0:
        raise ModelError(f"`layer_norm` of {x} from axis {axis} on is not defined")
    row = x.shape[axis:]
    for t in (scale, bias):
        if t is not None and (t.dtype is not x.dtype or not _fits(t.shape, row)):
            raise ModelError(f"`layer_norm` of {x} from axis {axis} on: parameter {t} does not fit")
    return [x]


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether `shape` broadcasts to exactly `target`."""
    tail = target[len(target) - len(shape) :] if len(shape) <= len(target) else ()
    return len(tail) == len(shape) and all(n in (1, t) for n, t in zip(shape, tail, strict=True))


def _layer_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, bias = (*inputs, None)[:3]
    wide = x.astype(np.float64)
    axes = tuple(range(integer(attrs, "axis"), x.ndim))
    delta = wide - wide.mean(axis=axes, keepdims=True)
    y = delta / np.sqrt((delta**2).mean(axis=axes, keepdims=True) + _epsilon(attrs)) * scale
    return [np.asarray(y if bias is None else y + bias).astype(x.dtype)]


def _layer_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, scale, bias = (*k.inputs, None)[:3]
    assert x is not None and scale is not None
    rank, axis = len(x.shape), integer(attrs, "axis")
    dims = list(range(axis, rank))
    index: list[Ix] = [Ix(0)] * rank
    with ExitStack() as nest:
        for d in range(axis):
            index[d] = nest.enter_context(k.loop(f"o{d}", x.shape[d]))
        _, inverse, row = _statistics(k, x, index, dims, _epsilon(attrs))
        count = prod(x.shape[d] for d in dims)
        with k.loop("s", count) as j:
            rest = count
            for d in dims:
                rest //= x.shape[d]
                index[d] = (j // rest) % x.shape[d] if d != axis else j // rest
            inner = k.simplify(index[axis:])
            y = mul(mul(row(j), inverse), scale.broadcast(inner))
            k.emit(index, y if bias is None else add(y, bias.broadcast(inner)))


def _import_layer(node: ImportNode) -> Sequence[str]:
    if node.output_count > 1:
        raise node.fail("the outputs Mean and InvStdDev are not supported: remove them")
    axis, rank = int(node.attr("axis", -1)), node.type(0).rank
    if not -rank <= axis < rank:
        raise node.fail(f"axis {axis} is out of range for {node.type(0)}: repair the model")
    attrs = {"axis": axis % rank, "epsilon": float(node.attr("epsilon", 1e-5))}
    return node.add("layer_norm", node.inputs[: 3 if node.has(2) else 2], attrs)


def _instance_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, bias = types
    assert x is not None and scale is not None and bias is not None
    if x.rank < 3 or not x.dtype.is_float or prod(x.shape[2:]) == 0:
        raise ModelError(f"`instance_norm` of {x}: a float tensor with spatial dims is wanted")
    wanted = TensorType(x.dtype, (x.shape[1],))
    if scale != wanted or bias != wanted:
        raise ModelError(f"`instance_norm` of {x}: {scale} and {bias} are not {wanted}")
    return [x]


def _instance_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, bias = inputs
    wide = x.astype(np.float64)
    axes = tuple(range(2, x.ndim))
    bend = (1, -1) + (1,) * (x.ndim - 2)
    delta = wide - wide.mean(axis=axes, keepdims=True)
    y = delta / np.sqrt((delta**2).mean(axis=axes, keepdims=True) + _epsilon(attrs))
    return [np.asarray(y * scale.reshape(bend) + bias.reshape(bend)).astype(x.dtype)]


def _instance_lower(k: KernelBuilder, attrs: Attrs) -> None:
    x, scale, bias = k.inputs
    assert x is not None and scale is not None and bias is not None
    rank = len(x.shape)
    dims = list(range(2, rank))
    index: list[Ix] = [Ix(0)] * rank
    with k.loop("o0", x.shape[0]) as index[0], k.loop("o1", x.shape[1]) as index[1]:
        _, inverse, row = _statistics(k, x, index, dims, _epsilon(attrs))
        factor = k.let("factor", mul(inverse, scale(index[1])))
        count = prod(x.shape[2:])
        with k.loop("s", count) as j:
            rest = count
            for d in dims:
                rest //= x.shape[d]
                index[d] = (j // rest) % x.shape[d] if d != 2 else j // rest
            k.emit(index, fma(row(j), factor, bias(index[1])))


def _import_instance(node: ImportNode) -> Sequence[str]:
    attrs = {"epsilon": float(node.attr("epsilon", 1e-5))}
    return node.add("instance_norm", node.inputs[:3], attrs)


def _import_group(node: ImportNode) -> Sequence[str]:
    """Groups of channels are the channels of an instance norm; scale and bias follow per channel.

    Opset 18 has one scale and bias per group, later opsets have them per channel.
    """
    x, groups = node.type(0), int(node.attr("num_groups", 0))
    if x.rank < 3 or groups < 1 or x.shape[1] % groups:
        raise node.fail(
            f"{x} cannot be normalised in {groups} groups of channels: repair the model"
        )
    if node.type(1) != node.type(2) or node.type(1).dtype is not x.dtype:
        raise node.fail(f"scale {node.type(1)} and bias {node.type(2)} do not fit {x}")
    grouped = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    (value,) = node.add("reshape", [node.inputs[0]], {"shape": grouped})
    attrs = {"epsilon": float(node.attr("epsilon", 1e-5))}
    per_group = node.opset < 21
    if per_group:
        scale, bias = node.inputs[1], node.inputs[2]
    else:
        node.reserve(groups)
        scale = node.constant(np.ones(groups, x.dtype.numpy), "scale")
        bias = node.constant(np.zeros(groups, x.dtype.numpy), "bias")
    (y,) = node.add("instance_norm", [value, scale, bias], attrs)
    (y,) = node.add("reshape", [y], {"shape": x.shape})
    if per_group:
        return [y]
    channel = {"shape": (x.shape[1], *(1 for _ in x.shape[2:]))}
    (scale,) = node.add("reshape", [node.inputs[1]], channel)
    (bias,) = node.add("reshape", [node.inputs[2]], channel)
    (y,) = node.add("mul", [y, scale])
    return node.add("add", [y, bias])


# ---------------------------------------------------------------- shared


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return row_reduction(kernel, target)


def _layer_wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    assert types[0] is not None
    return LayoutWish(orders={0: tuple(range(types[0].rank))})


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return 7 * types[0].size


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return prod(types[0].shape[integer(attrs, "axis") if "axis" in attrs else 2 :])


def _f(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _batch_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = _f(rng, 2, 17, 3, 2)
    p = [_f(rng, 17) for _ in range(3)]
    yield Sample((x, *p, np.abs(_f(rng, 17)) + 0.1), {"epsilon": 1e-5})


def _layer_samples(rng: np.random.Generator) -> Iterator[Sample]:
    yield Sample((_f(rng, 3, 40), _f(rng, 40), _f(rng, 40)), {"axis": 1, "epsilon": 1e-5})
    yield Sample((_f(rng, 2, 3, 9), _f(rng, 3, 9)), {"axis": 1, "epsilon": 1e-6})
    yield Sample((_f(rng, 2, 3, 9) + 100, _f(rng, 9), _f(rng, 3, 1)), {"axis": 1, "epsilon": 1e-5})


def _instance_samples(rng: np.random.Generator) -> Iterator[Sample]:
    yield Sample((_f(rng, 2, 3, 5, 4), _f(rng, 3), _f(rng, 3)), {"epsilon": 1e-5})


OPERATORS = [
    Operator(
        name="batch_norm", trait="injective", infer=_batch_infer, reference=_batch_reference,
        attrs={"epsilon": (int, float)}, compute=_batch_compute, samples=_batch_samples,
        flops=_flops, onnx={"BatchNormalization": _import_batch},
        doc="normalisation with constant statistics per channel",
    ),
    Operator(
        name="layer_norm", trait="reduction", infer=_layer_infer, reference=_layer_reference,
        attrs={"axis": int, "epsilon": (int, float)}, lower=_layer_lower, schedule=_schedule, space=rows_space,
        wishes=_layer_wishes, samples=_layer_samples, flops=_flops, depth=_depth,
        onnx={"LayerNormalization": _import_layer},
        doc="normalisation over the dims from `axis` on",
    ),
    Operator(
        name="instance_norm", trait="reduction", infer=_instance_infer,
        reference=_instance_reference, attrs={"epsilon": (int, float)}, lower=_instance_lower,
        schedule=_schedule, space=rows_space, samples=_instance_samples, flops=_flops, depth=_depth,
        onnx={"InstanceNormalization": _import_instance, "GroupNormalization": _import_group},
        doc="normalisation over the spatial dims of each channel",
    ),
]  # fmt: skip
