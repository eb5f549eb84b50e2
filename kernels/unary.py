"""Elementwise functions of one tensor: y[i] = f(x[i]).

One table holds everything: the loop-IR expression, the NumPy reference and the ONNX name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import erf, inf
from typing import Any

import numpy as np

from tilewright.core.dtypes import BOOL
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import KernelBuilder, Reader, binary, const, maximum, unary
from tilewright.loop.ir import Expr, UnaryOp
from tilewright.registry import ImportNode, Operator, Sample

_erf = np.vectorize(erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


#: operator -> (expression op, reference in float64 or the integer type, ONNX name)
_TABLE: dict[str, tuple[UnaryOp, Callable[[Any], Any], str]] = {
    "neg": ("neg", np.negative, "Neg"),
    "abs": ("abs", np.abs, "Abs"),
    "sign": ("sign", np.sign, "Sign"),
    "sqrt": ("sqrt", np.sqrt, "Sqrt"),
    "exp": ("exp", np.exp, "Exp"),
    "log": ("log", np.log, "Log"),
    "tanh": ("tanh", np.tanh, "Tanh"),
    "erf": ("erf", _erf, "Erf"),
    "sigmoid": ("sigmoid", _sigmoid, "Sigmoid"),
    "sin": ("sin", np.sin, "Sin"),
    "cos": ("cos", np.cos, "Cos"),
    "floor": ("floor", np.floor, "Floor"),
    "ceil": ("ceil", np.ceil, "Ceil"),
    "round": ("round", np.rint, "Round"),
    "not": ("not", np.logical_not, "Not"),
    "isnan": ("isnan", np.isnan, "IsNaN"),
}
_ANY_TYPE = frozenset({"neg", "abs", "sign"})
_TRANSCENDENTAL = frozenset({"exp", "log", "tanh", "erf", "sigmoid", "sin", "cos"})


def _infer(name: str) -> Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
        (x,) = types
        assert x is not None
        if name == "not":
            if x.dtype is not BOOL:
                raise ModelError(f"`not` wants a bool tensor, got {x}: cast it")
            return [x]
        if name not in _ANY_TYPE and not x.dtype.is_float and name != "relu":
            raise ModelError(f"`{name}` wants a float tensor, got {x}: cast it")
        if x.dtype is BOOL:
            raise ModelError(f"`{name}` is not defined on bool, got {x}: cast it")
        return [TensorType(BOOL, x.shape)] if name == "isnan" else [x]

    return infer


def _reference(name: str, f: Callable[[Any], Any]) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        if name in ("not", "isnan"):
            return [np.asarray(f(x))]
        wide = x.astype(np.float64) if x.dtype.kind == "f" else x
        with np.errstate(all="ignore"):
            return [np.asarray(f(wide)).astype(x.dtype)]

    return reference


def _compute(op: UnaryOp) -> Callable[..., Expr]:
    def compute(
        x: Sequence[Reader | None],
        index: tuple[Ix, ...],
        attrs: Attrs,
        out: TensorType,
        k: KernelBuilder,
    ) -> Expr:
        assert x[0] is not None
        return unary(op, x[0].broadcast(index))

    return compute


def _import(name: str) -> Callable[[ImportNode], Sequence[str]]:
    return lambda node: node.add(name, [node.inputs[0]])


def _import_isinf(node: ImportNode) -> Sequence[str]:
    """|x| == inf, or one sign only."""
    up, down = node.attr("detect_positive", 1), node.attr("detect_negative", 1)
    t = node.type(0)
    if not up and not down:
        return [node.constant(np.zeros(t.shape, np.bool_), "isinf")]
    value = node.inputs[0]
    if up and down:
        (value,) = node.add("abs", [value])
    bound = np.asarray(np.inf if up else -np.inf, t.dtype.numpy)
    return node.add("eq", [value, node.constant(bound, "inf")])


def _import_tan(node: ImportNode) -> Sequence[str]:
    (s,), (c,) = node.add("sin", [node.inputs[0]]), node.add("cos", [node.inputs[0]])
    return node.add("div", [s, c])


_MORE: dict[str, dict[str, Callable[[ImportNode], Sequence[str]]]] = {
    "isnan": {"IsInf": _import_isinf},
    "sin": {"Tan": _import_tan},
}


def _samples(name: str) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for shape in ((), (1,), (7,), (16,), (17,), (3, 33), (2, 1, 5, 3), (2, 1, 3, 1, 4)):
            if name == "not":
                yield Sample((rng.integers(0, 2, shape).astype(np.bool_),))
                continue
            x = rng.standard_normal(shape) * 3
            if name in ("sqrt", "log"):
                x = np.abs(x)
            yield Sample((np.asarray(x, np.float32),))
        if name != "not":
            special = [
                0.0,
                -0.0,
                np.inf,
                -np.inf,
                np.nan,
                1e-40,
                1.0,
                -1.0,
                0.5,
                1.5,
                2.5,
                -0.5,
                -2.5,
            ]
            special += [88.0, 89.0, -88.0, -104.0, 1e9, -1e9]
            if name in ("sin", "cos"):
                special = [0.0, -0.0, 1.0, -1.0]
            yield Sample((np.array(special, np.float32),))
            yield Sample((np.abs(rng.standard_normal((19,))).astype(np.float16),))
        if name in _ANY_TYPE or name == "relu":
            yield Sample((rng.integers(-5, 6, (19,)).astype(np.int32),))
            yield Sample((rng.integers(-128, 128, (3, 7)).astype(np.int8),))
            yield Sample((rng.integers(-(2**40), 2**40, (5,)).astype(np.int64),))

    return samples


def _flops(name: str) -> Callable[[Sequence[TensorType | None], Attrs], int]:
    def flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
        assert types[0] is not None
        return types[0].size * (16 if name in _TRANSCENDENTAL else 1)

    return flops


def _operator(name: str) -> Operator:
    op, f, onnx = _TABLE[name]
    return Operator(
        name=name,
        trait="elementwise",
        infer=_infer(name),
        reference=_reference(name, f),
        compute=_compute(op),
        samples=_samples(name),
        flops=_flops(name),
        onnx={onnx: _import(name), **_MORE.get(name, {})},
        doc=f"y[i] = {name}(x[i])",
    )


def _relu(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return maximum(x[0].broadcast(index), const(0, out.dtype))


def _reciprocal(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    return binary("div", const(1, out.dtype), x[0].broadcast(index))


OPERATORS = [
    *(_operator(name) for name in _TABLE),
    Operator(
        name="relu",
        trait="elementwise",
        infer=_infer("relu"),
        reference=_reference("relu", lambda x: np.maximum(x, 0)),
        compute=_relu,
        quantized=lambda q: q.clamped(0.0, inf),
        samples=_samples("relu"),
        flops=_flops("relu"),
        onnx={"Relu": _import("relu")},
        doc="y[i] = max(x[i], 0)",
    ),
    Operator(
        name="reciprocal",
        trait="elementwise",
        infer=_infer("reciprocal"),
        reference=_reference("reciprocal", lambda x: 1 / x),
        compute=_reciprocal,
        samples=_samples("reciprocal"),
        flops=_flops("reciprocal"),
        onnx={"Reciprocal": _import("reciprocal")},
        doc="y[i] = 1 / x[i]",
    ),
]
