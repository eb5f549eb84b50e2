"""Between floats and bytes: ONNX QuantizeLinear, DynamicQuantizeLinear and DequantizeLinear.

quantize    y = clamp(round(x / scale) + zero_point), ties to even, or (`away`) away from zero
dequantize  y = (x - zero_point) * scale

Scales and zero points broadcast, so that they may be one per channel, and may be computed at run time;
blocks along a dim become a dim of their own. Integers have 2 to 16 bits (32 to dequantize); small floats
are scaled, then cast. Where a whole model is quantised, `graph.passes.quantize` turns what lies between such
pairs into integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import axis_of
from tilewright.core.dtypes import (
    BF16,
    F16,
    F32,
    I2,
    I4,
    I8,
    I16,
    I32,
    ONNX_TYPES,
    U2,
    U4,
    U8,
    U16,
    DType,
    dtype,
    largest,
    limits,
)
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
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

#: What floats are quantised to, what is dequantized (of 8 bits and fewer), and types of scales.
_INTEGERS = (I8, U8, I16, U16, I4, U4, I2, U2)
_SMALL_FLOATS = ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1")
_REALS = (F32, F16, BF16)


def _fits(x: TensorType, scale: TensorType, zero: TensorType) -> bool:
    """Whether scale and zero point broadcast to x."""
    shapes = (x.shape, scale.shape, zero.shape)
    try:
        return np.broadcast_shapes(*shapes) == x.shape and scale.dtype in _REALS
    except ValueError:
        return False


def _target(attrs: Attrs, zero: DType) -> DType:
    """The integers to quantise to: those of the zero point, whose bits alone may not say it."""
    return dtype(str(attrs["to"])) if "to" in attrs else zero


def _quantize_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    assert x is not None and scale is not None and zero is not None
    number = _target(attrs, zero.dtype)
    known = number in _INTEGERS and zero.dtype in (number, number.work)
    if x.dtype not in _REALS or not known or not _fits(x, scale, zero):
        raise ModelError(
            f"`quantize` of {x} by {scale} and {zero}: floats to small integers are wanted"
        )
    return [TensorType(number, x.shape)]


def _dequantize_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    assert x is not None and scale is not None and zero is not None
    known = x.dtype in (*_INTEGERS, I32) or x.dtype.name in _SMALL_FLOATS
    if not known or zero.dtype is not x.dtype or not _fits(x, scale, zero):
        raise ModelError(
            f"`dequantize` of {x} by {scale} and {zero}: small numbers to floats are wanted"
        )
    return [TensorType(scale.dtype, x.shape)]


def _quantize_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, zero = inputs
    number = _target(attrs, dtype(zero.dtype))
    low, high = limits(number)
    with np.errstate(all="ignore"):
        steps = (np.asarray(x, np.float32) / scale.astype(np.float32)).astype(np.float64)
        away = np.trunc(steps + np.copysign(0.5, steps))
        steps = away if attrs.get("away", False) else np.rint(steps)
    steps = np.nan_to_num(steps, nan=0.0) + zero.astype(np.float64)
    return [np.clip(steps, low, high).astype(number.work.numpy).astype(number.numpy)]


def _dequantize_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, zero = inputs
    exact = np.float32 if x.dtype.kind == "f" else np.int64
    steps = (x.astype(exact) - zero.astype(exact)).astype(np.float32)
    return [(steps * scale.astype(np.float32)).astype(scale.dtype)]


def _quantize(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    value, scale, zero = x
    assert value is not None and scale is not None and zero is not None
    low, high = limits(_target(attrs, out.dtype))
    steps = div(value.broadcast(index), scale.broadcast(index))
    if attrs.get(
        "away", False
    ):  # conversion to integers cuts off: the sum must not reach a next one
        half = const(0.49999997, F32)
        steps = k.let("steps", steps)
        below = binary("lt", steps, const(0.0, F32))
        steps = add(steps, select(below, unary("neg", half), half))
    else:
        steps = unary("round", steps)
    # a cut to what any zero point can bring back makes the conversion to integers exact
    steps = minimum(maximum(steps, const(2.0 * low - high, F32)), const(2.0 * high - low, F32))
    total = add(cast(steps, I32), cast(zero.broadcast(index), I32))
    return cast(minimum(maximum(total, const(low, I32)), const(high, I32)), out.dtype)


def _dequantize(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    value, scale, zero = x
    assert value is not None and scale is not None and zero is not None
    exact = F32 if value.dtype is F32 else I32
    steps = sub(cast(value.broadcast(index), exact), cast(zero.broadcast(index), exact))
    return mul(cast(steps, F32), scale.broadcast(index))


# ---------------------------------------------------------------- importers


def _parameters(node: ImportNode, x: TensorType, number: DType) -> tuple[tuple[int, ...], str, str]:
    """The shape to give x, and scale and zero point shaped so that they broadcast to it."""
    scale, zero = node.inputs[1], node.inputs[2] if node.has(2) else ""
    t, block = node.type(1), int(node.attr("block_size", 0))
    if t.dtype not in _REALS:
        raise node.fail(f"a scale of {t.dtype} is not supported: use float32, float16 or bfloat16")
    if zero and node.type(2).shape != t.shape and node.type(2).size != 1:
        raise node.fail(f"scale {t} and zero point {node.type(2)} do not fit: repair the model")
    if not zero:
        zero = node.constant(np.zeros((), number.numpy), "zero")
    if block:
        return _blocked(node, x, scale, zero, block)
    shape: tuple[int, ...] = ()
    if t.size > 1:
        axis = axis_of(node.attr("axis", 1), x.rank)
        if t.rank != 1 or x.shape[axis] != t.size:
            raise node.fail(f"axis {axis} of {x} does not fit {t.size} scales: repair the model")
        shape = (t.size, *[1] * (x.rank - 1 - axis))
    return x.shape, _shaped(node, scale, shape), _shaped(node, zero, shape)


def _shaped(node: ImportNode, value: str, shape: tuple[int, ...]) -> str:
    t = node.type_of(value)
    if t.size == 1:
        shape = ()
    return value if t.shape == shape else node.add("reshape", [value], {"shape": shape})[0]


def _blocked(
    node: ImportNode, x: TensorType, scale: str, zero: str, block: int
) -> tuple[tuple[int, ...], str, str]:
    """One scale for every `block` elements along an axis, of which the last may have fewer."""
    t = node.type_of(scale)
    axis = axis_of(node.attr("axis", 1), x.rank)
    n = x.shape[axis]
    if block < 0 or t.shape != (*x.shape[:axis], -(-n // block), *x.shape[axis + 1 :]):
        raise node.fail(f"scales {t} do not fit {x} in blocks of {block}: repair the model")
    if n % block == 0:
        split = (*x.shape[:axis], n // block, block, *x.shape[axis + 1 :])
        narrow = (*x.shape[:axis], n // block, 1, *x.shape[axis + 1 :])
        return split, _shaped(node, scale, narrow), _shaped(node, zero, narrow)
    node.reserve(n)
    which = node.constant(np.arange(n, dtype=np.int64) // block, "block")
    scale, zero = (
        v if node.type_of(v).size == 1 else node.add("gather", [v, which], {"axis": axis})[0]
        for v in (scale, zero)
    )
    return x.shape, scale, zero


def _import_quantize(node: ImportNode) -> Sequence[str]:
    x, code = node.type(0), int(node.attr("output_dtype", 0))
    number = node.type(2).dtype if node.has(2) else ONNX_TYPES.get(code or 2)
    if number is None or (number not in _INTEGERS and number.name not in _SMALL_FLOATS):
        raise node.fail(
            f"quantisation to {number or f'ONNX element type {code}'} is not supported: use integers of 2 to "
            "16 bits or floats of 4 or 8"
        )
    source = node.inputs[0]
    if x.dtype not in _REALS:
        (source,) = node.add("cast", [source], {"to": "f32"})
    shape, scale, zero = _parameters(node, x, number)
    source = _shaped_as(node, source, shape)
    if number.is_float:
        y = _small_floats(node, source, scale, number)
    else:
        attrs: Attrs = {} if number.work is number else {"to": number.name}
        (y,) = node.add("quantize", [source, scale, zero], attrs)
    return [_shaped_as(node, y, x.shape)]


def _shaped_as(node: ImportNode, value: str, shape: tuple[int, ...]) -> str:
    same = node.type_of(value).shape == shape
    return value if same else node.add("reshape", [value], {"shape": shape})[0]


def _small_floats(node: ImportNode, x: str, scale: str, number: DType) -> str:
    """x / scale cut to the largest value of the type, unless `saturate` is 0, and rounded."""
    x, scale = (
        v if node.type_of(v).dtype is F32 else node.add("cast", [v], {"to": "f32"})[0]
        for v in (x, scale)
    )
    (y,) = node.add("div", [x, scale])
    if int(node.attr("saturate", 1)):
        limit = largest(number)
        (y,) = node.add("clip", [y], {"min": -limit, "max": limit})
    return node.add("cast", [y], {"to": number.name})[0]


def _import_dequantize(node: ImportNode) -> Sequence[str]:
    x = node.type(0)
    if x.dtype not in (*_INTEGERS, I32) and x.dtype.name not in _SMALL_FLOATS:
        raise node.fail(
            f"dequantisation of {x} is not supported: use integers of up to 32 bits or floats of 4 or 8"
        )
    shape, scale, zero = _parameters(node, x, x.dtype)
    if node.type_of(zero).dtype is not x.dtype:
        raise node.fail(f"the zero point is {node.type(2)}, x is {x}: repair the model")
    (y,) = node.add("dequantize", [_shaped_as(node, node.inputs[0], shape), scale, zero])
    code = int(node.attr("output_dtype", 0))
    if code and ONNX_TYPES.get(code) not in _REALS:
        raise node.fail(f"dequantisation to ONNX element type {code} is not supported: use float32")
    if code and ONNX_TYPES[code] is not node.type_of(y).dtype:
        (y,) = node.add("cast", [y], {"to": ONNX_TYPES[code].name})
    return [_shaped_as(node, y, x.shape)]


def _import_dynamic(node: ImportNode) -> Sequence[str]:
    """DynamicQuantizeLinear: u8 with the scale and zero point that just hold x and 0; (y, scale, zero)."""
    x = node.inputs[0]
    if node.type(0).dtype is not F32:
        raise node.fail(f"dynamic quantisation of {node.type(0)} is not supported: use float32")
    nothing = node.constant(np.zeros((), np.float32), "nothing")
    whole = {"axes": tuple(range(node.type(0).rank)), "keepdims": False}
    (low,) = node.add("min", [*node.add("reduce_min", [x], whole), nothing])
    (high,) = node.add("max", [*node.add("reduce_max", [x], whole), nothing])
    (span,) = node.add("sub", [high, low])
    (scale,) = node.add("div", [span, node.constant(np.asarray(255, np.float32), "steps")])
    (flat,) = node.add("eq", [span, nothing])  # all zeros: any scale will do
    (scale,) = node.add("where", [flat, node.constant(np.ones((), np.float32), "one"), scale])
    none = node.constant(np.zeros((), np.uint8), "none")
    (zero,) = node.add("quantize", [*node.add("neg", [low]), scale, none])
    return [*node.add("quantize", [x, scale, zero]), scale, zero]


# ---------------------------------------------------------------- samples


def _quantize_samples(rng: np.random.Generator) -> Iterator[Sample]:
    x = (rng.standard_normal((3, 4, 19)) * 40).astype(np.float32)
    one = np.asarray(0.37, np.float32)
    per = (rng.random((4, 1)) + 0.1).astype(np.float32)
    for kind, zero in ((np.int8, -7), (np.uint8, 130), (np.int16, 5), (np.uint16, 0)):
        yield Sample((x, one, np.asarray(zero, kind)))
        yield Sample((x, per, np.full((4, 1), zero, kind)))
    for name in ("i4", "u4", "i2", "u2"):
        yield Sample((x, per, np.ones((4, 1), dtype(name).numpy)), {"to": name})
    half = x.astype(np.float16)
    yield Sample((half, one.astype(np.float16), np.asarray(3, np.int8)))
    odd = np.array([0.5, 1.5, -0.5, 1e30, -1e30, np.inf, -np.inf], np.float32)
    yield Sample((odd, np.asarray(1.0, np.float32), np.asarray(3, np.int8)))
    ties = np.append(odd, np.array([2.5, -2.5, -0.49999997, 0.49999997, 126.5], np.float32))
    yield Sample((ties, np.asarray(1.0, np.float32), np.asarray(3, np.int8)), {"away": True})


def _dequantize_samples(rng: np.random.Generator) -> Iterator[Sample]:
    one = np.asarray(0.37, np.float32)
    per = (rng.random((4, 1)) + 0.1).astype(np.float32)
    for kind, zero in ((np.int8, -7), (np.uint8, 130), (np.int32, 0)):
        info = np.iinfo(kind)
        x = rng.integers(max(info.min, -9999), min(info.max, 9999), (3, 4, 19)).astype(kind)
        yield Sample((x, one, np.asarray(zero, kind)))
        yield Sample((x, per, np.full((4, 1), zero, kind)))
    for name in ("i4", "u4", "i2", "u2"):
        small = rng.integers(0, 4, (3, 4, 19)).astype(np.int8).astype(dtype(name).numpy)
        yield Sample((small, per, np.ones((4, 1), dtype(name).numpy)))
        yield Sample((small, per.astype(np.float16), np.ones((), dtype(name).numpy)))
    eight = rng.standard_normal((4, 19)).astype(dtype("f8e4m3fn").numpy)
    yield Sample((eight, per, np.zeros((), eight.dtype)))


OPERATORS = [
    Operator(
        name="quantize",
        trait="elementwise",
        infer=_quantize_infer,
        reference=_quantize_reference,
        optional_attrs={"away": bool, "to": str},
        compute=_quantize,
        samples=_quantize_samples,
        onnx={"QuantizeLinear": _import_quantize, "DynamicQuantizeLinear": _import_dynamic},
        doc="floats to small integers: round(x / scale) + zero_point",
    ),
    Operator(
        name="dequantize",
        trait="elementwise",
        infer=_dequantize_infer,
        reference=_dequantize_reference,
        compute=_dequantize,
        samples=_dequantize_samples,
        onnx={"DequantizeLinear": _import_dequantize},
        fold_on_import=False,
        doc="small integers to floats: (x - zero_point) * scale",
    ),
]
