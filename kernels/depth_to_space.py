"""Blocks of channels to blocks of pixels and back, as reshape-transpose-reshape in one index map.

depth_to_space  DCR: y[n, c, h*b+i, w*b+j] = x[n, (i*b+j)*C + c, h, w];  CRD: x[n, c*b*b + i*b+j, h, w]
space_to_depth  y[n, (i*b+j)*C + c, h, w] = x[n, c, h*b+i, w*b+j]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilewright.core.attributes import integer
from tilewright.core.index import Ix
from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Attrs, TensorType
from tilewright.graph.quantized import movement
from tilewright.loop.builder import KernelBuilder, Reader
from tilewright.loop.ir import Expr
from tilewright.registry import ImportNode, Operator, Sample


def _d2s_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    b = integer(attrs, "blocksize")
    if attrs["mode"] not in ("DCR", "CRD"):
        raise ModelError(
            f"`depth_to_space`: mode {attrs['mode']} is not DCR or CRD: repair the model"
        )
    if x.rank != 4 or b < 1 or x.shape[1] % (b * b):
        raise ModelError(
            f"`depth_to_space` of {x} with blocks of {b}: wants [N, C, H, W] with C a multiple of "
            f"{b * b}: repair the model"
        )
    n, c, h, w = x.shape
    return [TensorType(x.dtype, (n, c // (b * b), h * b, w * b))]


def _d2s_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, b = np.asarray(inputs[0]), integer(attrs, "blocksize")
    n, c, h, w = x.shape
    c //= b * b
    if attrs["mode"] == "DCR":
        y = x.reshape(n, b, b, c, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [np.ascontiguousarray(y.reshape(n, c, h * b, w * b))]


def _d2s_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    b = integer(attrs, "blocksize")
    n, c, h, w = index
    inner = (h % b) * b + w % b
    channel = inner * out.shape[1] + c if attrs["mode"] == "DCR" else c * (b * b) + inner
    return x[0](n, channel, h // b, w // b)


def _s2d_infer(types: Sequence[TensorType | None], attrs: Attrs) -> list[TensorType]:
    x = types[0]
    assert x is not None
    b = integer(attrs, "blocksize")
    if x.rank != 4 or b < 1 or x.shape[2] % b or x.shape[3] % b:
        raise ModelError(
            f"`space_to_depth` of {x} with blocks of {b}: wants [N, C, H, W] with H and W multiples "
            f"of {b}: repair the model"
        )
    n, c, h, w = x.shape
    return [TensorType(x.dtype, (n, c * b * b, h // b, w // b))]


def _s2d_reference(inputs: Sequence[Any], attrs: Attrs) -> list[Array]:
    x, b = np.asarray(inputs[0]), integer(attrs, "blocksize")
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [np.ascontiguousarray(y.reshape(n, c * b * b, h // b, w // b))]


def _s2d_compute(
    x: Sequence[Reader | None],
    index: tuple[Ix, ...],
    attrs: Attrs,
    out: TensorType,
    k: KernelBuilder,
) -> Expr:
    assert x[0] is not None
    b, channels = integer(attrs, "blocksize"), x[0].shape[1]
    n, c, h, w = index
    block = c // channels
    return x[0](n, c % channels, h * b + block // b, w * b + block % b)


def _import_d2s(node: ImportNode) -> Sequence[str]:
    attrs = {"blocksize": int(node.attr("blocksize")), "mode": str(node.attr("mode", "DCR"))}
    return node.add("depth_to_space", [node.inputs[0]], attrs)


def _import_s2d(node: ImportNode) -> Sequence[str]:
    """Mode CRD wants the pixels of a block next to each other, for each channel."""
    b, channels = int(node.attr("blocksize")), node.type(0).shape[1]
    y = node.add("space_to_depth", [node.inputs[0]], {"blocksize": b})
    if node.attr("mode", "DCR") == "DCR":
        return y
    shape = node.type_of(y[0]).shape
    y = node.add("reshape", y, {"shape": (shape[0], b * b, channels, *shape[2:])})
    y = node.add("transpose", y, {"perm": (0, 2, 1, 3, 4)})
    return node.add("reshape", y, {"shape": shape})


def _d2s_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for mode in ("DCR", "CRD"):
        for shape, b in (((1, 12, 2, 5), 2), ((2, 9, 1, 17), 3), ((1, 3, 4, 7), 1)):
            x = rng.standard_normal(shape).astype(np.float32)
            yield Sample((x,), {"blocksize": b, "mode": mode})
    x = rng.integers(0, 255, (1, 4, 3, 3)).astype(np.uint8)
    yield Sample((x,), {"blocksize": 2, "mode": "CRD"})


def _s2d_samples(rng: np.random.Generator) -> Iterator[Sample]:
    for shape, b in (((2, 3, 4, 6), 2), ((1, 1, 3, 51), 3), ((1, 2, 3, 7), 1)):
        yield Sample((rng.standard_normal(shape).astype(np.float32),), {"blocksize": b})


OPERATORS = [
    Operator(
        name="depth_to_space", trait="injective", infer=_d2s_infer, reference=_d2s_reference,
        attrs={"blocksize": int, "mode": str}, compute=_d2s_compute, samples=_d2s_samples, quantized=movement,
        onnx={"DepthToSpace": _import_d2s}, doc="channels become blocks of pixels",
    ),
    Operator(
        name="space_to_depth", trait="injective", infer=_s2d_infer, reference=_s2d_reference,
        attrs={"blocksize": int}, compute=_s2d_compute, samples=_s2d_samples, quantized=movement,
        onnx={"SpaceToDepth": _import_s2d}, doc="blocks of pixels become channels",
    ),
]  # fmt: skip
