"""com.microsoft operators of fused transformers, compiled, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import tilewright
from tilewright.graph.ir import Array

RNG = np.random.default_rng(5)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def one_node(
    op: str, arrays: list[Array | None], made: list[str], attrs: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node, and its inputs."""
    given = {f"i{k}": a for k, a in enumerate(arrays) if a is not None}
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    node = helper.make_node(op, names, made, name="n", domain="com.microsoft", **attrs)
    kinds = helper.np_dtype_to_tensor_dtype
    infos = [helper.make_tensor_value_info(n, kinds(a.dtype), a.shape) for n, a in given.items()]
    outs = [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in made if o]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", infos, outs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), given


def agree(
    op: str,
    arrays: list[Array | None],
    outputs: int = 1,
    names: list[str] | None = None,
    **attrs: Any,
) -> None:
    """Our results are ONNX Runtime's."""
    model, given = one_node(op, arrays, names or [f"o{k}" for k in range(outputs)], attrs)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    want = session.run(None, given)
    got = tilewright.compile(model)(*given.values())
    for a, b in zip(got if isinstance(got, list | tuple) else [got], want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_normalisation_and_activations() -> None:
    x, skip = f(2, 3, 16), f(2, 3, 16)
    agree("SkipLayerNormalization", [x, skip, f(16), f(16), f(16)], epsilon=1e-4)
    agree("SkipLayerNormalization", [x, skip, f(16), f(16)], names=["y", "", "", "sum"])
    agree("SkipSimplifiedLayerNormalization", [x, skip, f(16)], names=["y", "", "", "sum"])
    agree("FastGelu", [x, f(16)])
    agree("BiasGelu", [x, f(16)])
    agree("QuickGelu", [x], alpha=1.5)
    agree("FusedMatMul", [f(2, 5, 3), f(2, 4, 5)], transA=1, transB=1, alpha=0.5)


@pytest.mark.parametrize("mask", [None, "keys", "lengths"])
def test_attention(mask: str | None) -> None:
    given = {None: None, "keys": np.array([[1, 1, 0, 1], [1, 0, 0, 1]], np.int32),
             "lengths": np.array([3, 2], np.int32)}[mask]  # fmt: skip
    agree("Attention", [f(2, 4, 8), f(8, 24), f(24), given], num_heads=2)
    if mask is None:
        agree("Attention", [f(2, 4, 8), f(8, 24), f(24)], num_heads=2, unidirectional=1)
        past = f(2, 2, 2, 3, 4)
        agree(
            "Attention", [f(2, 4, 8), f(8, 24), f(24), None, past], 2, num_heads=2, unidirectional=1
        )
        agree("Attention", [f(1, 4, 8), f(8, 28), f(28)], num_heads=2, qkv_hidden_sizes=[8, 8, 12])


def test_multi_head_attention() -> None:
    q, k, v = f(2, 3, 8), f(2, 5, 8), f(2, 5, 8)
    agree("MultiHeadAttention", [q, k, v], num_heads=2)
    agree("MultiHeadAttention", [q, k, v, f(24)], num_heads=2, scale=0.3)
    mask = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 0]], np.int32)
    agree("MultiHeadAttention", [q, k, v, f(24), mask, f(1, 2, 3, 5)], num_heads=2)
    agree("MultiHeadAttention", [q, f(2, 2, 5, 4), f(2, 2, 5, 4)], num_heads=2)
    past = [f(2, 2, 4, 4), f(2, 2, 4, 4)]
    agree("MultiHeadAttention", [q, q, q, None, None, None, *past], 3, num_heads=2)


def test_packed_heads_are_those_of_separate_tensors() -> None:
    """ONNX Runtime has packed heads on GPUs only."""
    x = f(2, 3, 2, 3, 4)
    q, k, v = (np.ascontiguousarray(x[:, :, :, i]).reshape(2, 3, 8) for i in range(3))
    forms: list[list[Array | None]] = [[q, k, v], [x], [q, np.ascontiguousarray(x[:, :, :, 1:])]]
    results = []
    for arrays in forms:
        model, given = one_node("MultiHeadAttention", arrays, ["y"], {"num_heads": 2})
        results.append(np.asarray(tilewright.compile(model)(*given.values())))
    for other in results[1:]:
        np.testing.assert_allclose(other.reshape(2, 3, 8), results[0].reshape(2, 3, 8), rtol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    cos, sin = f(10, 4), f(10, 4)
    at = np.array([[0, 1, 2], [4, 7, 9]], np.int64)
    agree("RotaryEmbedding", [f(2, 3, 16), at, cos, sin], interleaved=interleaved)
    agree("RotaryEmbedding", [f(2, 2, 3, 8), np.array([3]), cos, sin], interleaved=interleaved)
