"""ONNX models with symbolic dims, each a few nodes that once went different ways at different sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]


def model(
    nodes: Sequence[onnx.NodeProto], x: Dims, outputs: Sequence[str], weights: dict[str, Any]
) -> bytes:
    """A model with one float input `x`."""
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def _weights(*shape: int) -> Any:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 4).astype(np.float32)


def attention() -> bytes:
    """Rows and columns that both follow the size, sums along it, one matrix that is transposed."""
    n = helper.make_node
    return model(
        [
            n("MatMul", ["x", "w"], ["a"]), n("Add", ["a", "b"], ["h"]),
            n("Transpose", ["h"], ["t"], perm=[0, 2, 1]), n("MatMul", ["h", "t"], ["s"]),
            n("Softmax", ["s"], ["p"], axis=-1), n("MatMul", ["p", "h"], ["y"]),
            n("ReduceMean", ["y"], ["m"], axes=[1], keepdims=0),
        ],
        [1, "tokens", 24], ["y", "m"], {"w": _weights(24, 40), "b": _weights(40)},
    )  # fmt: skip


def positions() -> bytes:
    """A table of positions cut to the size, heads split and joined, a token put in front."""
    n = helper.make_node
    return model(
        [
            n("Shape", ["x"], ["shape"]), n("Gather", ["shape", "one"], ["tokens"], axis=0),
            n("Slice", ["table", "zero1", "tokens1", "zero1"], ["here"]),
            n("Unsqueeze", ["tokens", "zero1"], ["tokens1"]),
            n("Add", ["x", "here"], ["h"]), n("Concat", ["first", "h"], ["all"], axis=1),
            n("Reshape", ["all", "heads"], ["split"]),
            n("Transpose", ["split"], ["by_head"], perm=[0, 2, 1, 3]),
            n("Softmax", ["by_head"], ["q"], axis=2),
            n("Transpose", ["q"], ["back"], perm=[0, 2, 1, 3]),
            n("Reshape", ["back", "joined"], ["y"]),
            n("Concat", ["y", "first"], ["z"], axis=1),
        ],
        [1, "tokens", 16], ["y", "z"],
        {
            "table": _weights(40, 16), "first": _weights(1, 1, 16),
            "one": np.int64(1), "zero1": np.array([0]), "heads": np.array([0, -1, 4, 4]),
            "joined": np.array([0, -1, 16]),
        },
    )  # fmt: skip


def picture() -> bytes:
    """Strided and padded convolutions, pooling, enlargement, a skip connection, a mean over all pixels."""
    n = helper.make_node
    return model(
        [
            n("Conv", ["x", "w0", "b0"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            n("Relu", ["a"], ["r"]),
            n("Conv", ["r", "w1"], ["d"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], group=12),
            n("Conv", ["d", "w2"], ["e"], kernel_shape=[1, 1]),
            n("MaxPool", ["e"], ["p"], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
            n("Resize", ["p", "", "scales"], ["u"], mode="nearest"),
            n("Conv", ["u", "w3"], ["v"], kernel_shape=[1, 1]), n("Add", ["v", "r"], ["y"]),
            n("GlobalAveragePool", ["y"], ["g"]),
            n("Sigmoid", ["g"], ["s"]), n("Mul", ["y", "s"], ["z"]),
        ],
        [1, 3, "height", "width"], ["z", "g"],
        {
            "w0": _weights(12, 3, 3, 3), "b0": _weights(12), "w1": _weights(12, 1, 3, 3),
            "w2": _weights(20, 12, 1, 1), "w3": _weights(12, 20, 1, 1),
            "scales": np.array([1, 1, 2, 2], np.float32),
        },
    )  # fmt: skip


def rows() -> bytes:
    """A batch: every sample on its own."""
    n = helper.make_node
    return model(
        [
            n("Gemm", ["x", "w", "b"], ["h"], transB=1), n("Tanh", ["h"], ["t"]),
            n("ReduceMax", ["t"], ["m"], axes=[0], keepdims=1), n("Sub", ["t", "m"], ["y"]),
        ],
        ["batch", 33], ["y", "m"], {"w": _weights(17, 33), "b": _weights(17)},
    )  # fmt: skip


#: name -> (model, ranges of sizes)
CASES: dict[str, tuple[Callable[[], bytes], dict[str, str]]] = {
    "attention": (attention, {"tokens": "1..70"}),
    "positions": (positions, {"tokens": "1..40"}),
    "picture": (picture, {"height": "8..64:4", "width": "8..48:4"}),
    "rows": (rows, {"batch": "1..9"}),
}
