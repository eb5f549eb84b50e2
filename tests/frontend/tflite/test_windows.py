"""Convolutions, pools, products and resampling over floats, each alone in a model, against LiteRT."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import Case, X, check, f, ids
from tflite_models import T, const, single


def windows() -> Iterator[Case]:
    for stride, dilation, padding, act in ((1, 1, 0, 0), (2, 1, 0, 3), (1, 2, 0, 1), (2, 1, 1, 0)):
        fields = {"strideH": stride, "strideW": stride, "dilationHFactor": dilation, "dilationWFactor": dilation,
                  "padding": padding, "fusedActivationFunction": act}  # fmt: skip
        h, w = (-(-n // stride) if padding == 0 else (n - 3) // stride + 1 for n in (6, 7))
        yield Case("conv", single("CONV_2D", [X, const(f(5, 3, 3, 4)), const(f(5))], [T("float32", (1, h, w, 5))],
                                  "Conv2DOptions", **fields))  # fmt: skip
        yield Case("grouped conv", single("CONV_2D", [X, const(f(6, 3, 3, 2)), const(f(6))],
                                          [T("float32", (1, h, w, 6))], "Conv2DOptions", **fields))  # fmt: skip
        for m in (1, 3):
            yield Case("depthwise", single("DEPTHWISE_CONV_2D", [X, const(f(1, 3, 3, 4 * m)), const(f(4 * m))],
                                           [T("float32", (1, h, w, 4 * m))], "DepthwiseConv2DOptions",
                                           depthMultiplier=m, **fields))  # fmt: skip
        if dilation == 1:
            pool = {k: v for k, v in fields.items() if not k.startswith("dil")}
            for code in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
                yield Case(code.lower(), single(code, [X], [T("float32", (1, h, w, 4))], "Pool2DOptions",
                                                filterHeight=3, filterWidth=3, **pool))  # fmt: skip
    for padding, size in ((0, (12, 14)), (1, (13, 15))):
        yield Case("transpose_conv", single("TRANSPOSE_CONV", [const(np.array([1, *size, 5], np.int32)),
                   const(f(5, 3, 3, 4)), X], [T("float32", (1, *size, 5))], "TransposeConvOptions", strideH=2,
                   strideW=2, padding=padding))  # fmt: skip
    for keep in (False, True):
        shape = (3, 2, 5) if keep else (6, 5)
        yield Case("fully_connected", single("FULLY_CONNECTED", [T("float32", (3, 2, 8)), const(f(5, 8)), const(f(5))],
                   [T("float32", shape)], "FullyConnectedOptions", keepNumDims=keep))  # fmt: skip
    yield Case("batch_matmul", single("BATCH_MATMUL", [T("float32", (2, 3, 8)), T("float32", (2, 5, 8))],
               [T("float32", (2, 3, 5))], "BatchMatMulOptions", adjY=True))  # fmt: skip
    for corners, centers in ((False, False), (True, False), (False, True)):
        for code, options in (("RESIZE_BILINEAR", "ResizeBilinearOptions"),
                              ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")):  # fmt: skip
            for size in ((12, 14), (4, 3), (9, 11)):
                yield Case(f"{code.lower()} {corners} {centers} {size}", single(code, [X, const(np.array(size, np.int32))],
                           [T("float32", (1, *size, 4))], options, alignCorners=corners, halfPixelCenters=centers))  # fmt: skip
    yield Case("lrn", single("LOCAL_RESPONSE_NORMALIZATION", [X], [X], "LocalResponseNormalizationOptions", radius=2,
               bias=1.5, alpha=0.3, beta=0.6))  # fmt: skip
    yield Case("l2_normalization", single("L2_NORMALIZATION", [X], [X], "L2NormOptions"))
    yield Case("space_to_depth", single("SPACE_TO_DEPTH", [T("float32", (1, 4, 6, 3))], [T("float32", (1, 2, 3, 12))],
               "SpaceToDepthOptions", blockSize=2))  # fmt: skip
    yield Case("depth_to_space", single("DEPTH_TO_SPACE", [T("float32", (1, 2, 3, 12))], [T("float32", (1, 4, 6, 3))],
               "DepthToSpaceOptions", blockSize=2))  # fmt: skip


CASES = [*windows()]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_operator(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_compiled(case: Case) -> None:
    check(case, compiled=True)
