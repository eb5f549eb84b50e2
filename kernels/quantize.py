"""Between floats and bytes: ONNX QuantizeLinear, DynamicQuantizeLinear and DequantizeLinear.

quantize    y = clamp(round(x / scale) + zero_point), ties to even, or (`away`) away from zero
dequantize  y = (x - zero_point) * scale

Scales and zero points broadcast, so that they may be one per channel. Where a whole model is quantised,
`graph.passes.quantize` turns what lies between such pairs into integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.dtypes import F32, I8, I16, I32, U8, U16, DType
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

_BYTES = (I8, U8, I16, U16)


def _fits(x: TensorType, scale: TensorType, zero: TensorType) -> bool:
    """Whether scale and zero point broadcast to x."""
    shapes = (x.shape, scale.shape, zero.shape)
    try:
        return np.broadcast_shapes(*shapes) == x.shape and scale.dtype is F32
    except ValueError:
        return False


def _quantize_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    assert x is not None and scale is not None and zero is not None
    if x.dtype is not F32 or zero.dtype not in _BYTES or not _fits(x, scale, zero):
        raise ModelError(
            f"`quantize` of {x} by {scale} and {zero}: f32 to small integers is wanted"
        )
    return [TensorType(zero.dtype, x.shape)]


def _dequantize_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x, scale, zero = types
    assert x is not None and scale is not None and zero is not None
    known = x.dtype in (*_BYTES, I32)
    if not known or zero.dtype is not x.dtype or not _fits(x, scale, zero):
        raise ModelError(f"`dequantize` of {x} by {scale} and {zero}: integers to f32 are wanted")
    return [TensorType(F32, x.shape)]


def _quantize_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, zero = inputs
    info = np.iinfo(zero.dtype)
    with np.errstate(all="ignore"):
        steps = (np.asarray(x, np.float32) / scale).astype(np.float64)
        away = np.trunc(steps + np.copysign(0.5, steps))
        steps = away if attrs.get("away", False) else np.rint(steps)
    steps = np.nan_to_num(steps, nan=0.0) + zero.astype(np.float64)
    return [np.clip(steps, info.min, info.max).astype(zero.dtype)]


def _dequantize_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, scale, zero = inputs
    return [((x.astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale)]


def _range(number: DType) -> tuple[int, int]:
    info = np.iinfo(str(number.numpy))
    return int(info.min), int(info.max)


def _quantize(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    value, scale, zero = x
    assert value is not None and scale is not None and zero is not None
    low, high = _range(out.dtype)
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
    steps = sub(cast(value.broadcast(index), I32), cast(zero.broadcast(index), I32))
    return mul(cast(steps, F32), scale.broadcast(index))


# ---------------------------------------------------------------- importers


def _parameters(node: ImportNode, number: DType) -> tuple[str, str]:
    """Scale and zero point, shaped so that they broadcast to input 0."""
    x = node.type(0)
    scale = node.need_const(1, "the scale")
    zero = node.need_const(2, "the zero point") if node.has(2) else np.zeros((), number.numpy)
    if int(node.attr("block_size", 0)):
        raise node.fail("blocked quantisation is not supported: quantise per tensor or per axis")
    if scale.dtype != np.float32:
        raise node.fail(f"a scale of {scale.dtype} is not supported: use float32")
    if scale.ndim > 1 or zero.size not in (1, scale.size):
        raise node.fail(f"scale {list(scale.shape)} and zero point {list(zero.shape)} do not fit")
    shape: tuple[int, ...] = ()
    if scale.size > 1:
        axis = int(node.attr("axis", 1))
        if not -x.rank <= axis < x.rank or x.shape[axis] != scale.size:
            raise node.fail(
                f"axis {axis} of {x} does not fit {scale.size} scales: repair the model"
            )
        shape = (scale.size, *[1] * (x.rank - 1 - axis % x.rank))
    zeros = np.broadcast_to(zero.reshape(-1), (scale.size,)).reshape(shape)
    return node.constant(scale.reshape(shape), "scale"), node.constant(zeros, "zero")


_ONNX_TYPES = {2: U8, 3: I8, 4: U16, 5: I16}


def _import_quantize(node: ImportNode) -> Sequence[str]:
    code = int(node.attr("output_dtype", 0))
    if code not in (0, *_ONNX_TYPES):
        raise node.fail(
            f"quantisation to ONNX element type {code} is not supported: use 8 or 16 bits"
        )
    number = node.type(2).dtype if node.has(2) else _ONNX_TYPES.get(code, U8)
    if number not in _BYTES:
        raise node.fail(f"quantisation to {number} is not supported: use 8 or 16 bits")
    return node.add("quantize", [node.inputs[0], *_parameters(node, number)])


def _import_dequantize(node: ImportNode) -> Sequence[str]:
    x = node.type(0)
    if x.dtype not in (*_BYTES, I32):
        raise node.fail(f"dequantisation of {x} is not supported: use integers of up to 32 bits")
    return node.add("dequantize", [node.inputs[0], *_parameters(node, x.dtype)])


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


OPERATORS = [
    Operator(
        name="quantize",
        trait="elementwise",
        infer=_quantize_infer,
        reference=_quantize_reference,
        optional_attrs={"away": bool},
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
