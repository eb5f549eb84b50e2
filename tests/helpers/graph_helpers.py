"""Small ONNX models and graphs for tests: a builder for each, and random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.core.dtypes import F32, DType
from tilewright.graph.interp import run
from tilewright.graph.ir import Array, AttrValue, Graph, Node, TensorType
from tilewright.graph.passes import Pass
from tilewright.graph.verify import verify
from tilewright.registry import operator


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """An ONNX model of f32 inputs (their element type follows the name's prefix i_ or b_)."""
    kinds = {"i_": TensorProto.INT64, "b_": TensorProto.BOOL}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            helper.make_tensor_value_info(n, kinds.get(n[:2], TensorProto.FLOAT), list(s))
            for n, s in inputs.items()
        ],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


class Builder:
    """A graph, node by node, with inferred types."""

    def __init__(self, **inputs: Sequence[int]) -> None:
        self.graph = Graph("test", [], [])
        for name, shape in inputs.items():
            self.input(name, shape)

    def input(self, name: str, shape: Sequence[int], dtype: DType = F32) -> str:
        self.graph.inputs.append(name)
        self.graph.types[name] = TensorType(dtype, tuple(shape))
        return name

    def const(self, name: str, value: object) -> str:
        array = np.asarray(value)
        return self.graph.add_constant(
            name, array.astype(np.float32) if array.dtype == np.float64 else array
        )

    def node(self, op: str, name: str, *inputs: str, **attrs: AttrValue) -> str:
        g = self.graph
        types = operator(op).infer([g.types[i] if i else None for i in inputs], attrs)
        g.types[name] = types[0]
        g.nodes.append(Node(f"node {name}", op, inputs, (name,), attrs))
        return name

    def conv(
        self, name: str, x: str, w: str, *bias: str, pads: tuple[int, ...] = (0, 0, 0, 0)
    ) -> str:
        return self.node(
            "conv2d", name, x, w, *bias, strides=(1, 1), pads=pads, dilations=(1, 1), group=1
        )

    def done(self, *outputs: str) -> Graph:
        self.graph.outputs = list(outputs)
        verify(self.graph)
        return self.graph


def random_inputs(graph: Graph, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    out: dict[str, Array] = {}
    for name in graph.inputs:
        t = graph.types[name]
        out[name] = np.asarray(rng.standard_normal(t.shape) * 3).astype(t.dtype.numpy)
    return out


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def check_pass(transform: Pass, graph: Graph, tolerance: float = 0.0) -> Graph:
    """Run a pass: pure, valid result, same output names, same values within `tolerance`."""
    before = graph.clone()
    out = transform(graph)
    assert graph.nodes == before.nodes and graph.types == before.types, "the pass is not pure"
    verify(out)
    assert out.outputs == graph.outputs and out.inputs == graph.inputs
    inputs = random_inputs(graph)
    want, got = run(graph, inputs), run(out, inputs)
    for name, w in want.items():
        if tolerance == 0.0:
            np.testing.assert_array_equal(got[name], w)
        else:
            np.testing.assert_allclose(got[name], w, rtol=tolerance, atol=tolerance)
    return out
