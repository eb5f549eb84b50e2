"""Small graphs and kernels to tune."""

from __future__ import annotations

import numpy as np

from tilewright.core.dtypes import F32
from tilewright.graph.ir import Attrs, Graph, Node, TensorType
from tilewright.loop.ir import Kernel
from tilewright.pipeline import build
from tilewright.registry import Operator
from tilewright.schedule.target import Target, load_target
from tilewright.tune.identity import target_hash
from tilewright.tune.library import Decision, Library

V3 = load_target("x86-64-v3")


class Asked(Library):
    """Remembers the kernels that the pipeline asks about."""

    def __init__(self, target: Target) -> None:
        super().__init__(target_hash(target))
        self.kernels: list[tuple[Operator | None, Kernel]] = []

    def decide(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision:
        self.kernels.append((op, kernel))
        return super().decide(op, kernel, target)


def kernels_of(graph: Graph, target: Target = V3) -> list[tuple[Operator | None, Kernel]]:
    asked = Asked(target)
    build(graph, target, library=asked, without={"variants"})
    return asked.kernels


def kernel_of(graph: Graph, op: str, target: Target = V3) -> tuple[Operator, Kernel]:
    """The unscheduled kernel of the first group anchored at `op`."""
    return next((o, k) for o, k in kernels_of(graph, target) if o is not None and o.name == op)


def conv_graph(size: int = 12, channels: int = 8, filters: int = 24, kernel: int = 3) -> Graph:
    """x -> conv2d -> relu -> y."""
    rng = np.random.default_rng(0)
    g = Graph("conv", ["x"], ["y"])
    g.types["x"] = TensorType(F32, (1, channels, size, size))
    w = rng.standard_normal((filters, channels, kernel, kernel)).astype(np.float32)
    b = rng.standard_normal(filters).astype(np.float32)
    pad = kernel // 2
    attrs: Attrs = {
        "strides": (1, 1), "pads": (pad, pad, pad, pad), "dilations": (1, 1), "group": 1,
    }  # fmt: skip
    inputs = ("x", g.add_constant("w", w), g.add_constant("b", b))
    g.types["c"] = g.types["y"] = TensorType(F32, (1, filters, size, size))
    g.nodes = [Node("conv", "conv2d", inputs, ("c",), attrs), Node("relu", "relu", ("c",), ("y",))]
    return g


def matmul_graph(m: int = 24, n: int = 48, k: int = 32) -> Graph:
    """x -> matmul -> softmax -> y."""
    rng = np.random.default_rng(0)
    g = Graph("mm", ["x"], ["y"])
    g.types["x"] = TensorType(F32, (m, k))
    w = g.add_constant("w", rng.standard_normal((k, n)).astype(np.float32))
    g.types["c"] = g.types["y"] = TensorType(F32, (m, n))
    g.nodes = [
        Node("mm", "matmul", ("x", w), ("c",)),
        Node("sm", "softmax", ("c",), ("y",), {"axis": 1}),
    ]
    return g


def depthwise_graph(size: int = 11, channels: int = 20) -> Graph:
    """x -> depthwise -> mean over the map -> y."""
    rng = np.random.default_rng(0)
    g = Graph("dw", ["x"], ["y"])
    g.types["x"] = TensorType(F32, (1, channels, size, size))
    w = g.add_constant("w", rng.standard_normal((channels, 1, 3, 3)).astype(np.float32))
    g.types["c"] = TensorType(F32, (1, channels, size, size))
    g.types["y"] = TensorType(F32, (1, channels, 1, 1))
    attrs: Attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    g.nodes = [
        Node("dw", "depthwise_conv2d", ("x", w), ("c",), attrs),
        Node("mean", "reduce_mean", ("c",), ("y",), {"axes": (2, 3), "keepdims": True}),
    ]
    return g


GRAPHS = {"conv": conv_graph, "matmul": matmul_graph, "depthwise": depthwise_graph}
