"""Which importer takes which builtin operator, and why some are refused.

Invariant: `BYTES` compute nothing and take quantised tensors as they are; `FLOAT` take floats and plain
integers; `INTEGER` take quantised tensors. What has no integer form goes through floats: dequantize, the
float form, quantize. Builtins of no kind are refused by name, with the reason where there is more to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tilewright.core.dtypes import F32, I8, I16, I32, U8
from tilewright.frontend.tflite import (
    convolution,
    elementwise,
    hybrid,
    integers,
    movement,
    picking,
    ranking,
    recurrent,
    reduction,
    wide,
)
from tilewright.frontend.tflite.elementwise import dequantized, quantized
from tilewright.frontend.tflite.model import Op, Tensor
from tilewright.frontend.tflite.node import Importer, Importers, TfliteNode

BYTES: Importers = {**movement.BYTES, **picking.BYTES}

FLOAT: Importers = {
    **convolution.FLOAT,
    **elementwise.FLOAT,
    **movement.FLOAT,
    **reduction.FLOAT,
    **ranking.RANKING,
}

#: Layers with memory know themselves which types they take.
RECURRENT: Importers = recurrent.RECURRENT

CUSTOM: Importers = ranking.CUSTOM

INTEGER: Importers = integers.INTEGER

HYBRID: Importers = hybrid.HYBRID

#: Over 16-bit operands with byte weights.
WIDE: Importers = wide.WIDE

#: What of `INTEGER` takes 16-bit tensors as well.
_WIDE = frozenset(
    {"ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "CONCATENATION", "RELU", "RELU6", "QUANTIZE", "MAX_POOL_2D",
     "MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "ARG_MAX", "ARG_MIN",
     "RESIZE_NEAREST_NEIGHBOR", "CAST"}
)  # fmt: skip


def importer(node: TfliteNode) -> Importer:
    """What imports the operator for operands of these types."""
    code = node.op.code
    if code == "CUSTOM":
        return CUSTOM[node.op.custom]
    if code in RECURRENT:
        return RECURRENT[code]
    if code in HYBRID and _is_hybrid(node):
        return HYBRID[code]
    if code in BYTES:
        return BYTES[code]
    if code == "DEQUANTIZE" or not any(_integers(t) for t in node.tensors()):
        return FLOAT[code]
    main = node.tensor(2 if code == "TRANSPOSE_CONV" else 0)
    if main.dtype is I16 and code in WIDE:
        return WIDE[code]
    small = main.dtype in (I8, U8) or (main.dtype is I16 and code in _WIDE)
    if code in INTEGER and (_integers(main) or code == "QUANTIZE") and (small or main.dtype is I32):
        return INTEGER[code]
    return _through_floats


def _is_hybrid(node: TfliteNode) -> bool:
    """Whether floats meet constant weights of bytes."""
    w, y = node.tensor(1), node.result()
    return w.dtype is I8 and w.data is not None and _integers(w) and y.dtype is F32


def _integers(t: Tensor) -> bool:
    """Whether a tensor stands for reals."""
    return t.dtype in (I8, U8, I16) and (t.quantization is not None or bool(t.unreadable))


def _through_floats(node: TfliteNode) -> Sequence[str]:
    """Dequantize, the float form, quantize."""
    if node.op.code not in FLOAT:
        raise node.fail("it has no float form: convert the model again")
    values = list(node.inputs)
    for i in range(len(values)):
        if node.has(i) and (_integers(node.tensor(i)) or _is_bias(node, i)):
            values[i] = dequantized(node, values[i], i)
    results = FLOAT[node.op.code](replace(node, inputs=values))
    return [
        quantized(node, y, k) if _integers(node.result(k)) and node.type_of(y).dtype.is_float else y
        for k, y in enumerate(results)
    ]


def _is_bias(node: TfliteNode, i: int) -> bool:
    """A bias is of 32 or 64 bits, and has a scale."""
    t = node.tensor(i)
    return t.dtype is not None and t.dtype.kind == "int" and t.quantization is not None and i >= 2


def known(op: Op) -> bool:
    """Whether there is an importer for operators of this name."""
    if op.code == "CUSTOM":
        return op.custom in CUSTOM
    return op.code in BYTES or op.code in FLOAT or op.code in RECURRENT


_STRINGS = "strings and hash tables are not supported: compute this step outside the model"
_RANDOM = "random numbers are not supported: make them an input of the model"
_COMPLEX = "complex numbers are not supported: compute this step outside the model"
_DATA_SHAPE = "the shape of its result depends on the data: compute this step outside the model"

#: builtin -> reason and what to do
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_IMPORT", "HASHTABLE_SIZE", "HASHTABLE_LOOKUP",
         "LSH_PROJECTION", "SKIP_GRAM"), _STRINGS,
    ),
    **dict.fromkeys(
        ("RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL", "STABLEHLO_RNG_BIT_GENERATOR"),
        _RANDOM,
    ),
    **dict.fromkeys(("RFFT2D", "REAL", "IMAG", "COMPLEX_ABS"), _COMPLEX),
    **dict.fromkeys(("WHERE", "UNIQUE"), _DATA_SHAPE),
    "DELEGATE": "the model was compiled for a delegate: use the model it was made from",
}  # fmt: skip
