"""Convolutions, pools and matrix products over floats.

Images are channels last in the file and channels first in the graph: transposes stand between, which
`graph.passes.move_transposes` and the layout make vanish.
"""

from __future__ import annotations

from typing import Any

from tilewright.core.window import Window
from tilewright.frontend.tflite.node import Importers, TfliteNode, one

_SAME, _VALID = 0, 1


def window(node: TfliteNode, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Strides, dilations and pads over an image of `size` (height, width).

    SAME pads so that the output has ceil(size / stride) elements, the odd one at the end.
    """
    strides = (int(node.option("StrideH", 1)), int(node.option("StrideW", 1)))
    dilations = (int(node.option("DilationHFactor", 1)), int(node.option("DilationWFactor", 1)))
    pads = [0, 0, 0, 0]
    padding = int(node.option("Padding", _SAME))
    if padding not in (_SAME, _VALID):
        raise node.fail(f"padding {padding} is not SAME or VALID: repair the model")
    if min(*strides, *dilations, *kernel) < 1:
        raise node.fail("a stride, dilation or window is below 1: repair the model")
    for d in (0, 1) if padding == _SAME else ():
        reach = dilations[d] * (kernel[d] - 1) + 1
        total = max((-(-size[d] // strides[d]) - 1) * strides[d] + reach - size[d], 0)
        pads[d], pads[2 + d] = total // 2, total - total // 2
    return Window(kernel, strides, dilations, tuple(pads))


def attributes(w: Window) -> dict[str, Any]:
    return {"strides": w.strides, "pads": w.pads, "dilations": w.dilations}


def conv(node: TfliteNode, x: str, w: str, bias: str, **more: Any) -> str:
    """Convolution of an image [N, C, H, W] with weights [O, KH, KW, C / groups] of the file."""
    weights, image = node.type_of(w), node.type_of(x)
    if weights.rank != 4 or image.rank != 4:
        raise node.fail(
            f"convolution of {image} with {weights}: rank 4 is wanted, repair the model"
        )
    groups = image.shape[1] // max(weights.shape[3], 1)
    place = window(node, image.shape[2:], weights.shape[1:3])
    filters = node.add("transpose", w, perm=(0, 3, 1, 2))
    inputs = [x, filters, *([bias] if bias else [])]
    return node.add("conv2d", *inputs, **attributes(place), group=max(groups, 1), **more)


def depthwise(node: TfliteNode, x: str, w: str, bias: str, **more: Any) -> str:
    """Convolution per channel of [N, C, H, W] with weights [1, KH, KW, C * multiplier] of the file."""
    weights, image = node.type_of(w), node.type_of(x)
    if weights.rank != 4 or image.rank != 4 or weights.shape[0] != 1:
        raise node.fail(f"depthwise convolution of {image} with {weights} does not fit")
    channels, filters = image.shape[1], weights.shape[3]
    if channels == 0 or filters % channels:
        raise node.fail(f"{filters} filters for {channels} channels do not fit: repair the model")
    place = window(node, image.shape[2:], weights.shape[1:3])
    turned = node.add("transpose", w, perm=(3, 0, 1, 2))
    inputs = [x, turned, *([bias] if bias else [])]
    if filters == channels and channels > 1:
        return node.add("depthwise_conv2d", *inputs, **attributes(place), **more)
    return node.add("conv2d", *inputs, **attributes(place), group=channels, **more)


def _conv(node: TfliteNode) -> str:
    bias = node.inputs[2] if node.has(2) else ""
    y = conv(node, node.nchw(node.value(0)), node.value(1), bias)
    return node.activated(node.nhwc(y))


def _depthwise(node: TfliteNode) -> str:
    bias = node.inputs[2] if node.has(2) else ""
    y = depthwise(node, node.nchw(node.value(0)), node.value(1), bias)
    return node.activated(node.nhwc(y))


def transposed_window(
    node: TfliteNode, w: tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """(attributes of `conv_transpose2d`, shape [N, H, W, O] of the result); `w` is [O, KH, KW, C]."""
    size = node.need_ints(0, "the shape of the result")
    image = node.type(2).shape
    strides = (int(node.option("StrideH", 1)), int(node.option("StrideW", 1)))
    if len(size) != 4 or len(image) != 4 or min(strides) < 1:
        raise node.fail(
            f"a result of shape {size} from {node.type(2)} does not fit: repair the model"
        )
    pads, extra = [0, 0, 0, 0], [0, 0]
    for d in (0, 1):
        if int(node.option("Padding", _SAME)) == _SAME:
            steps = -(-size[1 + d] // strides[d]) - 1
            pads[d] = max(steps * strides[d] + w[1 + d] - size[1 + d], 0) // 2
        rest = (image[1 + d] - 1) * strides[d] + w[1 + d] - size[1 + d] - pads[d]
        pads[2 + d], extra[d] = max(rest, 0), max(-rest, 0)
    attrs = {
        "strides": strides, "pads": tuple(pads), "dilations": (1, 1), "group": 1,
        "output_padding": tuple(extra),
    }  # fmt: skip
    return attrs, tuple(size)


def _transpose_conv(node: TfliteNode) -> str:
    """(shape of the result, weights [O, KH, KW, C], image, bias?)"""
    weights = node.type(1)
    if weights.rank != 4:
        raise node.fail(f"weights {weights} are not of rank 4: repair the model")
    attrs, _ = transposed_window(node, weights.shape)
    filters = node.add("transpose", node.value(1), perm=(3, 0, 1, 2))
    inputs = [node.nchw(node.value(2)), filters, *([node.value(3)] if node.has(3) else [])]
    return node.activated(node.nhwc(node.add("conv_transpose2d", *inputs, **attrs)))


def rows(node: TfliteNode, depth: int) -> tuple[str, tuple[int, ...]]:
    """Input 0 of FULLY_CONNECTED as [M, depth], and the leading dims of the result."""
    t = node.type(0)
    if depth < 1 or t.size % depth:
        raise node.fail(f"{t} cannot be rows of {depth} elements: repair the model")
    flat = node.reshape(node.value(0), (t.size // depth, depth))
    if node.option("KeepNumDims", False):
        if not t.rank or t.shape[-1] != depth:
            raise node.fail(f"the last dim of {t} is not {depth}: repair the model")
        return flat, t.shape[:-1]
    return flat, (t.size // depth,)


def _fully_connected(node: TfliteNode) -> str:
    if int(node.option("WeightsFormat", 0)):
        raise node.fail("shuffled weights are not supported: convert the model again")
    w = node.type(1)
    if w.rank != 2:
        raise node.fail(f"weights {w} are not a matrix: repair the model")
    flat, lead = rows(node, w.shape[1])
    inputs = [flat, node.add("transpose", node.value(1), perm=(1, 0))]
    if node.has(2):
        inputs.append(node.reshape(node.value(2), (w.shape[0],)))
    y = node.add("matmul", *inputs)
    return node.activated(node.reshape(y, (*lead, w.shape[0])))


def swapped(node: TfliteNode, value: str, swap: bool) -> str:
    """The matrices of `value` transposed."""
    rank = node.type_of(value).rank
    if rank < 2:
        raise node.fail(f"{node.type_of(value)} is not a matrix: repair the model")
    perm = (*range(rank - 2), rank - 1, rank - 2)
    return node.add("transpose", value, perm=perm) if swap else value


def _batch_matmul(node: TfliteNode) -> str:
    a = swapped(node, node.value(0), bool(node.option("AdjX", False)))
    b = swapped(node, node.value(1), bool(node.option("AdjY", False)))
    return node.add("matmul", a, b)


def pool_window(node: TfliteNode) -> dict[str, Any]:
    kernel = (int(node.option("FilterHeight", 1)), int(node.option("FilterWidth", 1)))
    t = node.type(0)
    if t.rank != 4:
        raise node.fail(f"pooling of {t}: an image [N, H, W, C] is wanted, repair the model")
    return {"kernel": kernel, **attributes(window(node, t.shape[1:3], kernel))}


def max_pool(node: TfliteNode) -> str:
    return node.nhwc(node.add("max_pool2d", node.nchw(node.value(0)), **pool_window(node)))


def average_pool(node: TfliteNode, x: str) -> str:
    """Means of [N, H, W, C] that do not count the border."""
    attrs = {**pool_window(node), "count_include_pad": False}
    if attrs["kernel"] == node.type_of(x).shape[1:3] and not any(attrs["pads"]):
        return node.add("reduce_mean", x, axes=(1, 2), keepdims=True)
    return node.nhwc(node.add("avg_pool2d", node.nchw(x), **attrs))


def _l2_pool(node: TfliteNode) -> str:
    """Square root of the mean of squares."""
    square = node.add("mul", node.value(0), node.value(0))
    return node.activated(node.add("sqrt", average_pool(node, square)))


def _local_response(node: TfliteNode) -> str:
    """x / (bias + alpha * sum of squares)^beta over channels c - radius .. c + radius - 1.

    The kernels of the format leave the last channel of the window out; `lrn` over an even number of
    channels has the longer half behind, so the channels go backwards.
    """
    size = 2 * int(node.option("Radius", 5))
    alpha = float(node.option("Alpha", 1.0)) * size
    attrs = {
        "size": max(size, 1), "alpha": alpha, "beta": float(node.option("Beta", 0.5)),
        "bias": float(node.option("Bias", 1.0)),
    }  # fmt: skip
    shape = node.type_of(node.nchw(node.value(0))).shape
    turn: dict[str, Any] = {
        "starts": (0, shape[1] - 1, 0, 0), "ends": (shape[0], -1, *shape[2:]), "steps": (1, -1, 1, 1)
    }  # fmt: skip
    turned = node.add("slice", node.nchw(node.value(0)), **turn)
    return node.nhwc(node.add("slice", node.add("lrn", turned, **attrs), **turn))


def resize(mode: str, to: str = "") -> Any:
    """Importer of a resampling; the result has another type with `to`."""

    def importer(node: TfliteNode) -> str:
        size = node.need_ints(1, "the size of the result")
        x = node.nchw(node.value(0))
        n, c, h, w = node.type_of(x).shape
        if len(size) != 2 or min(size) < 1 or min(h, w) < 1:
            raise node.fail(f"resizing {node.type(0)} to {size} is not possible: repair the model")
        corners = bool(node.option("AlignCorners", False))
        centers = bool(node.option("HalfPixelCenters", False))
        coord = "align_corners" if corners else "half_pixel" if centers else "asymmetric"
        rounding = "round_prefer_ceil" if corners else "floor"
        if mode == "nearest" and centers and not corners:
            coord = "tf_half_pixel_for_nn"
        attrs = {
            "sizes": (n, c, *size), "scales": (1.0, 1.0, size[0] / h, size[1] / w), "mode": mode,
            "coord": coord, "nearest_mode": rounding, "cubic_a": -0.75, "exclude_outside": False,
            **({"to": to} if to else {}),
        }  # fmt: skip
        return node.nhwc(node.add("resize", x, **attrs))

    return importer


def depth_to_space(node: TfliteNode) -> str:
    block = int(node.option("BlockSize", 0))
    x = node.nchw(node.value(0))
    return node.nhwc(node.add("depth_to_space", x, blocksize=block, mode="DCR"))


def space_to_depth(node: TfliteNode) -> str:
    block = int(node.option("BlockSize", 0))
    return node.nhwc(node.add("space_to_depth", node.nchw(node.value(0)), blocksize=block))


FLOAT: Importers = {
    "CONV_2D": one(_conv),
    "DEPTHWISE_CONV_2D": one(_depthwise),
    "TRANSPOSE_CONV": one(_transpose_conv),
    "FULLY_CONNECTED": one(_fully_connected),
    "BATCH_MATMUL": one(_batch_matmul),
    "MAX_POOL_2D": one(lambda n: n.activated(max_pool(n))),
    "AVERAGE_POOL_2D": one(lambda n: n.activated(average_pool(n, n.value(0)))),
    "L2_POOL_2D": one(_l2_pool),
    "LOCAL_RESPONSE_NORMALIZATION": one(_local_response),
    "RESIZE_BILINEAR": one(resize("linear")),
    "RESIZE_NEAREST_NEIGHBOR": one(resize("nearest")),
    "DEPTH_TO_SPACE": one(depth_to_space),
    "SPACE_TO_DEPTH": one(space_to_depth),
}
