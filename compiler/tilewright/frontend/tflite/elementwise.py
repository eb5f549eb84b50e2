"""Operators that work element by element, over floats and plain integers, and conversions of type.

Those of quantised tensors are in `integers.py`; what is not there goes through floats (`importer.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.core.dtypes import BOOL, F32, I32, I64, U8, DType
from tilewright.frontend import limits
from tilewright.frontend.tflite.node import Importers, TfliteNode, one

# ---------------------------------------------------------------- one operand


def _unary(op: str, **attrs: Any) -> Callable[[TfliteNode], str]:
    return lambda node: node.add(op, node.value(0), **attrs)


def _rsqrt(node: TfliteNode) -> str:
    return node.add("reciprocal", node.add("sqrt", node.value(0)))


def _square(node: TfliteNode) -> str:
    return node.add("mul", node.value(0), node.value(0))


def _gelu(node: TfliteNode) -> str:
    kind = "tanh" if node.option("Approximate", False) else "none"
    return node.add("gelu", node.value(0), approximate=kind)


def _leaky_relu(node: TfliteNode) -> str:
    return node.add("leaky_relu", node.value(0), alpha=float(node.option("Alpha", 0.0)))


def _softmax(node: TfliteNode) -> str:
    x, beta = node.value(0), float(node.option("Beta", 1.0))
    if beta != 1.0:
        x = node.add("mul", x, node.like(x, beta, "beta"))
    return node.add("softmax", x, axis=max(node.type(0).rank - 1, 0))


def _log_softmax(node: TfliteNode) -> str:
    return node.add("log_softmax", node.value(0), axis=max(node.type(0).rank - 1, 0))


def _fake_quant(node: TfliteNode) -> str:
    """Rounded to one of 2^bits steps between min and max, whose zero is moved onto a step."""
    low, high = float(node.option("Min", 0.0)), float(node.option("Max", 0.0))
    bits = int(node.option("NumBits", 8))
    least = 1 if node.option("NarrowRange", False) else 0
    most = (1 << bits) - 1
    if not low <= 0 <= high or low == high or not 2 <= bits <= 16:
        raise node.fail(
            f"a range of {low} to {high} in {bits} bits is not possible: repair the model"
        )
    step = (high - low) / (most - least)
    zero = min(max(int(np.floor(least - low / step + 0.5)), least), most)
    x = node.value(0)
    cut = node.add("clip", x, min=(least - zero) * step, max=(most - zero) * step)
    moved = node.add("sub", cut, node.like(x, (least - zero) * step))
    half = node.add("mul", moved, node.like(x, 1 / step))
    steps = node.add("floor", node.add("add", half, node.like(x, 0.5)))
    back = node.add("mul", steps, node.like(x, step))
    return node.add("add", back, node.like(x, (least - zero) * step))


# ---------------------------------------------------------------- two operands


def _binary(op: str) -> Callable[[TfliteNode], str]:
    """With the fused activation function where the operator has one."""
    return lambda node: node.activated(node.add(op, node.value(0), node.value(1)))


def _not_equal(node: TfliteNode) -> str:
    return node.add("not", node.add("eq", node.value(0), node.value(1)))


def _squared_difference(node: TfliteNode) -> str:
    d = node.add("sub", node.value(0), node.value(1))
    return node.add("mul", d, d)


def _off_by_one(node: TfliteNode, rest: str) -> str:
    """Where C's remainder `rest` (the sign of the dividend) and the divisor have different signs."""
    zero = node.like(rest, 0)
    some = node.add("not", node.add("eq", rest, zero))
    sides = [node.add("lt", v, zero) for v in (rest, node.value(1))]
    return node.add("and", some, node.add("xor", *sides))


def _floor_div(node: TfliteNode) -> str:
    quotient = node.add("div", node.value(0), node.value(1))
    if node.type(0).dtype.is_float:
        return node.add("floor", quotient)
    rest = node.add("mod", node.value(0), node.value(1))
    less = node.add("sub", quotient, node.like(quotient, 1))
    return node.add("where", _off_by_one(node, rest), less, quotient)


def _floor_mod(node: TfliteNode) -> str:
    rest = node.add("mod", node.value(0), node.value(1))
    return node.add("where", _off_by_one(node, rest), node.add("add", rest, node.value(1)), rest)


def _add_n(node: TfliteNode) -> str:
    total = node.value(0)
    for i in range(1, len(node.inputs)):
        total = node.add("add", total, node.value(i))
    return total


def _select(node: TfliteNode) -> str:
    """A condition of one dim picks rows where the operands have more dims."""
    condition, x = node.type(0), node.type(1)
    value = node.value(0)
    if node.op.code == "SELECT" and condition.rank == 1 and x.rank > 1:
        value = node.reshape(value, (*condition.shape, *[1] * (x.rank - 1)))
    return node.add("where", value, node.value(1), node.value(2))


# ---------------------------------------------------------------- types


def _cast(node: TfliteNode) -> str:
    to = node.result().dtype
    if to is None:
        raise node.fail(f"casts to {node.result().kind} are not supported")
    return node.cast(node.value(0), to)


def dequantized(node: TfliteNode, x: str, i: int) -> str:
    """Input `i` as floats; halves and the like are widened."""
    if node.type_of(x).dtype.is_float:
        return node.cast(x, F32)
    q = node.quantization(node.tensor(i))
    t = node.type_of(x)
    shape = () if q.per_tensor else (-1, *[1] * (t.rank - 1 - q.axis))
    if t.dtype is I64:
        x, t = node.cast(x, I32), node.type_of(node.cast(x, I32))
    scale = node.constant(q.scale.reshape(shape), "scale")
    return node.add("dequantize", x, scale, node.constant(q.zero.reshape(shape), "zero", t.dtype))


def quantized(node: TfliteNode, x: str, i: int = 0) -> str:
    """Floats as the integers of output `i`, ties away from zero."""
    target = node.result(i)
    q = node.quantization(target)
    if target.dtype is None or not q.per_tensor:
        raise node.fail(
            "a result with a scale per channel is not supported: convert the model again"
        )
    zero = node.constant(q.zero.reshape(()), "zero", target.dtype)
    return node.add("quantize", x, node.constant(q.scale.reshape(()), "scale"), zero, away=True)


def _bucketize(node: TfliteNode) -> str:
    """How many boundaries are at most x."""
    x, t = node.value(0), node.type(0)
    bounds = np.asarray(node.option("Boundaries", ()), np.float32)
    wide = node.cast(node.reshape(x, (*t.shape, 1)), F32)
    reached = node.add("ge", wide, node.constant(bounds, "boundaries"))
    if not bounds.size:
        return node.constant(np.zeros(t.shape, np.int32))
    counts = node.cast(reached, I32)
    return node.add("reduce_sum", counts, axes=(t.rank,), keepdims=False)


def _one_hot(node: TfliteNode) -> str:
    """(indices, depth, value on, value off): the new dim stands at `Axis`."""
    indices, depth = node.value(0), node.need_ints(1, "the depth")[0]
    t = node.type(0)
    axis = node.axis(int(node.option("Axis", -1)), t.rank + 1)
    wide = node.reshape(indices, (*t.shape[:axis], 1, *t.shape[axis:]))
    limits.check_constant([max(depth, 0)], f"node `{node.name}`")
    numbers = np.arange(max(depth, 0)).reshape(-1, *[1] * (t.rank - axis))
    hit = node.add("eq", wide, node.constant(numbers, "numbers", t.dtype))
    return node.add("where", hit, node.reshape(node.value(2), ()), node.reshape(node.value(3), ()))


def _bits(op: str) -> Callable[[TfliteNode], str]:
    return lambda node: node.add(op, node.value(0), node.value(1))


def _truth(node: TfliteNode) -> str:
    """Bool as it is; used by logic operators whose files store other types."""
    if node.type(0).dtype not in (BOOL, U8):
        raise node.fail(f"{node.type(0)} is not bool: repair the model")
    return node.add("not", node.cast(node.value(0), BOOL))


def cast_to(node: TfliteNode, x: str, to: DType | None) -> str:
    """`x` in the type of a result, where the file names another than ours."""
    return x if to is None else node.cast(x, to)


FLOAT: Importers = {
    **{
        code: one(_unary(op))
        for code, op in {
            "ABS": "abs", "NEG": "neg", "SIGN": "sign", "EXP": "exp", "LOG": "log", "SQRT": "sqrt",
            "SIN": "sin", "COS": "cos", "FLOOR": "floor", "CEIL": "ceil", "ROUND": "round",
            "LOGISTIC": "sigmoid", "TANH": "tanh", "RELU": "relu", "HARD_SWISH": "hard_swish",
        }.items()
    },
    **{
        code: one(_binary(op))
        for code, op in {
            "ADD": "add", "SUB": "sub", "MUL": "mul", "DIV": "div", "MAXIMUM": "max", "MINIMUM": "min",
            "POW": "pow", "LESS": "lt", "LESS_EQUAL": "le", "GREATER": "gt", "GREATER_EQUAL": "ge",
            "EQUAL": "eq", "LOGICAL_AND": "and", "LOGICAL_OR": "or",
        }.items()
    },
    "RELU6": one(lambda n: n.activated(n.value(0), "RELU6")),
    "RELU_N1_TO_1": one(lambda n: n.activated(n.value(0), "RELU_N1_TO_1")),
    "RELU_0_TO_1": one(lambda n: n.activated(n.value(0), "RELU_0_TO_1")),
    "ELU": one(_unary("elu", alpha=1.0)),
    "LEAKY_RELU": one(_leaky_relu),
    "PRELU": one(lambda n: n.add("prelu", n.value(0), n.value(1))),
    "GELU": one(_gelu),
    "RSQRT": one(_rsqrt),
    "SQUARE": one(_square),
    "SOFTMAX": one(_softmax),
    "LOG_SOFTMAX": one(_log_softmax),
    "FAKE_QUANT": one(_fake_quant),
    "NOT_EQUAL": one(_not_equal),
    "LOGICAL_NOT": one(_truth),
    "SQUARED_DIFFERENCE": one(_squared_difference),
    "FLOOR_DIV": one(_floor_div),
    "FLOOR_MOD": one(_floor_mod),
    "BITWISE_XOR": one(_bits("xor")),
    "ADD_N": one(_add_n),
    "SELECT": one(_select),
    "SELECT_V2": one(_select),
    "CAST": one(_cast),
    "DEQUANTIZE": one(lambda n: dequantized(n, n.value(0), 0)),
    "QUANTIZE": one(lambda n: quantized(n, n.value(0))),
    "BUCKETIZE": one(_bucketize),
    "ONE_HOT": one(_one_hot),
}  # fmt: skip
