"""Whether a node is what the ONNX standard says: its inputs, and the types of its attributes.

In: a NodeProto and the opset. Out: nothing, or a `ModelError` that names the node.
Invariant: what passes has every required input and attribute, and attributes of the right type, so an
importer need not look.
"""

from __future__ import annotations

import onnx
import onnx.defs

from tilewright.errors import ModelError
from tilewright.frontend.order import node_name

_KINDS = onnx.AttributeProto.AttributeType


def check_node(n: onnx.NodeProto, opset: int) -> None:
    """Raise `ModelError` for a wrong number of inputs, or a missing, unknown or mistyped attribute.

    Operators that the standard does not have (other domains) are not checked.
    """
    if n.domain not in ("", "ai.onnx") or not onnx.defs.has(n.op_type):
        return
    try:
        schema = onnx.defs.get_schema(n.op_type, opset, "")
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
