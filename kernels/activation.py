"""Activation functions with parameters, elementwise.

Each is a short expression over max, min, exp and friends; see `_TABLE` for the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, erf, floor, inf, sqrt
from typing import Any

import numpy as np

from tilewright.core.dtypes import F16, F32
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import IntegerForm
from tilewright.loop.builder import (
    KernelBuilder,
    Reader,
    add,
    binary,
    cast,
    const,
    div,
    maximum,
    minimum,
    mul,
    select,
    sub,
    unary,
)
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample

_erf = np.vectorize(erf, otypes=[np.float64])


@dataclass(frozen=True)
class _Activation:
    """`expr(x, attrs)` in loop IR, `ref(x, attrs)` in NumPy float64, `defaults` of the attributes."""

    expr: Callable[[Expr, Mapping[str, Any]], Expr]
    ref: Callable[[Any, Mapping[str, Any]], Any]
    onnx: str
    defaults: Mapping[str, float | str]


def _c(v: float, like: Expr) -> Expr:
    return const(v, like.dtype)


def _softplus(x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|): never overflows."""
    small = unary("exp", unary("neg", unary("abs", x)))
    return add(maximum(x, _c(0.0, x)), unary("log", add(_c(1.0, x), small)))


def _clip(x: Expr, a: Mapping[str, Any]) -> Expr:
    """The upper bound wins where it is below the lower one, as in ONNX."""
    lo, hi = a["min"], a["max"]
    if x.dtype.is_integer:
        lo, hi = _integer_bounds(lo, hi, x.dtype.numpy)
    out = x if lo == -inf else maximum(x, _c(lo, x))
    return out if hi == inf else minimum(out, _c(hi, x))


def _integer_bounds(lo: float, hi: float, kind: Any) -> tuple[int, int]:
    """The same bounds for integers of type `kind`, rounded inwards."""
    info = np.iinfo(kind)
    low = info.min if lo <= info.min else info.max if lo >= info.max else ceil(lo)
    high = info.max if hi >= info.max else info.min if hi <= info.min else floor(hi)
    return low, high


def _clip_ref(x: Any, a: Mapping[str, Any]) -> Any:
    lo, hi = a["min"], a["max"]
    if x.dtype.kind in "iu":
        lo, hi = (x.dtype.type(v) for v in _integer_bounds(lo, hi, x.dtype))
    return np.minimum(np.maximum(x, lo), hi)


def _gelu(x: Expr, a: Mapping[str, Any]) -> Expr:
    half = mul(_c(0.5, x), x)
    if a["approximate"] == "tanh":
        cube = mul(mul(x, x), x)
        inner = mul(_c(sqrt(2 / np.pi), x), add(x, mul(_c(0.044715, x), cube)))
        return mul(half, add(_c(1.0, x), unary("tanh", inner)))
    return mul(half, add(_c(1.0, x), unary("erf", mul(x, _c(sqrt(0.5), x)))))


def _gelu_ref(x: Any, a: Mapping[str, Any]) -> Any:
    if a["approximate"] == "tanh":
        return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x * sqrt(0.5)))


def _expm1(x: Expr) -> Expr:
    return sub(unary("exp", x), _c(1.0, x))


def _positive(x: Expr) -> Expr:
    return binary("gt", x, _c(0.0, x))


_TABLE: dict[str, _Activation] = {
    "clip": _Activation(_clip, _clip_ref, "", {"min": -inf, "max": inf}),
    "leaky_relu": _Activation(
        lambda x, a: select(binary("lt", x, _c(0.0, x)), mul(x, _c(a["alpha"], x)), x),
        lambda x, a: np.where(x < 0, a["alpha"] * x, x),
        "LeakyRelu",
        {"alpha": 0.01},
    ),
    "elu": _Activation(
        lambda x, a: select(_positive(x), x, mul(_c(a["alpha"], x), _expm1(x))),
        lambda x, a: np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0))),
        "Elu",
        {"alpha": 1.0},
    ),
    "celu": _Activation(
        lambda x, a: add(
            maximum(x, _c(0.0, x)),
            minimum(mul(_c(a["alpha"], x), _expm1(div(x, _c(a["alpha"], x)))), _c(0.0, x)),
        ),
        lambda x, a: np.maximum(x, 0) + np.minimum(0, a["alpha"] * np.expm1(x / a["alpha"])),
        "Celu",
        {"alpha": 1.0},
    ),
    "selu": _Activation(
        lambda x, a: mul(
            _c(a["gamma"], x), select(_positive(x), x, mul(_c(a["alpha"], x), _expm1(x)))
        ),
        lambda x, a: a["gamma"] * np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0))),
        "Selu",
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "hard_sigmoid": _Activation(
        lambda x, a: minimum(
            maximum(add(mul(x, _c(a["alpha"], x)), _c(a["beta"], x)), _c(0.0, x)), _c(1.0, x)
        ),
        lambda x, a: np.clip(a["alpha"] * x + a["beta"], 0, 1),
        "HardSigmoid",
        {"alpha": 0.2, "beta": 0.5},
    ),
    "hard_swish": _Activation(
        lambda x, a: mul(
            x,
            minimum(maximum(add(mul(x, _c(1 / 6, x)), _c(0.5, x)), _c(0.0, x)), _c(1.0, x)),
        ),
        lambda x, a: x * np.clip(x / 6 + 0.5, 0, 1),
        "HardSwish",
        {},
    ),
    "softplus": _Activation(
        lambda x, a: _softplus(x), lambda x, a: np.logaddexp(x, 0), "Softplus", {}
    ),
    "softsign": _Activation(
        lambda x, a: div(x, add(_c(1.0, x), unary("abs", x))),
        lambda x, a: x / (1 + np.abs(x)),
        "Softsign",
        {},
    ),
    "mish": _Activation(
        lambda x, a: mul(x, unary("tanh", _softplus(x))),
        lambda x, a: x * np.tanh(np.logaddexp(x, 0)),
        "Mish",
        {},
    ),
    "gelu": _Activation(_gelu, _gelu_ref, "Gelu", {"approximate": "none"}),
    "thresholded_relu": _Activation(
        lambda x, a: select(binary("gt", x, _c(a["alpha"], x)), x, _c(0.0, x)),
        lambda x, a: np.where(x > a["alpha"], x, 0),
        "ThresholdedRelu",
        {"alpha": 1.0},
    ),
    "shrink": _Activation(
        lambda x, a: select(
            binary("lt", x, _c(-a["lambd"], x)),
            add(x, _c(a["bias"], x)),
            select(binary("gt", x, _c(a["lambd"], x)), sub(x, _c(a["bias"], x)), _c(0.0, x)),
        ),
        lambda x, a: np.where(
            x < -a["lambd"], x + a["bias"], np.where(x > a["lambd"], x - a["bias"], 0)
        ),
        "Shrink",
        {"bias": 0.0, "lambd": 0.5},
    ),
}


def _infer(name: str) -> Callable[[Sequence[TensorType | None], Attrs], list[TensorType]]:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
        x = types[0]
        assert x is not None
        if not x.dtype.is_float and not (name == "clip" and x.dtype.is_integer):
            raise ModelError(f"`{name}` wants a float tensor, got {x}: cast it")
        return [x]

    return infer


def _reference(act: _Activation) -> Callable[[Sequence[Any], Attrs], list[Array]]:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
        x = np.asarray(inputs[0])
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64) if x.dtype.kind == "f" else x
            return [np.asarray(act.ref(wide, attrs)).astype(x.dtype)]

    return reference


def _compute(act: _Activation) -> Callable[..., Expr]:
    def compute(
        x: Sequence[Reader | None],
        index: tuple[Ix, ...],
        attrs: Attrs,
        out: TensorType,
        k: KernelBuilder,
    ) -> Expr:
        assert x[0] is not None
        value = x[0].broadcast(index)
        if out.dtype is F16:  # one rounding, at the end
            value = cast(value, F32)
        return cast(act.expr(k.let("x", value), attrs), out.dtype)

    return compute


def _import(name: str, act: _Activation) -> Callable[[ImportNode], Sequence[str]]:
    def importer(node: ImportNode) -> Sequence[str]:
        attrs = {k: type(v)(node.attr(k, v)) for k, v in act.defaults.items()}
        return node.add(name, [node.inputs[0]], attrs)

    return importer


def _samples(act: _Activation) -> Callable[[np.random.Generator], Iterator[Sample]]:
    def samples(rng: np.random.Generator) -> Iterator[Sample]:
        attrs = dict(act.defaults)
        for shape in ((), (1,), (7,), (17,), (3, 33), (2, 1, 16), (2, 1, 3, 1, 4)):
            yield Sample((np.asarray(rng.standard_normal(shape) * 4, np.float32),), attrs)
        odd = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-3, -1e-3, 90.0, -90.0, 1e30, -1e30, 3.0, -3.0]
        variants: list[dict[str, Any]] = [attrs]
        if "approximate" in attrs:
            variants.append({"approximate": "tanh"})
        elif "min" in attrs:
            variants += [
                {"min": -0.5, "max": 6.0},
                {"min": 3.0, "max": -1.0},
                {"min": 0.0, "max": inf},
            ]
            ints = rng.integers(-99, 99, (19,))
            for kind in (np.int8, np.int64, np.uint8):
                yield Sample((ints.astype(kind),), {"min": -2.5, "max": 40.0})
                yield Sample((ints.astype(kind),), {"min": -inf, "max": 7.5})
        elif attrs:
            variants.append({k: float(v) * 1.5 + 0.25 for k, v in attrs.items()})
        for given in variants:
            yield Sample((np.array(odd, np.float32),), given)
        yield Sample((rng.standard_normal(19).astype(np.float16),), attrs)

    return samples


def _flops(types: Sequence[TensorType | None], attrs: Attrs) -> int:
    assert types[0] is not None
    return 4 * types[0].size


# ---------------------------------------------------------------- clip and prelu importers


def _import_clip(node: ImportNode) -> Sequence[str]:
    """Bounds are attributes before opset 11 and optional inputs from then on.

    Bounds known only at run time, and those of integers (exact beyond 2^53), become max and min.
    """
    lo, hi = -inf, inf
    if node.opset < 11:
        lo, hi = float(node.attr("min", -inf)), float(node.attr("max", inf))
    else:
        given = [i for i in (1, 2) if node.has(i)]
        values = {i: node.const(i) for i in given}
        if not node.type(0).dtype.is_float or any(v is None for v in values.values()):
            out = node.inputs[0]
            for i in given:
                (out,) = node.add("max" if i == 1 else "min", [out, _scalar(node, i)])
            return [out]
        known = {i: float(v.reshape(-1)[0]) for i, v in values.items() if v is not None}
        lo, hi = known.get(1, -inf), known.get(2, inf)
    if lo == 0.0 and hi == inf:
        return node.add("relu", [node.inputs[0]])
    return node.add("clip", [node.inputs[0]], {"min": lo, "max": hi})


def _scalar(node: ImportNode, i: int) -> str:
    """Input `i` as a scalar: some exporters write bounds of shape [1]."""
    if node.type(i).shape == ():
        return node.inputs[i]
    (value,) = node.add("reshape", [node.inputs[i]], {"shape": ()})
    return value


def _import_swish(node: ImportNode) -> Sequence[str]:
    """x * sigmoid(alpha * x)."""
    x, alpha = node.inputs[0], float(node.attr("alpha", 1.0))
    scaled = x
    if alpha != 1.0:
        factor = node.constant(np.asarray(alpha, node.type(0).dtype.numpy), "alpha")
        (scaled,) = node.add("mul", [x, factor])
    (gate,) = node.add("sigmoid", [scaled])
    return node.add("mul", [x, gate])


def _prelu_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    value, slope = x
    assert value is not None and slope is not None
    v = k.let("x", value.broadcast(index))
    return select(binary("lt", v, _c(0.0, v)), mul(v, slope.broadcast(index)), v)


def _prelu_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, slope = types
    assert x is not None and slope is not None
    if x.dtype is not slope.dtype or x.dtype.kind == "bool":
        raise ModelError(
            f"`prelu` wants two tensors of one number type, got {x}, {slope}: cast one"
        )
    try:
        fits = np.broadcast_shapes(x.shape, slope.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ModelError(f"`prelu`: slope {slope} does not broadcast to {x}: repair the model")
    return [x]


def _prelu_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, slope = inputs
    return [np.where(x < 0, x * slope, x).astype(x.dtype)]


def _prelu_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, slope in (
        ((3, 17), (17,)), ((1, 4, 5, 3), (4, 1, 1)), ((6,), (1,)), ((), ()), ((33,), ()),
        ((2, 1, 3, 1, 4), (3, 1, 1)),
    ):  # fmt: skip
        yield Sample(
            (
                np.asarray(rng.standard_normal(shape), np.float32),
                np.asarray(rng.random(slope), np.float32),
            )
        )
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, -2.0], np.float32)
    yield Sample((odd, np.array([0.25], np.float32)))
    yield Sample((rng.integers(-9, 9, (3, 5)).astype(np.int32), np.array([2], np.int32)))


def _clamped(q: IntegerForm) -> bool:
    return q.clamped(*(float(str(q.node.attrs[k])) for k in ("min", "max")))


def _importers(name: str, act: _Activation) -> dict[str, Callable[[ImportNode], Sequence[str]]]:
    if name == "clip":
        return {"Clip": _import_clip}
    more = {"Swish": _import_swish} if name == "hard_swish" else {}
    return {act.onnx: _import(name, act), **more}


OPERATORS = [
    *(
        Operator(
            name=name,
            trait="elementwise",
            infer=_infer(name),
            reference=_reference(act),
            attrs={
                k: (int, float) if isinstance(v, float) else str for k, v in act.defaults.items()
            },
            compute=_compute(act),
            samples=_samples(act),
            flops=_flops,
            quantized=_clamped if name == "clip" else None,
            onnx=_importers(name, act),
            doc=f"y[i] = {name}(x[i])",
        )
        for name, act in _TABLE.items()
    ),
    Operator(
        name="prelu",
        trait="elementwise",
        infer=_prelu_infer,
        reference=_prelu_reference,
        compute=_prelu_compute,
        samples=_prelu_samples,
        flops=_flops,
        onnx={"PRelu": lambda node: node.add("prelu", [node.inputs[0], node.inputs[1]])},
        doc="y[i] = x[i] if x[i] >= 0 else slope[i] * x[i], slope broadcasts",
    ),
]
