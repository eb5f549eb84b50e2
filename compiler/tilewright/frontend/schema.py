"""Whether a node is what its standard says: its inputs, and the types of its attributes.

In: a NodeProto and the opset. Out: nothing, or a `ModelError` that names the node.
Invariant: what passes has every required input and attribute, and attributes of the right type, so an
importer need not look. The standard is ONNX's, or (for what ONNX Runtime's optimiser and quantiser leave
behind) the table `MICROSOFT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
import onnx.defs

from tilewright.errors import ModelError
from tilewright.frontend.order import node_name

_KINDS = onnx.AttributeProto.AttributeType


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs (`optional`: positions that may be empty) and attributes (name -> kind, all optional)."""

    least: int
    most: int
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    optional: frozenset[int] = frozenset()


_WINDOW = {
    "auto_pad": "STRING", "channels_last": "INT", "kernel_shape": "INTS", "pads": "INTS", "strides": "INTS",
}  # fmt: skip
_ZEROS = frozenset({2, 4})  # zero points of (x, scale, zero?, scale, zero?)
_TRANSPOSED = ("transA", "transB", "transBatchA", "transBatchB")
_MASKED = {
    "num_heads": "INT", "scale": "FLOAT", "mask_filter_value": "FLOAT", "unidirectional": "INT"
}  # fmt: skip
_PACKED = {
    "qkv_hidden_sizes": "INTS", "do_rotary": "INT", "rotary_embedding_dim": "INT",
    "past_present_share_buffer": "INT",
}  # fmt: skip
_ROTARY = ("interleaved", "num_heads", "rotary_embedding_dim", "is_packed_batching")
_RECURRENT = {
    "activations": "STRINGS", "activation_alpha": "FLOATS", "activation_beta": "FLOATS", "clip": "FLOAT",
    "direction": "STRING", "hidden_size": "INT", "input_forget": "INT",
}  # fmt: skip
_BINARY = Signature(7, 8, {}, frozenset({2, 5, 7}))

#: Operators of com.microsoft that are imported, as ONNX Runtime's ContribOperators.md describes them.
MICROSOFT: Mapping[str, Signature] = {
    "Gelu": Signature(1, 1),
    "QuantizeLinear": Signature(2, 3, {"axis": "INT"}, frozenset({2})),
    "DequantizeLinear": Signature(2, 3, {"axis": "INT"}, frozenset({2})),
    "QLinearConv": Signature(8, 9, {**_WINDOW, "dilations": "INTS", "group": "INT"}, frozenset({8})),
    "MatMulNBits": Signature(
        3,
        6,
        {**dict.fromkeys(("K", "N", "bits", "block_size", "accuracy_level"), "INT")},
        frozenset({3, 4, 5}),
    ),
    "DynamicQuantizeMatMul": Signature(3, 5, {}, frozenset({3, 4})),
    "MatMulIntegerToFloat": Signature(4, 7, {}, frozenset({4, 5, 6})),
    "DynamicQuantizeLSTM": Signature(12, 12, _RECURRENT, frozenset({3, 4, 5, 6, 7})),
    "QGemm": Signature(6, 9, {"alpha": "FLOAT", "transA": "INT", "transB": "INT"}, frozenset({6, 7, 8})),
    "QLinearAdd": _BINARY,
    "QLinearMul": _BINARY,
    "QLinearAveragePool": Signature(
        4, 5, {**_WINDOW, "ceil_mode": "INT", "count_include_pad": "INT"}, _ZEROS
    ),
    "QLinearGlobalAveragePool": Signature(5, 5, {"channels_last": "INT"}),
    "QLinearSigmoid": Signature(4, 5, {}, _ZEROS),
    "QLinearLeakyRelu": Signature(4, 5, {"alpha": "FLOAT"}, _ZEROS),
    "QLinearSoftmax": Signature(5, 5, {"axis": "INT", "opset": "INT"}, _ZEROS),
    "QLinearConcat": Signature(5, 1 << 20, {"axis": "INT"}),
    "QLinearWhere": Signature(9, 9),
    "SkipLayerNormalization": Signature(3, 5, {"epsilon": "FLOAT"}, frozenset({3, 4})),
    "SkipSimplifiedLayerNormalization": Signature(3, 4, {"epsilon": "FLOAT"}, frozenset({3})),
    "FastGelu": Signature(1, 2, {}, frozenset({1})),
    "BiasGelu": Signature(2, 2),
    "QuickGelu": Signature(1, 1, {"alpha": "FLOAT"}),
    "FusedMatMul": Signature(2, 2, {"alpha": "FLOAT", **dict.fromkeys(_TRANSPOSED, "INT")}),
    "Attention": Signature(2, 7, {**_MASKED, **_PACKED}, frozenset({2, 3, 4, 5, 6})),
    "MultiHeadAttention": Signature(1, 10, _MASKED, frozenset(range(1, 10))),
    "GroupQueryAttention": Signature(
        7, 14,
        {
            "num_heads": "INT", "kv_num_heads": "INT", "do_rotary": "INT", "rotary_interleaved": "INT",
            "local_window_size": "INT", "scale": "FLOAT", "softcap": "FLOAT", "smooth_softmax": "INT",
        },
        frozenset({1, 2, 3, 4, *range(7, 14)}),
    ),
    "RotaryEmbedding": Signature(4, 4, {"scale": "FLOAT", **dict.fromkeys(_ROTARY, "INT")}),
}  # fmt: skip


def check_node(n: onnx.NodeProto, opset: int) -> None:
    """Raise `ModelError` for a wrong number of inputs, or a missing, unknown or mistyped attribute.

    Operators of domains other than ONNX's and com.microsoft, and unknown ones, are not checked.
    """
    if n.domain == "com.microsoft" and n.op_type in MICROSOFT:
        _check_microsoft(n, MICROSOFT[n.op_type])
    domain = "" if n.domain == "ai.onnx" else n.domain
    if not onnx.defs.has(n.op_type, domain):
        return
    try:
        schema = onnx.defs.get_schema(n.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return
    where = f"node `{node_name(n)}` ({n.op_type})"
    _check_inputs(n, schema, where)
    for a in n.attribute:
        declared = schema.attributes.get(a.name)
        if declared is None:
            raise ModelError(
                f"{where}: opset {opset} has no attribute `{a.name}`: remove it, or repair the "
                "opset of the model"
            )
        if a.ref_attr_name:
            continue
        kind, want = _KINDS.Name(a.type), str(declared.type).rpartition(".")[2]
        if kind != want:
            raise ModelError(
                f"{where}: attribute `{a.name}` is {kind}, but must be {want}: repair the model"
            )
    given = {a.name for a in n.attribute}
    for name, declared in schema.attributes.items():
        if declared.required and name not in given:
            raise ModelError(f"{where}: the attribute `{name}` is missing: repair the model")


def _check_microsoft(n: onnx.NodeProto, known: Signature) -> None:
    where = f"node `{node_name(n)}` ({n.domain}::{n.op_type})"
    if not known.least <= len(n.input) <= known.most:
        wanted = str(known.least) if known.least == known.most else f"{known.least} to {known.most}"
        raise ModelError(f"{where} has {len(n.input)} inputs, it takes {wanted}: repair the model")
    for i, value in enumerate(n.input):
        if not value and i not in known.optional:
            raise ModelError(f"{where}: input {i} is missing: repair the model")
    for a in n.attribute:
        kind, want = _KINDS.Name(a.type), known.attributes.get(a.name)
        if want is None:
            raise ModelError(
                f"{where}: the attribute `{a.name}` is not known: export the model for this version "
                "of the operator"
            )
        if kind != want and not a.ref_attr_name:
            raise ModelError(
                f"{where}: attribute `{a.name}` is {kind}, but must be {want}: repair the model"
            )
    if not any(n.output):
        raise ModelError(f"{where} has no outputs: repair the model")


def _check_inputs(n: onnx.NodeProto, schema: onnx.defs.OpSchema, where: str) -> None:
    count = len(n.input)
    if not schema.min_input <= count <= schema.max_input:
        most = schema.max_input
        wanted = (
            f"{schema.min_input} to {most}" if most < 1 << 30 else f"{schema.min_input} or more"
        )
        wanted = str(most) if most == schema.min_input else wanted
        raise ModelError(f"{where} has {count} inputs, it takes {wanted}: repair the model")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for value, declared in zip(n.input, schema.inputs, strict=False):
        if not value and declared.option == single:
            raise ModelError(f"{where}: the input `{declared.name}` is missing: repair the model")
    if not any(n.output):
        raise ModelError(f"{where} has no outputs: repair the model")
