"""Inverse trigonometric and hyperbolic functions, from exponential, logarithm and square root.

The arc tangent is its power series around 0, 1 or infinity; the others are written so that nothing
cancels near 0 and nothing overflows before the result does (Kahan, 1987: Branch Cuts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log, pi, tan
from typing import Any

import numpy as np

from tilewright.core.dtypes import F64
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    const,
    div,
    fma,
    minimum,
    mul,
    select,
    sub,
    unary,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

_Make = Callable[[KernelBuilder, Expr], Expr]


def _c(value: float, like: Expr) -> Expr:
    return const(value, like.dtype)


def _signed(x: Expr, size: Expr) -> Expr:
    """`size` with the sign of `x`; zeros and NaN go through."""
    return select(binary("lt", x, _c(0.0, x)), unary("neg", size), size)


def _atan(k: KernelBuilder, x: Expr) -> Expr:
    a = k.let("a", unary("abs", x))
    one = _c(1.0, x)
    large = k.let("large", binary("gt", a, _c(tan(3 * pi / 8), x)))
    middle = k.let("middle", binary("gt", a, _c(tan(pi / 8), x)))
    inverse = unary("neg", div(one, a))
    z = select(large, inverse, select(middle, div(sub(a, one), add(a, one)), a))
    z = k.let("z", z)
    square = k.let("square", mul(z, z))
    terms = 20 if x.dtype is F64 else 10  # square is at most tan(pi / 8)^2 = 0.17
    series: Expr = _c(0.0, x)
    for i in reversed(range(terms)):
        series = fma(series, square, _c((-1) ** i / (2 * i + 1), x))
    base = select(large, _c(pi / 2, x), select(middle, _c(pi / 4, x), _c(0.0, x)))
    return _signed(x, fma(z, series, base))


def _asin(k: KernelBuilder, x: Expr) -> Expr:
    """2 atan(x / (1 + sqrt(1 - x^2)))"""
    one = _c(1.0, x)
    root = unary("sqrt", mul(sub(one, x), add(one, x)))
    return mul(_c(2.0, x), _atan(k, k.let("t", div(x, add(one, root)))))


def _acos(k: KernelBuilder, x: Expr) -> Expr:
    """2 atan(sqrt((1 - x) / (1 + x)))"""
    one = _c(1.0, x)
    t = k.let("t", unary("sqrt", div(sub(one, x), add(one, x))))
    return mul(_c(2.0, x), _atan(k, t))


def _log1p(k: KernelBuilder, y: Expr) -> Expr:
    """log(1 + y): what rounding 1 + y loses is put back by a factor."""
    one = _c(1.0, y)
    u = k.let("u", add(one, y))
    lost = k.let("rounded", sub(u, one))
    exact = binary("eq", lost, _c(0.0, y))
    infinite = binary("eq", u, y)  # y is so large that 1 does not count
    factor = div(y, select(exact, one, lost))
    return select(exact, y, select(infinite, unary("log", u), mul(unary("log", u), factor)))


def _expm1(k: KernelBuilder, x: Expr) -> Expr:
    """e^x - 1 in the same way."""
    one = _c(1.0, x)
    u = k.let("u", unary("exp", x))
    lost = k.let("rounded", sub(u, one))
    tiny = binary("eq", lost, _c(0.0, x))
    scale = unary("log", select(tiny, _c(2.0, x), u))
    small = binary("lt", x, one)
    return select(tiny, x, select(small, div(mul(lost, x), scale), lost))


def _sinh(k: KernelBuilder, x: Expr) -> Expr:
    one, half = _c(1.0, x), _c(0.5, x)
    a = k.let("a", unary("abs", x))
    e = k.let("e", _expm1(k, minimum(a, _c(20.0, x))))
    small = mul(half, add(e, div(e, add(e, one))))
    root = k.let("root", unary("exp", mul(half, a)))
    return _signed(x, select(binary("lt", a, _c(20.0, x)), small, mul(mul(half, root), root)))


def _cosh(k: KernelBuilder, x: Expr) -> Expr:
    half = _c(0.5, x)
    root = k.let("root", unary("exp", mul(half, unary("abs", x))))
    return add(mul(mul(half, root), root), div(div(half, root), root))


def _asinh(k: KernelBuilder, x: Expr) -> Expr:
    """log1p(a + a^2 / (1 + sqrt(a^2 + 1))), a = |x|; log(2 a) for large a"""
    one = _c(1.0, x)
    a = k.let("a", unary("abs", x))
    b = k.let("b", minimum(a, _c(_LARGE, x)))
    square = mul(b, b)
    y = k.let("y", add(b, div(square, add(one, unary("sqrt", add(square, one))))))
    far = add(unary("log", a), _c(log(2), x))
    return _signed(x, select(binary("gt", a, _c(_LARGE, x)), far, _log1p(k, y)))


def _acosh(k: KernelBuilder, x: Expr) -> Expr:
    """log1p(t + sqrt(2 t + t^2)), t = x - 1; log(2 x) for large x"""
    t = k.let("t", sub(minimum(x, _c(_LARGE, x)), _c(1.0, x)))
    y = k.let("y", add(t, unary("sqrt", mul(t, add(t, _c(2.0, x))))))
    far = add(unary("log", x), _c(log(2), x))
    return select(binary("gt", x, _c(_LARGE, x)), far, _log1p(k, y))


def _atanh(k: KernelBuilder, x: Expr) -> Expr:
    """log1p(2 a / (1 - a)) / 2, a = |x|"""
    a = k.let("a", unary("abs", x))
    y = k.let("y", div(mul(_c(2.0, x), a), sub(_c(1.0, x), a)))
    return _signed(x, mul(_c(0.5, x), _log1p(k, y)))


#: Where 1 does not count beside the square any more, in any type.
_LARGE = float(1 << 28)


@dataclass(frozen=True, slots=True)
class _Function:
    make: _Make
    reference: Callable[[Any], Any]
    onnx: str
    domain: tuple[float, float]


_TABLE = {
    "asin": _Function(_asin, np.arcsin, "Asin", (-1, 1)),
    "acos": _Function(_acos, np.arccos, "Acos", (-1, 1)),
    "atan": _Function(_atan, np.arctan, "Atan", (-9, 9)),
    "sinh": _Function(_sinh, np.sinh, "Sinh", (-30, 30)),
    "cosh": _Function(_cosh, np.cosh, "Cosh", (-30, 30)),
    "asinh": _Function(_asinh, np.arcsinh, "Asinh", (-99, 99)),
    "acosh": _Function(_acosh, np.arccosh, "Acosh", (1, 99)),
    "atanh": _Function(_atanh, np.arctanh, "Atanh", (-1, 1)),
}


def _infer(name: str) -> Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
        x = types[0]
        assert x is not None
        if not x.dtype.is_float:
            raise ModelError(f"`{name}` wants a float tensor, got {x}: cast it")
        return [x]

    return infer


def _reference(f: Callable[[Any], Any]) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        with np.errstate(all="ignore"):
            return [np.asarray(f(x.astype(np.float64))).astype(x.dtype)]

    return reference


def _compute(make: _Make) -> Callable[..., Expr]:
    def compute(
        x: Sequence[Reader | None],
        index: tuple[Ix, ...],
        attrs: Attrs,
        out: TensorType,
        k: KernelBuilder,
    ) -> Expr:
        assert x[0] is not None
        return make(k, k.let("x", x[0].broadcast(index)))

    return compute


def _import(name: str) -> Callable[[ImportNode], Sequence[str]]:
    return lambda node: node.add(name, [node.inputs[0]])


def _samples(low: float, high: float) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        for shape in ((), (17,), (3, 33)):
            yield Sample((np.asarray(rng.uniform(low, high, shape), np.float32),))
        yield Sample((np.linspace(low, high, 41).astype(np.float32),))
        yield Sample((rng.uniform(low, high, 9),))
        tiny = np.array([0.0, -0.0, 1e-8, -1e-8, 1e-3, 0.3, -0.3, np.nan], np.float32)
        yield Sample((tiny + np.float32(1.0 if low == 1 else 0.0),))

    return samples


OPERATORS = [
    Operator(
        name=name,
        trait="elementwise",
        infer=_infer(name),
        reference=_reference(f.reference),
        compute=_compute(f.make),
        samples=_samples(*f.domain),
        flops=lambda types, attrs: 32 * types[0].size if types[0] else 0,
        onnx={f.onnx: _import(name)},
        doc=f"y[i] = {name}(x[i])",
    )
    for name, f in _TABLE.items()
]
