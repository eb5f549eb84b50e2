"""Matrix product: C[.., m, n] = sum over k of A[.., m, k] * B[.., k, n] (+ bias[n] or bias[.., m, n]).

ONNX MatMul and Gemm become this operator; transposes are separate nodes that fold into constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, add, const, fma
from tilewright.loop.ir import Kernel
from tilewright.registry import ImportNode, LayoutWish, Operator, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import product
from tilewright.schedule.trace import Trace


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b, bias = (*types, None)[:3]
    assert a is not None and b is not None
    if a.dtype is not b.dtype or a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
        raise ModelError(f"`matmul` of {a} and {b}: the shapes do not fit")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ModelError(f"`matmul` of {a} and {b}: the batch dims do not broadcast") from None
    shape = (*batch, a.shape[-2], b.shape[-1])
    if bias is not None and np.broadcast_shapes(shape, bias.shape) != shape:
        raise ModelError(f"`matmul`: bias {bias} does not broadcast to {list(shape)}")
    return [TensorType(a.dtype, shape)]


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    a, b, bias = (*inputs, None)[:3]
    wide = np.float64 if a.dtype.kind == "f" else a.dtype
    y = np.matmul(a.astype(wide), b.astype(wide))
    return [np.asarray(y if bias is None else y + bias).astype(a.dtype)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    a, b, bias = (*k.inputs, None)[:3]
    assert a is not None and b is not None
    with ExitStack() as nest:
        batch = [
            nest.enter_context(k.loop(f"b{i}", n)) for i, n in enumerate(k.out_shape[:-2])
        ]
        m = nest.enter_context(k.loop("m", k.out_shape[-2]))
        n = nest.enter_context(k.loop("n", k.out_shape[-1]))
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(0, k.out_dtype))
        with k.loop("k", a.shape[-1]) as kk:
            k.set(acc, fma(_at(a, batch, m, kk), _at(b, batch, kk, n), acc()))
        value = acc() if bias is None else add(acc(), bias.broadcast((*batch, m, n)))
        k.emit((*batch, m, n), value)


def _at(x: Reader, batch: Sequence[Ix], i: Ix, j: Ix) -> Any:
    """Element (batch, i, j) of an operand whose batch dims may broadcast."""
    lead = batch[len(batch) - (len(x.shape) - 2) :]
    index = [Ix(0) if n == 1 else v for n, v in zip(x.shape[:-2], lead, strict=True)]
    return x(*index, i, j)


def _schedule(kernel: Kernel, target: Target) -> Trace:
    return product(kernel, target)


def _wishes(types: Sequence[TensorType | None], attrs: Attrs) -> LayoutWish:
    """Rows of both operands contiguous: A is read along k, B along n."""
    return LayoutWish(
        orders={i: tuple(range(t.rank)) for i, t in enumerate(types[:2]) if t is not None}
    )


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    out = _infer(types, attrs)[0]
    assert types[0] is not None
    return 2 * out.size * types[0].shape[-1]


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].shape[-1]


# ---------------------------------------------------------------- importers


def _import_matmul(node: ImportNode) -> Sequence[str]:
    a, b = node.inputs[0], node.inputs[1]
    ra, rb = node.type(0).rank, node.type(1).rank
    if ra == 1:
        (a,) = node.add("reshape", [a], {"shape": (1, *node.type(0).shape)})
    if rb == 1:
        (b,) = node.add("reshape", [b], {"shape": (*node.type(1).shape, 1)})
    (y,) = node.add("matmul", [a, b])
    shape = list(node.type_of(y).shape)
    if rb == 1:
        shape.pop()
    if ra == 1:
        shape.pop(len(shape) - (0 if rb == 1 else 1) - 1)
    if ra == 1 or rb == 1:
        return node.add("reshape", [y], {"shape": tuple(shape)})
    return [y]


def _import_gemm(node: ImportNode) -> Sequence[str]:
    a, b = node.inputs[0], node.inputs[1]
    if node.attr("transA", 0):
        (a,) = node.add("transpose", [a], {"perm": (1, 0)})
    if node.attr("transB", 0):
        (b,) = node.add("transpose", [b], {"perm": (1, 0)})
    dtype = node.type(0).dtype.numpy

    def scaled(x: str, name: str) -> str:
        factor = float(node.attr(name, 1.0))
        if factor == 1.0:
            return x
        return node.add("mul", [x, node.constant(np.asarray(factor, dtype), name)])[0]

    b = scaled(b, "alpha")
    if not node.has(2) or float(node.attr("beta", 1.0)) == 0.0:
        return node.add("matmul", [a, b])
    return node.add("matmul", [a, b, scaled(node.inputs[2], "beta")])


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    for m, n, kk in ((1, 1, 1), (1, 33, 7), (7, 16, 5), (5, 17, 16), (15, 40, 3), (9, 1, 20)):
        yield Sample((f(m, kk), f(kk, n)))
        yield Sample((f(m, kk), f(kk, n), f(n)))
    yield Sample((f(2, 3, 4, 5), f(2, 3, 5, 18)))
    yield Sample((f(3, 4, 5), f(5, 6), f(4, 6)))


OPERATORS = [
    Operator(
        name="matmul",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        lower=_lower,
        schedule=_schedule,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        onnx={"MatMul": _import_matmul, "Gemm": _import_gemm},
        doc="C = A B (+ bias), batched with broadcasting",
    )
]
