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
from tilewright.graph.quantized import IntegerForm, choice
from tilewright.loop.builder import KernelBuilder, Reader, binary, const, select
from tilewright.loop.ir import COMPARISONS, BinaryOp, Expr
from tilewright.registry import ImportNode, Operator, Sample


def _truncated_division(a: Array, b: Array) -> Array:
    """Towards zero; integers: 0 for a zero divisor, and the smallest number / -1 wraps."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    return np.asarray(np.where(b == 0, 0, (a - np.fmod(a, safe)) // safe))


def _c_remainder(a: Array, b: Array) -> Array:
    """With the sign of the dividend; integers: 0 for a zero divisor."""
    if a.dtype.kind == "f":
        return np.asarray(np.fmod(a, b))
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    return np.asarray(np.where(b == 0, 0, np.fmod(a, safe)))


def _power(a: Array, b: Array) -> Array:
    """Floats through float64; integers wrap, and a negative exponent gives 0."""
    if a.dtype.kind == "f":
        return np.asarray(np.power(a.astype(np.float64), b.astype(np.float64)))
    return np.asarray(np.where(b < 0, 0, np.power(a, np.maximum(b, 0))))


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    """A shift by an amount outside 0 .. width - 1 moves every bit out."""

    def shift(a: Array, b: Array) -> Array:
        bits = 8 * a.dtype.itemsize
        inside = (b >= 0) & (b < bits)
        amount = np.where(inside, b, 0).astype(a.dtype)
        if left:
            return np.where(inside, np.left_shift(a, amount), 0)
        return np.where(inside, np.right_shift(a, amount), np.where(a < 0, -1, 0).astype(a.dtype))

    return shift


#: operator -> (reference, operand kinds: n numeric, a any, b bool or integer, i integer)
_TABLE: dict[BinaryOp, tuple[Callable[[Any, Any], Any], str]] = {
    "add": (np.add, "n"),
    "sub": (np.subtract, "n"),
    "mul": (np.multiply, "n"),
    "div": (_truncated_division, "n"),
    "mod": (_c_remainder, "n"),
    "pow": (_power, "n"),
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
    "shl": (_shift(True), "i"),
    "shr": (_shift(False), "i"),
}


def _infer(name: BinaryOp) -> Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]:
    kinds = _TABLE[name][1]

    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
        a, b = types
        assert a is not None and b is not None
        if a.dtype is not b.dtype:
            raise ModelError(f"`{name}` of {a} and {b}: the element types differ, cast one")
        if (
            (kinds in "ni" and a.dtype is BOOL)
            or (kinds == "b" and a.dtype.is_float)
            or (kinds == "i" and not a.dtype.is_integer)
        ):
            raise ModelError(f"`{name}` is not defined on {a.dtype}: cast the operands")
        try:
            shape = np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            raise ModelError(
                f"`{name}` of {a} and {b}: the shapes do not broadcast, repair the model"
            ) from None
        return [TensorType(BOOL if name in COMPARISONS else a.dtype, tuple(shape))]

    return infer


def _reference(name: BinaryOp) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    f = _TABLE[name][0]

    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        a, b = (np.asarray(x) for x in inputs)
        with np.errstate(all="ignore"):
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
        left, right = a.broadcast(index), b.broadcast(index)
        if name in ("shl", "shr"):
            return _shifted(name, left, right)
        return binary(name, left, right)

    return compute


def _shifted(name: BinaryOp, value: Expr, amount: Expr) -> Expr:
    t = value.dtype
    inside = binary("lt", amount, const(t.bits, t))
    if t.kind == "int":
        inside = binary("and", inside, binary("ge", amount, const(0, t)))
        if name == "shr":  # the sign fills whatever is moved in
            return binary("shr", value, select(inside, amount, const(t.bits - 1, t)))
    safe = select(inside, amount, const(0, t))
    return select(inside, binary(name, value, safe), const(0, t))


def _samples(name: BinaryOp) -> Callable[[np.random.Generator], Iterator[Sample]]:
    kinds = _TABLE[name][1]
    shapes = [
        ((), ()), ((17,), (17,)), ((3, 33), (33,)), ((4, 1), (1, 7)), ((2, 3, 5), ()),
        ((1, 4, 1, 1), (2, 4, 3, 5)), ((16,), (1,)), ((7,), (3, 1)), ((1, 16), (33, 1)),
        ((2, 1, 3, 1, 2), (4, 1, 3, 1)),
    ]  # fmt: skip

    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for sa, sb in shapes:
            if kinds == "i":
                yield Sample(tuple(np.asarray(rng.integers(-3, 40, s), np.int32) for s in (sa, sb)))
                continue
            if kinds == "b":
                yield Sample(tuple(np.asarray(rng.integers(0, 2, s), np.bool_) for s in (sa, sb)))
                continue
            a, b = rng.standard_normal(sa) * 2, rng.standard_normal(sb) * 2
            if name == "pow":
                a = np.abs(a) + 0.1
            yield Sample((np.asarray(a, np.float32), np.asarray(b, np.float32)))
        low = 0 if name == "pow" else -9
        for kind in (np.int32, np.int64):
            a = rng.integers(-9, 10, (3, 19)).astype(kind)
            yield Sample((a, rng.integers(low, 10, (3, 19)).astype(kind)))
        edges = np.array([-128, -127, -3, -1, 0, 1, 2, 127], np.int8)
        a, b = np.repeat(edges, 8), np.tile(edges, 8)
        if name == "pow":
            b = np.tile(np.array([0, 1, 2, 3, 7, 8, 31, 63], np.int8), 8)
        yield Sample((a, b))
        yield Sample((a.view(np.uint8), b.view(np.uint8)))
        if kinds == "a":
            bits = np.array([False, True, False, True])
            yield Sample((bits, np.array([False, False, True, True])))
        if kinds not in "bi":
            odd = np.array([0.0, -0.0, 1.0, -1.5, np.nan, np.inf, -np.inf, 3.0], np.float32)
            yield Sample((np.repeat(odd, 8), np.tile(odd, 8)))

    return samples


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None and types[1] is not None
    return max(types[0].size, types[1].size)


# ---------------------------------------------------------------- importers


def _plain(name: str) -> Callable[[ImportNode], Sequence[str]]:
    return lambda node: node.add(name, [node.inputs[0], node.inputs[1]])


def _bit_shift(node: ImportNode) -> Sequence[str]:
    name = "shl" if node.attr("direction") == "LEFT" else "shr"
    return node.add(name, [node.inputs[0], node.inputs[1]])


def _complement(node: ImportNode) -> Sequence[str]:
    ones = ~np.zeros((), node.type(0).dtype.numpy)
    return node.add("xor", [node.inputs[0], node.constant(ones, "ones")])


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
    """The result has the base's type; an integer base with a float exponent computes in floats."""
    (base, exponent), (b, e) = node.inputs[:2], (node.type(0).dtype, node.type(1).dtype)
    value = node.const(1)
    if value is not None and value.size == 1 and value.ndim <= node.type(0).rank:
        simple = _power_of(node, float(value.reshape(-1)[0]))
        if simple is not None:
            return simple
    if b is e:
        return node.add("pow", [base, exponent])
    if b.is_float or not e.is_float:
        (exponent,) = node.add("cast", [exponent], {"to": b.name})
        return node.add("pow", [base, exponent])
    (wide,) = node.add("cast", [base], {"to": e.name})
    (power,) = node.add("pow", [wide, exponent])
    return node.add("cast", [power], {"to": b.name})


def _power_of(node: ImportNode, p: float) -> Sequence[str] | None:
    """The power with a constant exponent as cheaper operators, where there are any."""
    base = node.inputs[0]
    if p == 1.0:
        return [base]
    if p in (2.0, 3.0, 4.0):
        (square,) = node.add("mul", [base, base])
        return [square] if p == 2.0 else node.add("mul", [square, base if p == 3.0 else square])
    if not node.type(0).dtype.is_float or p not in (0.5, -0.5, -1.0):
        return None
    (root,) = [base] if p == -1.0 else node.add("sqrt", [base])
    return [root] if p == 0.5 else node.add("reciprocal", [root])


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
    "xor": {"Xor": _plain("xor"), "BitwiseXor": _plain("xor"), "BitwiseNot": _complement},
    "shl": {"BitShift": _bit_shift},
    "shr": {},
}


# ---------------------------------------------------------------- quantised operands


def _sum(q: IntegerForm) -> bool:
    """Both operands from their bytes in one operator, rounded once, as ONNX Runtime does."""
    a, b = (q.integers(i) for i in q.node.inputs)
    if a is None or b is None:
        return False
    step = np.float32(q.scale.step)
    with np.errstate(over="ignore"):
        first, second = np.float32(a[1].step) / step, np.float32(b[1].step) / step
    if not max(first, second) < 1 << 13:
        return False
    if q.node.op == "sub":
        second = -second
    offset = np.float32(q.scale.zero) - (
        first * np.float32(a[1].zero) + second * np.float32(b[1].zero)
    )
    attrs: Attrs = {
        "factor_a": float(first), "factor_b": float(second), "offset": float(offset), "low": q.low,
        "high": q.high, "to": q.scale.dtype.name, "bounded": bool(255 * (first + abs(second)) < 1 << 21),
    }  # fmt: skip
    return q.finish("rescaled_sum", (a[0], b[0]), attrs)


def _product(q: IntegerForm) -> bool:
    """The product of both less their zero points, 17 bits wide, then its scale."""
    operands = [q.integers(i) for i in q.node.inputs]
    parts: list[str] = []
    factor = np.float32(1)
    for x in operands:
        if x is None:
            return False
        source, scale = x
        parts.append(q.shifted(q.make("cast", (source,), {"to": "i32"}), -scale.zero))
        factor *= np.float32(scale.step)
    total = q.make("mul", (parts[0], parts[1]), {})
    factor /= np.float32(q.scale.step)
    return q.requantize(total, np.asarray(factor), 255 * 255, early=True)


_INTEGER: dict[str, Callable[[IntegerForm], bool]] = {
    "add": _sum, "sub": _sum, "mul": _product, "min": choice, "max": choice
}  # fmt: skip

OPERATORS = [
    Operator(
        name=name,
        trait="elementwise",
        infer=_infer(name),
        reference=_reference(name),
        compute=_compute(name),
        samples=_samples(name),
        flops=_flops,
        quantized=_INTEGER.get(name),
        onnx=_ONNX[name],
        doc=f"y[i] = {name}(a[i], b[i]), broadcasting",
    )
    for name in _TABLE
]
