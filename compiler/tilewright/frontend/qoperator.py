"""Operators over quantised tensors (QLinearConv, QGemm, ...), imported as the float operators they stand for.

In: a node whose operands come as (integers, scale, zero point). Out: dequantize, the operator, quantize;
`graph.passes.quantize` then finds integer arithmetic for that, as for models that say the same in pairs.
Invariant: one file knows the order of such operands; what the operator does is known to its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.core.dtypes import I32
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.registry import ImportNode, onnx_importers


@dataclass(slots=True)
class _Standing:
    """A node as one of a standard operator, with other inputs: what the operator's importer sees."""

    node: ImportNode
    op_type: str
    inputs: Sequence[str]
    opset: int
    changed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    name: str = field(init=False)
    output_count: int = 1
    integers: bool = False
    """Whether operands are integers as they stand, of which the node's constants are known."""

    def __post_init__(self) -> None:
        self.name = self.node.name

    def attr(self, name: str, default: Any = None) -> Any:
        return self.changed[name] if name in self.changed else self.node.attr(name, default)

    def type(self, i: int) -> TensorType:
        return self.node.type_of(self.inputs[i])

    def type_of(self, value: str) -> TensorType:
        return self.node.type_of(value)

    def const(self, i: int) -> Array | None:
        """None: what is dequantized has no value before the passes ran."""
        if not self.integers or not self.has(i) or self.inputs[i] not in self.node.inputs:
            return None
        return self.node.const(list(self.node.inputs).index(self.inputs[i]))

    def need_const(self, i: int, what: str) -> Array:
        raise self.fail(f"{what} of a quantised operator must be a constant: make it one")

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] != ""

    def constant(self, array: Array, hint: str = "const") -> str:
        return self.node.constant(array, hint)

    def reserve(self, *shape: int) -> None:
        self.node.reserve(*shape)

    def add(
        self, op: str, inputs: Sequence[str], attrs: Attrs | None = None, outputs: int = 1
    ) -> list[str]:
        return self.node.add(op, inputs, attrs, outputs)

    def counted(self, value: str, count: str, axis: int) -> str:
        return self.node.counted(value, count, axis)

    def fail(self, reason: str) -> Exception:
        return self.node.fail(reason)


def _as(
    node: ImportNode, op_type: str, inputs: Sequence[str], opset: int = 0, **changed: Any
) -> str:
    """Import `node` as standard operator `op_type` over `inputs`."""
    view = _Standing(node, op_type, inputs, opset or max(node.opset, 13), changed)
    (y,) = onnx_importers()[op_type](view)
    return y


def _parameter(node: ImportNode, at: int, what: str, axis: int | None, x: TensorType) -> str:
    """A scale or zero point of a tensor like `x`: a scalar, or one value per element along `axis`."""
    t, value = node.type(at), node.inputs[at]
    shape: tuple[int, ...] = ()
    if t.size != 1:
        if axis is None or t.shape not in ((x.shape[axis],), _kept(x.shape, axis)):
            raise node.fail(f"{what} of shape {list(t.shape)} does not fit {x}: repair the model")
        shape = (t.size, *[1] * (x.rank - 1 - axis % x.rank))
    return value if t.shape == shape else node.add("reshape", [value], {"shape": shape})[0]


def _kept(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of one value per element along `axis`, where the other dims stay as ones."""
    return tuple(n if d == axis % len(shape) else 1 for d, n in enumerate(shape))


def _scales(node: ImportNode, at: int, axis: int | None, x: TensorType) -> tuple[str, str]:
    """Scale and zero point (inputs `at` and `at` + 1) of a tensor like `x`."""
    scale = _parameter(node, at, f"the scale (input {at})", axis, x)
    if not node.has(at + 1):
        return scale, node.constant(np.zeros((), x.dtype.numpy), "zero")
    zero = _parameter(node, at + 1, f"the zero point (input {at + 1})", axis, x)
    return scale, zero


def _real(node: ImportNode, at: int, axis: int | None = None) -> str:
    """The operand whose integers, scale and zero point are inputs `at`, `at` + 1 and `at` + 2."""
    return node.add("dequantize", [node.inputs[at], *_scales(node, at + 1, axis, node.type(at))])[0]


def _integers(node: ImportNode, y: str, at: int) -> Sequence[str]:
    """`y` quantised by inputs `at` (scale) and `at` + 1 (zero point, which gives the type)."""
    number = node.type(at + 1).dtype if node.has(at + 1) else node.type(0).dtype
    scale, zero = _scales(node, at, None, TensorType(number, node.type_of(y).shape))
    return node.add("quantize", [y, scale, zero])


def _bias(node: ImportNode, at: int, x: int, w: int, factor: float = 1.0) -> str:
    """The i32 bias at input `at`, in steps of the products of operands at `x` and `w`."""
    t = node.type(at)
    if t.dtype is not I32:
        raise node.fail(f"the bias is {t}, but must be i32: repair the model")
    steps = node.need_const(x + 1, "the scale of the input").astype(np.float64).reshape(-1)
    steps = steps * node.need_const(w + 1, "the scale of the weights").astype(np.float64) * factor
    scale = steps.reshape(-1) if steps.size > 1 else steps.reshape(())
    if scale.size not in (1, t.shape[-1] if t.rank else 1):
        raise node.fail(f"the bias {t} does not fit {scale.size} scales: repair the model")
    names = [node.inputs[at], node.constant(scale.astype(np.float32), "scale")]
    names.append(node.constant(np.zeros(scale.shape, np.int32), "zero"))
    return node.add("dequantize", names)[0]


def _channels_first(node: ImportNode) -> None:
    if int(node.attr("channels_last", 0)):
        raise node.fail(
            "channels_last is not supported: export the model without that optimisation"
        )


# ---------------------------------------------------------------- the operators


def _conv(node: ImportNode) -> Sequence[str]:
    """QLinearConv(x, w with scales per output channel, scale and zero point of y, bias?)."""
    _channels_first(node)
    inputs = [_real(node, 0), _real(node, 3, axis=0)]
    if node.has(8):
        inputs.append(_bias(node, 8, 0, 3))
    return _integers(node, _as(node, "Conv", inputs), 6)


def _matmul(node: ImportNode) -> Sequence[str]:
    """QLinearMatMul(a, b with scales per column, scale and zero point of y)."""
    y = _as(node, "MatMul", [_real(node, 0), _real(node, 3, axis=node.type(3).rank - 1)])
    return _integers(node, y, 6)


def _gemm(node: ImportNode) -> Sequence[str]:
    """QGemm(a, b, c?, scale and zero point of y?): floats where y has none."""
    columns = 0 if node.attr("transB", 0) else 1
    inputs = [_real(node, 0), _real(node, 3, axis=columns)]
    if node.has(6):
        inputs.append(_bias(node, 6, 0, 3, float(node.attr("alpha", 1.0))))
    y = _as(node, "Gemm", inputs, beta=1.0)
    return _integers(node, y, 7) if node.has(7) else [y]


def _binary(op_type: str) -> Callable[[ImportNode], Sequence[str]]:
    """(a, b, scale and zero point of the result)."""

    def importer(node: ImportNode) -> Sequence[str]:
        return _integers(node, _as(node, op_type, [_real(node, 0), _real(node, 3)]), 6)

    return importer


def _unary(op_type: str) -> Callable[[ImportNode], Sequence[str]]:
    """(x, scale and zero point of the result)."""

    def importer(node: ImportNode) -> Sequence[str]:
        _channels_first(node)
        return _integers(node, _as(node, op_type, [_real(node, 0)]), 3)

    return importer


def _softmax(node: ImportNode) -> Sequence[str]:
    """QLinearSoftmax names the opset whose meaning of `axis` it has."""
    opset = int(node.attr("opset", 13))
    axis = int(node.attr("axis", -1 if opset >= 13 else 1))
    return _integers(node, _as(node, "Softmax", [_real(node, 0)], opset, axis=axis), 3)


def _concat(node: ImportNode) -> Sequence[str]:
    """(scale and zero point of the result, then each operand with its own)."""
    if len(node.inputs) < 5 or len(node.inputs) % 3 != 2:
        raise node.fail(f"it has {len(node.inputs)} inputs, not 2 + 3 for each part: repair it")
    parts = [_real(node, at) for at in range(2, len(node.inputs), 3)]
    return _integers(node, _as(node, "Concat", parts), 0)


def _where(node: ImportNode) -> Sequence[str]:
    """(condition, x, y, scale and zero point of the result)."""
    y = _as(node, "Where", [node.inputs[0], _real(node, 1), _real(node, 4)])
    return _integers(node, y, 7)


def _integer_to_float(node: ImportNode) -> Sequence[str]:
    """MatMulIntegerToFloat(a, b, scale of a, of b, zero point of a?, of b?, bias?)."""
    zeros = [node.inputs[i] if node.has(i) else "" for i in (4, 5)]
    bias = node.inputs[6] if node.has(6) else ""
    return [_scaled_product(node, node.inputs[0], zeros[0], node.inputs[2], 1, zeros[1], 3, bias)]


def _dynamic_matmul(node: ImportNode) -> Sequence[str]:
    """DynamicQuantizeMatMul(x, b, scale of b, zero point of b?, bias?): x becomes u8 on the way."""
    view = _Standing(node, "DynamicQuantizeLinear", node.inputs[:1], max(node.opset, 13))
    q, scale, zero = onnx_importers()["DynamicQuantizeLinear"](view)
    bias = node.inputs[4] if node.has(4) else ""
    return [
        _scaled_product(node, q, zero, scale, 1, node.inputs[3] if node.has(3) else "", 2, bias)
    ]


def _scaled_product(
    node: ImportNode,
    a: str,
    zero_a: str,
    scale_a: str,
    b: int,
    zero_b: str,
    scale_b: int,
    bias: str,
) -> str:
    """(a - zero_a)(b - zero_b), summed in i32, times both scales, plus a bias."""
    view = _Standing(
        node, "MatMulInteger", [a, node.inputs[b], zero_a, zero_b], max(node.opset, 13)
    )
    view.integers = True
    (total,) = onnx_importers()["MatMulInteger"](view)
    (y,) = node.add("cast", [total], {"to": "f32"})
    (scale,) = node.add("mul", [scale_a, node.inputs[scale_b]])
    (y,) = node.add("mul", [y, scale])
    return node.add("add", [y, bias])[0] if bias else y


def _dynamic_lstm(node: ImportNode) -> Sequence[str]:
    """DynamicQuantizeLSTM(x, w, r, bias?, lengths?, h?, c?, peephole?, scale and zero point of w, of r): x
    becomes u8 as a whole, the state at every step; w[D, I, 4H] and r[D, H, 4H] have one scale per direction or column."""
    t, w, r = node.type(0), node.type(1), node.type(2)
    if t.rank != 3 or w.rank != 3 or r.rank != 3 or r.shape[2] != 4 * r.shape[1] or not r.size:
        raise node.fail(f"x is {t}, w {w}, r {r}: the shapes do not fit: repair the model")
    (directions, size, width), hidden = w.shape, r.shape[1]
    steps, batch, _ = t.shape
    view = _Standing(node, "DynamicQuantizeLinear", node.inputs[:1], max(node.opset, 13))
    q, step, zero = onnx_importers()["DynamicQuantizeLinear"](view)
    (rows,) = node.add("reshape", [q], {"shape": (steps * batch, size)})
    weights, scale = _centred(node, 1, 8)
    both = {"shape": (size, directions * width)}
    (flat,) = node.add("reshape", node.add("transpose", [weights], {"perm": (1, 0, 2)}), both)
    made = _Standing(node, "MatMulInteger", [rows, flat, zero], max(node.opset, 13))
    made.integers = True
    (total,) = onnx_importers()["MatMulInteger"](made)
    (y,) = node.add("cast", [total], {"to": "f32"})
    (scale,) = node.add("reshape", [scale], {"shape": (directions * width,)})
    (y,) = node.add("mul", [y, *node.add("mul", [step, scale])])
    (gates,) = node.add("reshape", [y], {"shape": (steps, batch, directions * width)})
    state, worth = _centred(node, 2, 10)
    (state,) = node.add("transpose", [state], {"perm": (0, 2, 1)})
    given = [node.inputs[i] if node.has(i) else "" for i in range(3, 8)]
    cells = _Standing(
        node,
        "LSTM",
        [gates, "", state, *given, worth],
        max(node.opset, 14),
        {"hidden_size": hidden},
    )
    return onnx_importers()["tilewright::DynamicLSTM"](cells)


def _centred(node: ImportNode, weights: int, at: int) -> tuple[str, str]:
    """Constant bytes [D, K, 4H] less their zero point, and scales [D, 4H]; scale and zero point are inputs
    `at` and `at` + 1, of [D] or [D, 4H]."""
    known = node.need_const(weights, "the weights")
    directions, _, width = known.shape
    both: list[Array] = []
    for i, kind in ((at, np.float32), (at + 1, np.int16)):
        given = (
            node.need_const(i, "scale and zero point of weights") if node.has(i) else np.zeros(1)
        )
        if given.size not in (1, directions, directions * width):
            raise node.fail(f"input {i} of {given.size} elements does not fit: repair the model")
        rows = given.reshape(directions if given.size >= directions else 1, -1)
        both.append(np.ascontiguousarray(np.broadcast_to(rows, (directions, width))).astype(kind))
    centred = known.astype(np.int16) - both[1][:, None, :]
    small = next(
        (k for k in (np.int8, np.uint8) if np.array_equal(centred, centred.astype(k))), np.int16
    )
    return node.constant(centred.astype(small), "weights"), node.constant(both[0], "scale")


#: ONNX operator type (standard or com.microsoft) -> importer
QOPERATORS: Mapping[str, Callable[[ImportNode], Sequence[str]]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearMul": _binary("Mul"),
    "QLinearAveragePool": _unary("AveragePool"),
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearLeakyRelu": _unary("LeakyRelu"),
    "QLinearSoftmax": _softmax,
    "QLinearConcat": _concat,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _integer_to_float,
    "DynamicQuantizeLSTM": _dynamic_lstm,
    "QLinearWhere": _where,
}
