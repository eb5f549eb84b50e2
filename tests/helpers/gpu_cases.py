"""Kernels and operators that the tests of GPU code share: a tiled product, products on tensor cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.core.dtypes import I8
from tilewright.graph.ir import Array, Attrs, Graph, Node, TensorType, type_of
from tilewright.registry import operator
from tilewright.schedule.target import Target, load_target

SM80, TF32 = load_target("cuda-sm80"), load_target("cuda-sm80+tf32")
CONV: Attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
#: A tiled product: 32 x 32 outputs in four blocks, two operands in shared memory, 2 x 2 per thread.
PRODUCT = """\
kernel product(a: f32[32, 32], const b: f32[32, 32], out c: f32[32, 32])
  block mb in 2:
    block nb in 2:
      alloc acc: f32[8, 8, 2, 2] in register
      thread mt in 8:
        thread nt in 8:
          unroll mi in 2:
            unroll ni in 2:
              acc[mt, nt, mi, ni] = 0.0:f32
      for ko in 2:
        alloc a_shared: f32[16, 16] in shared
        for a_step in 4:
          thread a_at in 64:
            a_shared[a_step*4 + (a_at) // 16, (a_at) % 16] = a[mb*16 + a_step*4 + (a_at) // 16, ko*16 + (a_at) % 16]:f32
        alloc b_shared: f32[16, 16] in shared
        for b_step in 4:
          thread b_at in 64:
            b_shared[b_step*4 + (b_at) // 16, (b_at) % 16] = b[ko*16 + b_step*4 + (b_at) // 16, nb*16 + (b_at) % 16]:f32
        thread mt in 8:
          thread nt in 8:
            for k in 16:
              unroll mi in 2:
                unroll ni in 2:
                  acc[mt, nt, mi, ni] = fma(a_shared[mt*2 + mi, k]:f32, b_shared[k, nt*2 + ni]:f32, acc[mt, nt, mi, ni]:f32)
      thread mt in 8:
        thread nt in 8:
          unroll mi in 2:
            unroll ni in 2:
              c[mb*16 + mt*2 + mi, nb*16 + nt*2 + ni] = acc[mt, nt, mi, ni]:f32
"""


def random(dtype: Any, *shape: int) -> Array:
    rng = np.random.default_rng(len(shape) + sum(shape))
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, int(info.max) + 1, shape).astype(dtype)


def single(op: str, arrays: list[Array], attrs: Attrs, variable: int = 1) -> Graph:
    """A graph of one operator; the first `variable` arrays are inputs, the others constants."""
    g = Graph("g", [f"x{i}" for i in range(variable)], ["y"])
    g.types = {f"x{i}": type_of(a) for i, a in enumerate(arrays[:variable])}
    inputs = (*g.inputs, *(g.add_constant("w", a) for a in arrays[variable:]))
    (g.types["y"],) = operator(op).infer([g.types[i] for i in inputs], attrs)
    g.nodes = [Node(op, op, inputs, ("y",), attrs)]
    return g


def product(dtype: Any, m: int, k: int, n: int, weights: Any = None, variable: int = 1) -> Graph:
    return single("matmul", [random(dtype, m, k), random(weights or dtype, k, n)], {}, variable)


def conv(dtype: Any, ci: int, size: int, co: int, kernel: int, stride: int = 1) -> Graph:
    attrs: Attrs = {**CONV, "strides": (stride, stride), "pads": (kernel // 2,) * 4}
    if np.dtype(dtype).kind != "f":
        attrs = {**attrs, "pad_value": -3}
    arrays = [random(dtype, 1, ci, size, size), random(dtype, co, ci, kernel, kernel)]
    return single("conv2d", arrays, attrs)


def requantised() -> Graph:
    """An int8 convolution with bias and requantisation, as integer models have it."""
    rng = np.random.default_rng(0)
    g = Graph("layer", ["x0"], ["y"])
    g.types["x0"] = TensorType(I8, (1, 32, 14, 14))
    g.add_constant("w", rng.integers(-127, 128, (40, 32, 3, 3)).astype(np.int8))
    g.add_constant("b", rng.integers(-999, 999, 40).astype(np.int32))
    g.add_constant("m", rng.integers(1 << 20, 1 << 22, (40, 1, 1)).astype(np.int32))
    attrs: Attrs = {**CONV, "pad_value": -3}
    scale: Attrs = {"shift": 0, "zero_point": -3, "low": -128, "high": 127, "to": "i8"}
    g.nodes = [
        Node("conv", "conv2d", ("x0", "w", "b"), ("t",), attrs),
        Node("scale", "requantize", ("t", "m"), ("y",), scale),
    ]
    (g.types["t"],) = operator("conv2d").infer([g.types[i] for i in ("x0", "w", "b")], attrs)
    g.types["y"] = TensorType(I8, g.types["t"].shape)
    return g


#: name: (graph, target, error in units of the largest magnitude)
OPERATORS: dict[str, tuple[Graph, Target, float]] = {
    "matmul-f16": (product(np.float16, 64, 96, 128), SM80, 1e-3),
    "matmul-f16-ragged": (product(np.float16, 65, 72, 50), SM80, 1e-3),
    "matmul-f16-two-inputs": (product(np.float16, 33, 40, 24, variable=2), SM80, 1e-3),
    "matmul-i8": (product(np.int8, 32, 96, 64), SM80, 0),
    "matmul-u8-i8": (product(np.uint8, 32, 64, 64, np.int8), SM80, 0),
    "matmul-i8-u8": (product(np.int8, 17, 48, 19, np.uint8), SM80, 0),
    "matmul-tf32": (product(np.float32, 48, 40, 56), TF32, 2e-3),
    "conv-f16": (conv(np.float16, 32, 14, 40, 3), SM80, 1e-3),
    "conv-f16-1x1": (conv(np.float16, 24, 10, 16, 1), SM80, 1e-3),
    "conv-f16-stride": (conv(np.float16, 16, 13, 24, 3, 2), SM80, 1e-3),
    "conv-i8": (conv(np.int8, 32, 9, 24, 3), SM80, 0),
    "conv-i8-requantised": (requantised(), SM80, 0),
    "conv-tf32": (conv(np.float32, 16, 9, 24, 3), TF32, 2e-3),
}
