"""ONNX operators whose results are constants: matrices that depend on shapes and known numbers alone.

In: an `ImportNode`. Out: value names. Invariant: none of these adds a node to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.core.dtypes import ONNX_TYPES, DType
from tilewright.frontend import limits
from tilewright.graph.ir import Array
from tilewright.registry import ImportNode


def _type(node: ImportNode, name: str, default: DType) -> DType:
    code = node.attr(name)
    if code is None:
        return default
    if int(code) not in ONNX_TYPES:
        raise node.fail(f"the ONNX element type {code} is not supported: use float32")
    return ONNX_TYPES[int(code)]


def eye_like(node: ImportNode) -> Sequence[str]:
    """1 on the k-th diagonal of a matrix of the input's shape."""
    t = node.type(0)
    if t.rank != 2:
        raise node.fail(f"EyeLike of {t}: a matrix is wanted, repair the model")
    limits.check_constant(t.shape, f"node `{node.name}`")
    number = _type(node, "dtype", t.dtype).numpy
    return [
        node.constant(np.eye(t.shape[0], t.shape[1], int(node.attr("k", 0))).astype(number), "eye")
    ]


def mel_weights(node: ImportNode) -> Sequence[str]:
    """Triangular filters that turn the bins of a spectrum into bands of the mel scale."""
    names = (
        "number of bands",
        "length of the transform",
        "sample rate",
        "lower edge",
        "upper edge",
    )
    numbers = [node.need_const(i, f"the {n}").reshape(-1)[0].item() for i, n in enumerate(names)]
    bands, length, rate, low, high = numbers
    bins = int(length) // 2 + 1
    if bands < 1 or length < 1 or rate <= 0 or not 0 <= low <= high:
        raise node.fail(f"{names} of {numbers} make no filters: repair the model")
    limits.check_constant((bins, int(bands)), f"node `{node.name}`")
    first, last = (2595 * np.log10(1 + edge / 700) for edge in (low, high))
    mel = np.linspace(first, last, int(bands) + 3)[:-1]
    edges = np.floor((length + 1) * (700 * (10 ** (mel / 2595) - 1)) / rate).astype(np.int64)
    if edges.max() >= bins:
        raise node.fail(
            f"the upper edge {high} lies above half of the sample rate {rate}: repair the model"
        )
    out = _filters(edges, bins)
    return [node.constant(out.astype(_type(node, "output_datatype", ONNX_TYPES[1]).numpy), "mel")]


def _filters(edges: Array, bins: int) -> Array:
    """Column i rises from edge i to edge i + 1 and falls to edge i + 2."""
    at = np.arange(bins)[:, None]
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.where((at >= left) & (at <= peak), (at - left) / (peak - left), 0.0)
        down = np.where((at >= peak) & (at < right), (right - at) / (right - peak), 0.0)
    up = np.where((peak == left) & (at == peak), 1.0, up)
    return np.where((at >= peak) & (right > peak) & (at < right), down, up)


CONSTANTS: dict[str, Callable[[ImportNode], Sequence[str]]] = {
    "EyeLike": eye_like,
    "MelWeightMatrix": mel_weights,
}
