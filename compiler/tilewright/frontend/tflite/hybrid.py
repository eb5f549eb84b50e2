"""Dynamic-range quantised operators: float operands, byte weights, products of bytes.

In: a float tensor and constant weights of 8 (or 4) bits with scales. Out: the operand quantised by its own
range when the model runs, products summed in 32 bits, floats again. As in the reference kernels: one range
per row of a matrix, per image of a batch; with one scale for the weights the zero point is 0, with scales
per channel (or where an option says so) the range may lie anywhere.
"""

from __future__ import annotations

import numpy as np

from tilewright.core.dtypes import F32, I32
from tilewright.frontend.tflite import convolution
from tilewright.frontend.tflite.model import Quantization
from tilewright.frontend.tflite.node import Importers, TfliteNode, one
from tilewright.graph.ir import Array


def _quantized(node: TfliteNode, x: str, asymmetric: bool) -> tuple[str, str, str]:
    """(bytes, their scale, their zero point as i32 or empty for 0), one range along dim 0."""
    axes = tuple(range(1, node.type_of(x).rank))

    def range_of(op: str, value: str) -> str:
        return node.add(f"reduce_{op}", value, axes=axes, keepdims=True)

    def number(value: float) -> str:
        return node.constant(np.asarray(value, np.float32))

    one_step, none = number(1.0), node.constant(np.zeros((), np.int8))
    if not asymmetric:
        # no kernel divides by the range of nothing but zeros
        top = node.add("max", range_of("max", node.add("abs", x)), number(1e-30))
        steps = node.add("mul", x, node.add("div", number(127.0), top))
        q = node.add("quantize", steps, one_step, none, away=True)
        return q, node.add("mul", top, number(1 / 127)), ""
    low = node.add("min", range_of("min", x), number(0.0))
    high = node.add("max", range_of("max", x), number(0.0))
    span = node.add("max", node.add("sub", high, low), number(1e-30))
    scale = node.add("div", span, number(255.0))
    # the zero point is taken from the end of the range that loses less
    below, above = node.add("div", low, scale), node.add("div", high, scale)
    by_low = node.add("sub", number(-128.0), below)
    by_high = node.add("sub", number(127.0), above)
    nearer = node.add(
        "lt",
        node.add("add", number(128.0), node.add("abs", below)),
        node.add("add", number(127.0), node.add("abs", above)),
    )
    chosen = node.add("where", nearer, by_low, by_high)
    zero = node.add("quantize", chosen, one_step, none, away=True)
    steps = node.add("mul", x, node.add("reciprocal", scale))
    moved = node.add("add", steps, node.cast(zero, F32))
    return node.add("quantize", moved, one_step, none, away=True), scale, node.cast(zero, I32)


def byte_weights(node: TfliteNode, i: int = 1) -> tuple[Array, Quantization]:
    """Constant weights of bytes around 0, and their scales."""
    q = node.quantization(node.tensor(i))
    w = node.need_const(i, "the weights")
    if w.dtype != np.int8 or q.zero.any():
        raise node.fail(
            "weights of a float operator must be int8 around 0: convert the model again"
        )
    return w, q


def _real(node: TfliteNode, total: str, scale: str, steps: Array, bias: str) -> str:
    """Sums of products times both scales, plus the bias."""
    y = node.add("mul", node.cast(total, F32), scale)
    y = node.add("mul", y, node.constant(steps.astype(np.float32), "steps"))
    return node.add("add", y, bias) if bias else y


def _fully_connected(node: TfliteNode) -> str:
    w, q = byte_weights(node)
    if w.ndim != 2:
        raise node.fail(f"weights of shape {list(w.shape)} are not a matrix: repair the model")
    flat, lead = convolution.rows(node, w.shape[1])
    steps = q.scale.reshape(()) if q.per_tensor else q.scale
    y = rows_product(node, flat, w, steps, bool(node.option("AsymmetricQuantizeInputs", False)))
    if node.has(2):
        y = node.add("add", y, node.reshape(node.value(2), (w.shape[0],)))
    return node.activated(node.reshape(y, (*lead, w.shape[0])))


def rows_product(node: TfliteNode, rows: str, w: Array, steps: Array, asymmetric: bool) -> str:
    """Rows [M, I] of floats times weights [O, I] of bytes in `steps`, as floats [M, O]."""
    x, scale, zero = _quantized(node, rows, asymmetric)
    total = node.add("matmul", x, node.constant(np.ascontiguousarray(w.T), "weights"))
    if zero:
        sums = node.constant(w.astype(np.int32).sum(axis=1), "sums", I32)
        total = node.add("sub", total, node.add("mul", zero, sums))
    return _real(node, total, scale, steps, "")


def _convolution(node: TfliteNode) -> str:
    w, q = byte_weights(node)
    depthwise = node.op.code == "DEPTHWISE_CONV_2D"
    make = convolution.depthwise if depthwise else convolution.conv
    image = node.nchw(node.value(0))
    x, scale, zero = _quantized(node, image, depthwise or not q.per_tensor)
    filters = node.constant(w, "weights")
    total = make(node, x, filters, "", pad_value=0)
    if zero:  # what the border adds is 0, not the zero point
        shape = (1, *node.type_of(image).shape[1:])
        ones = node.constant(np.ones(shape, np.int8), "ones")
        share = make(node, ones, filters, "", pad_value=0)
        total = node.add("sub", total, node.add("mul", share, zero))
    bias = node.reshape(node.value(2), (node.type(2).size, 1, 1)) if node.has(2) else ""
    steps = q.scale.reshape(()) if q.per_tensor else q.scale.reshape(-1, 1, 1)
    return node.activated(node.nhwc(_real(node, total, scale, steps, bias)))


def _transposed(node: TfliteNode) -> str:
    """TRANSPOSE_CONV: (shape of the result, weights, image, bias?); its range may always lie anywhere."""
    w, q = byte_weights(node, 1)
    if w.ndim != 4:
        raise node.fail(f"weights {node.type(1)} are not of rank 4: repair the model")
    attrs, _ = convolution.transposed_window(node, w.shape)
    whole = np.ascontiguousarray(w.transpose(3, 0, 1, 2)).astype(np.int32)
    filters = node.constant(whole, "weights")
    image = node.nchw(node.value(2))
    x, scale, zero = _quantized(node, image, True)
    total = node.add("conv_transpose2d", node.cast(x, I32), filters, **attrs)
    ones = node.constant(np.ones((1, *node.type_of(image).shape[1:]), np.int32), "ones")
    share = node.add("conv_transpose2d", ones, filters, **attrs)
    total = node.add("sub", total, node.add("mul", share, zero))
    bias = node.reshape(node.value(3), (node.type(3).size, 1, 1)) if node.has(3) else ""
    steps = q.scale.reshape(()) if q.per_tensor else q.scale.reshape(-1, 1, 1)
    return node.activated(node.nhwc(_real(node, total, scale, steps, bias)))


def _embedding(node: TfliteNode) -> str:
    """Rows of a quantised table as floats."""
    w, q = byte_weights(node)
    rows = node.add("gather", node.constant(w, "table"), node.value(0), axis=0)
    y = node.cast(rows, F32)
    if q.per_tensor:
        return node.add("mul", y, node.constant(q.scale.reshape(()), "scale"))
    if q.axis:
        raise node.fail("a table with scales along its columns is not supported: convert it again")
    picked = node.add("gather", node.constant(q.scale, "scales"), node.value(0), axis=0)
    shape = node.type_of(picked).shape
    return node.add("mul", y, node.reshape(picked, (*shape, *[1] * (w.ndim - 1))))


HYBRID: Importers = {
    "FULLY_CONNECTED": one(_fully_connected),
    "CONV_2D": one(_convolution),
    "DEPTHWISE_CONV_2D": one(_convolution),
    "TRANSPOSE_CONV": one(_transposed),
    "EMBEDDING_LOOKUP": one(_embedding),
}
