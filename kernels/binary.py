"""Elementwise functions of two tensors with NumPy broadcasting: y[i] = f(a[i], b[i]).

Variadic ONNX operators (Sum, Mean, Max, Min) import as chains; Pow with a small constant exponent
becomes multiplications or a square root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, binary
from tilewright.loop.ir import COMPARISONS, BinaryOp, Expr
from tilewright.registry import ImportNode, Operator, Sample


def _truncated_division(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    safe = np.where(b == 0, 1, b)
    q = np.abs(a) // np.abs(safe)
    return np.asarray(np.where(b == 0, 0, np.where((a < 0) == (safe < 0), q, -q)).astype(a.dtype))


def _c_remainder(a: Array, b: Array) -> Array:
    safe = np.where(b == 0, 1, b).astype(b.dtype) if a.dtype.kind != "f" else b
    return np.asarray(
        np.where((b == 0) & (a.dtype.kind != "f"), 0, np.fmod(a, safe)).astype(a.dtype)
    )


#: operator -> (reference, operand kinds: n numeric, a any, b bool or integer)
_TABLE: dict[BinaryOp, tuple[Callable[[Any, Any], Any], str]] = {
    "add": (np.add, "n"),
    "sub": (np.subtract, "n"),
    "mul": (np.multiply, "n"),
    "div": (_truncated_division, "n"),
    "mod": (_c_remainder, "n"),
    "pow": (np.power, "n"),
    "min": (np.minimum, "n"),
    "max": (np.maximum, "n"),
    "lt": (np.less, "n"),
    "le": (np.less_equal, "n"),
    "gt": (np.greater, "n"),
    "ge": (np.greater_equal, "n"),
    "eq": (np.equal, "a"),
    "ne": (np.not_equal, "a"),
    "and": (np.bitwise_and, "b"),
    "or": (np.bitwise_or, "b"),
    "xor": (np.bitwise_xor, "b"),
}


def _infer(name: BinaryOp) -> Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]:
    kinds = _TABLE[name][1]

    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
        a, b = types
        assert a is not None and b is not None
        if a.dtype is not b.dtype:
            raise ModelError(f"`{name}` of {a} and {b}: the element types differ")
        if (kinds == "n" and a.dtype is BOOL) or (kinds == "b" and a.dtype.is_float):
            raise ModelError(f"`{name}` is not defined on {a.dtype}")
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ModelError(f"`{name}` of {a} and {b}: the shapes do not broadcast") from None
        return [TensorType(BOOL if name in COMPARISONS else a.dtype, tuple(shape))]

    return infer


def _reference(name: BinaryOp) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    f = _TABLE[name][0]

    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        a, b = (np.asarray(x) for x in inputs)
        with np.errstate(all="ignore"):
            if name == "pow" and a.dtype.kind == "f":
                return [np.asarray(np.power(a.astype(np.float64), b.astype(np.float64)), a.dtype)]
            out = np.asarray(f(a, b))
        return [out if name in COMPARISONS else out.astype(a.dtype)]

    return reference


def _compute(name: BinaryOp) -> Callable[..., Expr]:
    def compute(
        x: Sequence[Reader | None],
        index: tuple[Ix, ...],
        attrs: Attrs,
        out: TensorType,
        k: KernelBuilder,
    ) -> Expr:
        a, b = x
        assert a is not None and b is not None
        return binary(name, a.broadcast(index), b.broadcast(index))

    return compute


def _samples(name: BinaryOp) -> Callable[[np.random.Generator], Iterator[Sample]]:
    kinds = _TABLE[name][1]
    shapes = [
        ((), ()), ((17,), (17,)), ((3, 33), (33,)), ((4, 1), (1, 7)), ((2, 3, 5), ()),
        ((1, 4, 1, 1), (2, 4, 3, 5)), ((16,), (1,)),
    ]  # fmt: skip

    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for sa, sb in shapes:
            if kinds == "b":
                yield Sample(tuple(rng.integers(0, 2, s).astype(np.bool_) for s in (sa, sb)))
                continue
            a, b = rng.standard_normal(sa) * 2, rng.standard_normal(sb) * 2
            if name == "pow":
                a = np.abs(a) + 0.1
            yield Sample((np.asarray(a, np.float32), np.asarray(b, np.float32)))
        if name != "pow":
            yield Sample(tuple(rng.integers(-9, 10, (3, 19)).astype(np.int32) for _ in range(2)))
        if name in ("min", "max", "add", "lt", "eq"):
            v = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf], np.float32)
            yield Sample((np.repeat(v, 6), np.tile(v, 6)))

    return samples


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None and types[1] is not None
    return max(types[0].size, types[1].size)


# ---------------------------------------------------------------- importers


def _plain(name: str) -> Callable[[ImportNode], Sequence[str]]:
    return lambda node: node.add(name, [node.inputs[0], node.inputs[1]])


def _variadic(name: str, mean: bool = False) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        total = node.inputs[0]
        for other in node.inputs[1:]:
            (total,) = node.add(name, [total, other])
        if mean:
            dtype = node.type_of(total).dtype.numpy
            count = node.constant(np.asarray(len(node.inputs), dtype), "count")
            (total,) = node.add("div", [total, count])
        return [total]

    return importer


def _pow(node: ImportNode) -> Sequence[str]:
    base, exponent = node.inputs[0], node.inputs[1]
    value = node.const(1)
    if (
        value is not None
        and value.size == 1
        and node.type(0).dtype.is_float
        and value.ndim <= node.type(0).rank
    ):
        p = float(value.reshape(-1)[0])
        if p == 1.0:
            return [base]
        if p == 2.0:
            return node.add("mul", [base, base])
        if p == 3.0:
            (square,) = node.add("mul", [base, base])
            return node.add("mul", [square, base])
        if p == 0.5:
            return node.add("sqrt", [base])
        if p == -1.0:
            return node.add("reciprocal", [base])
    if node.type(1).dtype is not node.type(0).dtype:
        (exponent,) = node.add("cast", [exponent], {"to": node.type(0).dtype.name})
    return node.add("pow", [base, exponent])


def _mod(node: ImportNode) -> Sequence[str]:
    a, b = node.inputs[0], node.inputs[1]
    (r,) = node.add("mod", [a, b])
    if node.attr("fmod", 0) or node.type(0).dtype.kind == "uint":
        return [r]
    # Python's sign convention: where the remainder and the divisor differ in sign, add the divisor
    zero = node.constant(np.zeros((), node.type(0).dtype.numpy), "zero")
    (negative,) = node.add("lt", [r, zero])
    (divisor_negative,) = node.add("lt", [b, zero])
    (differ,) = node.add("ne", [negative, divisor_negative])
    (nonzero,) = node.add("ne", [r, zero])
    (fix,) = node.add("and", [differ, nonzero])
    (shifted,) = node.add("add", [r, b])
    return node.add("where", [fix, shifted, r])


_ONNX: dict[str, dict[str, Callable[[ImportNode], Sequence[str]]]] = {
    "add": {"Add": _plain("add"), "Sum": _variadic("add"), "Mean": _variadic("add", mean=True)},
    "sub": {"Sub": _plain("sub")},
    "mul": {"Mul": _plain("mul")},
    "div": {"Div": _plain("div")},
    "mod": {"Mod": _mod},
    "pow": {"Pow": _pow},
    "min": {"Min": _variadic("min")},
    "max": {"Max": _variadic("max")},
    "lt": {"Less": _plain("lt")},
    "le": {"LessOrEqual": _plain("le")},
    "gt": {"Greater": _plain("gt")},
    "ge": {"GreaterOrEqual": _plain("ge")},
    "eq": {"Equal": _plain("eq")},
    "ne": {},
    "and": {"And": _plain("and"), "BitwiseAnd": _plain("and")},
    "or": {"Or": _plain("or"), "BitwiseOr": _plain("or")},
    "xor": {"Xor": _plain("xor"), "BitwiseXor": _plain("xor")},
}

OPERATORS = [
    Operator(
        name=name,
        trait="elementwise",
        infer=_infer(name),
        reference=_reference(name),
        compute=_compute(name),
        samples=_samples(name),
        flops=_flops,
        onnx=_ONNX[name],
        doc=f"y[i] = {name}(a[i], b[i]), broadcasting",
    )
    for name in _TABLE
]
