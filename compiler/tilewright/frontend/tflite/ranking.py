"""Operators that rank, select and write by indices, and custom operators that models of the field use."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from tilewright.core.dtypes import I32, I64
from tilewright.frontend import limits
from tilewright.frontend.tflite.movement import part
from tilewright.frontend.tflite.node import Importers, TfliteNode, one


def _top_k(node: TfliteNode) -> Sequence[str]:
    """(x, k): values and indices of the k largest along the last dim."""
    t = node.type(0)
    k = node.need_ints(1, "the number of elements")[0]
    axis = t.rank - 1
    at = node.add("topk", node.value(0), axis=axis, k=k, largest=True)
    to = node.result(1).dtype if len(node.op.outputs) > 1 else None
    values = node.add("gather_elements", node.value(0), at, axis=axis)
    return [values, node.cast(at, to or I32)]


def _scatter_nd(node: TfliteNode) -> str:
    """(indices, updates, shape): updates to one place are added."""
    shape = limits.check_constant(node.need_ints(2, "the shape"), f"node `{node.name}`")
    zeros = node.constant(np.zeros(shape, node.type(1).dtype.numpy), "zeros")
    return node.add("scatter_nd", zeros, node.value(0), node.value(1), reduction="add")


def _update_slice(node: TfliteNode) -> str:
    """(x, update, where it begins): the update is moved inside of x."""
    x, update = node.type(0).shape, node.type(1).shape
    if len(x) != len(update) or any(u > n for u, n in zip(update, x, strict=True)):
        raise node.fail(f"an update {node.type(1)} does not fit {node.type(0)}: repair the model")
    if not update or 0 in update:
        return node.value(0)
    limits.check_constant((*update, len(x)), f"node `{node.name}`")
    grid = np.stack(np.meshgrid(*map(np.arange, update), indexing="ij"), axis=-1)
    room = np.subtract(x, update).astype(np.int64)
    start = node.cast(node.value(2), I64)
    start = node.add("max", start, node.constant(np.zeros(len(x), np.int64)))
    start = node.add("min", start, node.constant(room, "room"))
    at = node.add("add", node.constant(grid.astype(np.int64), "grid"), start)
    return node.add("scatter_nd", node.value(0), at, node.value(1), reduction="none")


def _non_max_suppression(node: TfliteNode) -> Sequence[str]:
    """(boxes [N, 4], scores [N], most, overlap, least score, sigma?): indices, scores where the version has
    them, and how many there are; the rest is 0."""
    count = node.type(0).shape[0]
    most = min(node.need_ints(2, "the number of boxes")[0], count)
    overlap, score = (float(node.need_const(i, "a threshold").reshape(-1)[0]) for i in (3, 4))
    soft = node.op.code == "NON_MAX_SUPPRESSION_V5"
    if soft and float(node.need_const(5, "sigma").reshape(-1)[0]):
        raise node.fail("a sigma other than 0 is not supported: use hard suppression")
    boxes = node.reshape(node.value(0), (1, count, 4))
    scores = node.reshape(node.value(1), (1, 1, count))
    found = node.add("nms", boxes, scores, most=most, iou=overlap, score=score, centered=False)
    rows = node.type_of(found).shape[0]
    at = node.reshape(part(node, found, 1, 2, 3), (rows,))
    real = node.add("ge", at, node.like(at, 0))
    indices = node.cast(node.add("max", at, node.like(at, 0)), I32)
    valid = node.add("reduce_sum", node.cast(real, I32), axes=(0,), keepdims=False)
    if not soft:
        return [indices, valid]
    picked = node.add("gather", node.value(1), indices, axis=0)
    return [indices, node.add("where", real, picked, node.like(picked, 0)), valid]


def _atan2(node: TfliteNode) -> str:
    """The angle of (x, y) from the arc tangent of y / x, by quadrants."""
    y, x = node.value(0), node.value(1)
    zero = node.like(x, 0)
    half = node.add("atan", node.add("div", y, x))
    up = node.add("ge", y, zero)
    turn = node.add("where", up, node.like(x, np.pi), node.like(x, -np.pi))
    angle = node.add("where", node.add("lt", x, zero), node.add("add", half, turn), half)
    origin = node.add("and", node.add("eq", x, zero), node.add("eq", y, zero))
    return node.add("where", origin, zero, angle)


def transpose_conv_bias(node: TfliteNode) -> str:
    """MediaPipe's Convolution2DTransposeBias (x, weights [O, KH, KW, C], bias); its options are padding
    (1 SAME, 2 VALID) and the strides along width and height."""
    if len(node.op.custom_data) < 12:
        raise node.fail("its options are too short: repair the model")
    padding, across, down = struct.unpack_from("<3i", node.op.custom_data)
    image, w = node.type(0).shape, node.type(1).shape
    if len(image) != 4 or len(w) != 4 or min(across, down) < 1 or padding not in (1, 2):
        raise node.fail(
            f"{node.type(0)} with weights {node.type(1)} does not fit: repair the model"
        )
    strides = (down, across)
    # SAME: as large as the image times the stride; the weights reach over by what is left
    over = [max(w[1 + d] - strides[d], 0) if padding == 1 else 0 for d in (0, 1)]
    short = [max(strides[d] - w[1 + d], 0) if padding == 1 else 0 for d in (0, 1)]
    pads = (over[0] // 2, over[1] // 2, over[0] - over[0] // 2, over[1] - over[1] // 2)
    filters = node.add("transpose", node.value(1), perm=(3, 0, 1, 2))
    inputs = [node.nchw(node.value(0)), filters, *([node.value(2)] if node.has(2) else [])]
    y = node.add(
        "conv_transpose2d", *inputs, strides=strides, pads=pads, dilations=(1, 1), group=1,
        output_padding=tuple(short),
    )  # fmt: skip
    return node.nhwc(y)


RANKING: Importers = {
    "TOPK_V2": _top_k,
    "SCATTER_ND": one(_scatter_nd),
    "DYNAMIC_UPDATE_SLICE": one(_update_slice),
    "NON_MAX_SUPPRESSION_V4": _non_max_suppression,
    "NON_MAX_SUPPRESSION_V5": _non_max_suppression,
    "ATAN2": one(_atan2),
    "RIGHT_SHIFT": one(lambda n: n.add("shr", n.value(0), n.value(1))),
}

#: Custom operators by name.
CUSTOM: Importers = {"Convolution2DTransposeBias": one(transpose_conv_bias)}
