"""Operators by their function bodies: ONNX defines many operators by a graph of simpler ones.

In: a node and the types of its inputs. Out: the function that the standard gives for it, attributes at
their defaults included; None if there is none.
Invariant: the body is one for the node's own version of the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx.defs

from tilewright.graph.ir import TensorType

_RAISED = (onnx.defs.SchemaError, RuntimeError, ValueError, TypeError)


def body_of(
    n: onnx.NodeProto, version: int, types: Sequence[TensorType | None]
) -> onnx.FunctionProto | None:
    """The function body of a node; `version` is that of its domain, `types` those of its inputs."""
    domain = "" if n.domain == "ai.onnx" else n.domain
    try:
        schema = onnx.defs.get_schema(n.op_type, version, domain)
        body = _body(schema, n, version, types)
    except _RAISED:
        return None
    if body is None or not body.node:
        return None
    stated = {a.name for a in body.attribute_proto}
    for name, declared in schema.attributes.items():
        value = declared.default_value
        if value.name and name not in stated:
            body.attribute_proto.add().CopyFrom(value)
    return body


def _body(
    schema: Any, n: onnx.NodeProto, version: int, types: Sequence[TensorType | None]
) -> onnx.FunctionProto | None:
    body = onnx.FunctionProto()
    plain = [v for v in schema.function_opset_versions if v <= version]
    if plain:
        body.ParseFromString(schema.get_function_with_opset_version(max(plain)))
        return body
    for v in sorted(schema.context_dependent_function_opset_versions, reverse=True):
        if v > version:
            continue
        given = [_type(t).SerializeToString() for t in types]
        text = schema.get_context_dependent_function_with_opset_version(
            v, n.SerializeToString(), given
        )
        if text:
            body.ParseFromString(text)
            return body
    return None


def _type(t: TensorType | None) -> onnx.TypeProto:
    if t is None:
        return onnx.TypeProto()
    code = onnx.helper.np_dtype_to_tensor_dtype(t.dtype.numpy)
    return onnx.helper.make_tensor_type_proto(code, t.shape)
