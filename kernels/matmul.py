"""Matrix product: C[.., m, n] = bias[.., m, n] + sum over k of A[.., m, k] * B[.., k, n].

Batch dims and the bias broadcast as in NumPy; bytes are summed in i32; with `raised`, A of signed bytes counts as A + 128.
ONNX MatMul and Gemm become this operator; transposes are separate nodes that fold into constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from tilewright.core.dtypes import I8, U8, sum_of_products
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import IntegerForm, contraction
from tilewright.loop.builder import KernelBuilder, Reader, add, cast, const, fma
from tilewright.loop.ir import Kernel
from tilewright.loop.raised import raised
from tilewright.registry import ImportNode, LayoutWish, Operator, Rows, Sample
from tilewright.schedule.target import Target
from tilewright.schedule.templates import product, product_space
from tilewright.schedule.trace import Trace


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    a, b, bias = (*types, None)[:3]
    assert a is not None and b is not None
    total = sum_of_products(a.dtype, b.dtype)
    if attrs.get("raised", False) and (a.dtype is not I8 or b.dtype is not I8):
        raise ModelError(f"`matmul` of {a} and {b}: only signed bytes can be raised")
    if total is None:
        raise ModelError(f"`matmul` of {a} and {b}: two tensors of one number type are wanted")
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
        raise ModelError(f"`matmul` of {a} and {b}: the shapes do not fit")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ModelError(f"`matmul` of {a} and {b}: the batch dims do not broadcast") from None
    out = TensorType(total, (*batch, a.shape[-2], b.shape[-1]))
    if bias is not None and (bias.dtype is not out.dtype or not _fits(bias.shape, out.shape)):
        raise ModelError(f"`matmul`: bias {bias} does not broadcast to {out}")
    return [out]


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether `shape` broadcasts to exactly `target`."""
    tail = target[len(target) - len(shape) :] if len(shape) <= len(target) else ()
    return len(tail) == len(shape) and all(n in (1, t) for n, t in zip(shape, tail, strict=True))


def _reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    a, b, bias = (*inputs, None)[:3]
    total = a.dtype if a.dtype.itemsize > 1 else np.dtype(np.int32)
    wide = np.float64 if a.dtype.kind == "f" else total
    left = a.astype(wide)
    y = np.matmul(left + 128 if attrs.get("raised", False) else left, b.astype(wide))
    return [np.asarray(y if bias is None else y + bias).astype(total)]


def _lower(k: KernelBuilder, attrs: Attrs) -> None:
    a, b, bias = (*k.inputs, None)[:3]
    assert a is not None and b is not None
    with ExitStack() as nest:
        batch = [nest.enter_context(k.loop(f"b{i}", n)) for i, n in enumerate(k.out_shape[:-2])]
        m = nest.enter_context(k.loop("m", k.out_shape[-2]))
        n = nest.enter_context(k.loop("n", k.out_shape[-1]))
        acc = k.local("acc", k.out_dtype)
        k.set(acc, const(0, k.out_dtype))
        with k.loop("k", a.shape[-1]) as kk:
            left = _at(a, batch, m, kk)
            left = cast(raised(left) if attrs.get("raised", False) else left, k.out_dtype)
            k.set(acc, fma(left, cast(_at(b, batch, kk, n), k.out_dtype), acc()))
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


def _rows(types: Sequence[TensorType | None], attrs: Attrs, first: int, end: int) -> Rows | None:
    """The same rows of A, and all of B."""
    a, b, bias = (*types, None)[:3]
    assert a is not None and b is not None
    whole = bias is None or bias.rank < 2 or bias.shape[-2] == 1
    return Rows(first, end, attrs) if a.rank == 4 and b.rank <= 4 and whole else None


def _apart(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    """The batch dims."""
    return max(t.rank for t in types[:2] if t is not None) - 2


def _quantized(q: IntegerForm) -> bool:
    """With constant weights as all contractions; two tensors as in MatMulInteger."""
    if contraction(q, -1):
        return True
    x, w = (q.integers(i) for i in q.node.inputs[:2])
    if x is None or w is None or len(q.node.inputs) > 2:
        return False
    (a, left), (b, right) = x, w
    depth = q.type_of(a).shape[-1]
    largest = 4 * depth * 255 * 255
    if largest >= 1 << 31:
        return False
    total = q.make("matmul", (a, b), {})
    for source, zero, axis in ((b, left.zero, -2), (a, right.zero, -1)):
        if zero:
            axis += q.type_of(source).rank
            sums = q.make("reduce_sum", (source,), _summed(axis))
            share = q.make("mul", (sums, q.constant("zero", np.asarray(zero, np.int32))), {})
            total = q.make("sub", (total, share), {})
    total = q.shifted(total, left.zero * right.zero * depth)
    factor = np.float32(left.step) * np.float32(right.step) / np.float32(q.scale.step)
    return q.requantize(total, np.asarray(factor), 255 * 255 * depth)


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    out = _infer(types, attrs)[0]
    assert types[0] is not None
    return 2 * out.size * types[0].shape[-1]


def _depth(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return types[0].shape[-1]


# ---------------------------------------------------------------- importers


def _import_matmul(node: ImportNode) -> Sequence[str]:
    """A vector is a matrix of one row (left) or one column (right), dropped from the result."""
    a, b = node.inputs[0], node.inputs[1]
    ta, tb = node.type(0), node.type(1)
    if ta.rank == 0 or tb.rank == 0:
        raise node.fail(f"the product of {ta} and {tb} has a scalar operand: use Mul")
    if ta.rank == 1:
        (a,) = node.add("reshape", [a], {"shape": (1, *ta.shape)})
    if tb.rank == 1:
        (b,) = node.add("reshape", [b], {"shape": (*tb.shape, 1)})
    (y,) = node.add("matmul", [a, b])
    if ta.rank > 1 and tb.rank > 1:
        return [y]
    *batch, m, n = node.type_of(y).shape
    shape = (*batch, *([m] if ta.rank > 1 else []), *([n] if tb.rank > 1 else []))
    return node.add("reshape", [y], {"shape": shape})


def _import_gemm(node: ImportNode) -> Sequence[str]:
    """alpha * A' B' + beta * C: the factors go into constant operands where there are any."""
    a, b = node.inputs[0], node.inputs[1]
    if node.type(0).rank != 2 or node.type(1).rank != 2:
        raise node.fail(f"Gemm of {node.type(0)} and {node.type(1)}: two matrices are wanted")
    alpha, beta = float(node.attr("alpha", 1.0)), float(node.attr("beta", 1.0))
    if node.const(1) is None and node.const(0) is not None:
        a = _scaled(node, a, alpha)
    else:
        b = _scaled(node, b, alpha)
    if node.attr("transA", 0):
        (a,) = node.add("transpose", [a], {"perm": (1, 0)})
    if node.attr("transB", 0):
        (b,) = node.add("transpose", [b], {"perm": (1, 0)})
    if not node.has(2) or beta == 0.0:
        return node.add("matmul", [a, b])
    return node.add("matmul", [a, b, _scaled(node, node.inputs[2], beta)])


def _import_integer(node: ImportNode) -> Sequence[str]:
    """MatMulInteger: (A - a)(B - b) = AB - a (sums of B's columns - K b) - (sums of A's rows) b.

    Zero points are scalars, or one per row of A and column of B; that of constant weights moves into them.
    """
    left, right = node.inputs[:2]
    ta, tb = node.type(0), node.type(1)
    if ta.rank < 2 or tb.rank < 2 or not {ta.dtype, tb.dtype} <= {I8, U8}:
        raise node.fail(f"the product of {ta} and {tb} is not supported: use matrices of bytes")
    a, b = _zero(node, 2, (ta.shape[-2], 1)), _zero(node, 3, (tb.shape[-1],))
    known, zeros = node.const(1), node.const(3)
    if b and known is not None and zeros is not None:
        centred = known.astype(np.int16) - zeros
        small = np.array_equal(centred, centred.astype(np.int8))
        right, b = node.constant(centred.astype(np.int8) if small else centred, "weights"), ""
    (y,) = node.add("matmul", [left, right])
    if a:
        (sums,) = node.add("reduce_sum", [right], _summed(tb.rank - 2))
        if b:
            count = node.constant(np.asarray(ta.shape[-1], np.int32), "count")
            (sums,) = node.add("sub", [sums, *node.add("mul", [b, count])])
        (y,) = node.add("sub", [y, *node.add("mul", [a, sums])])
    if b:
        (sums,) = node.add("reduce_sum", [left], _summed(ta.rank - 1))
        (y,) = node.add("sub", [y, *node.add("mul", [sums, b])])
    return [y]


def _summed(axis: int) -> dict[str, Any]:
    return {"axes": (axis,), "keepdims": True, "to": "i32"}


def _zero(node: ImportNode, i: int, shape: tuple[int, ...]) -> str:
    """Zero point `i` in i32, a scalar or of `shape`; empty where it is absent or known to be 0."""
    known = node.const(i)
    if not node.has(i) or (known is not None and not known.any()):
        return ""
    (zero,) = node.add("cast", [node.inputs[i]], {"to": "i32"})
    t = node.type(i)
    if t.size == 1:
        return node.add("reshape", [zero], {"shape": ()})[0]
    return node.add("reshape", [zero], {"shape": shape})[0] if t.rank == 1 else zero


def _scaled(node: ImportNode, x: str, factor: float) -> str:
    """x * factor, folded if x is constant."""
    if factor == 1.0:
        return x
    number = node.type_of(x).dtype
    if not number.is_float and not factor.is_integer():
        raise node.fail(
            f"alpha or beta {factor} is not a whole number, but the tensors are {number}"
        )
    return node.add("mul", [x, node.constant(np.asarray(factor, number.numpy), "factor")])[0]


def _samples(rng: np.random.Generator) -> Iterator[Sample]:
    def f(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    for m, n, kk in ((1, 1, 1), (1, 33, 7), (7, 16, 5), (5, 17, 16), (15, 40, 3), (9, 1, 20)):
        yield Sample((f(m, kk), f(kk, n)))
        yield Sample((f(m, kk), f(kk, n), f(n)))
    yield Sample((f(2, 3, 4, 5), f(2, 3, 5, 18)))
    yield Sample((f(3, 4, 5), f(5, 6), f(4, 6)))
    yield Sample((f(4, 5), f(5, 6), f(4, 1)))
    yield Sample((f(2, 1, 4, 5), f(3, 5, 6), f()))
    yield Sample(
        (rng.integers(-9, 9, (3, 4)).astype(np.int32), rng.integers(-9, 9, (4, 5)).astype(np.int32))
    )
    for m, n, kk in ((1, 9, 16), (3, 5, 12), (4, 2, 7)):
        a = rng.integers(-128, 128, (m, kk)).astype(np.int8)
        b = rng.integers(-128, 128, (kk, n)).astype(np.int8)
        yield Sample((a, b, rng.integers(-999, 999, n).astype(np.int32)))
        yield Sample((a, b), {"raised": True})
        yield Sample((a, rng.integers(-255, 256, (kk, n)).astype(np.int16)))


OPERATORS = [
    Operator(
        name="matmul",
        trait="contraction",
        infer=_infer,
        reference=_reference,
        lower=_lower,
        optional_attrs={"raised": bool},
        schedule=_schedule,
        space=product_space,
        wishes=_wishes,
        samples=_samples,
        flops=_flops,
        depth=_depth,
        quantized=_quantized,
        rows=_rows,
        apart=_apart,
        onnx={
            "MatMul": _import_matmul,
            "Gemm": _import_gemm,
            "MatMulInteger": _import_integer,
        },
        doc="C = A B (+ bias), batched with broadcasting",
    )
]
