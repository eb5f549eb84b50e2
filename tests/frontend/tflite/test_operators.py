"""Every builtin operator, alone in a model: the same results as LiteRT's reference kernels.

Floats within 1e-5 of the largest magnitude; quantised tensors bit for bit where the format's specification
fixes the arithmetic, within one step where it does not (`STEPS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_models import Reference, T, const, samples, single

from tilewright.frontend.tflite.load import load_tflite
from tilewright.graph import interp
from tilewright.graph.passes import optimize

RNG = np.random.default_rng(7)


@dataclass
class Case:
    name: str
    model: bytes
    inputs: list[np.ndarray] | None = None
    steps: int = 0
    tolerance: float = 1e-5


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


X = T("float32", (1, 6, 7, 4))
Q = T("int8", (1, 6, 7, 4), scale=0.05, zero=-3)
U = T("uint8", (1, 6, 7, 4), scale=0.05, zero=121)
H = T("int16", (1, 6, 7, 4), scale=0.0003)


def out(t: T, *shape: int, **more: Any) -> T:
    return T(t.dtype, shape or t.shape, **{"scale": t.scale, "zero": t.zero, **more})


def floats() -> Iterator[Case]:
    def one(code: str, ins: list[T], outs: list[T], options: str = "", **fields: Any) -> Case:
        return Case(f"{code.lower()}", single(code, ins, outs, options, **fields))

    for code in ("ABS", "NEG", "EXP", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "LOGISTIC", "TANH", "RELU", "RELU6",
                 "RELU_N1_TO_1", "RELU_0_TO_1", "ELU", "HARD_SWISH", "SQUARE", "SIGN"):  # fmt: skip
        yield one(code, [X], [X])
    positive = [np.abs(f(1, 6, 7, 4)) + 0.1]
    for code in ("LOG", "SQRT", "RSQRT"):
        yield Case(code.lower(), single(code, [X], [X]), positive)
    for approximate in (False, True):
        yield one("GELU", [X], [X], "GeluOptions", approximate=approximate)
    yield one("LEAKY_RELU", [X], [X], "LeakyReluOptions", alpha=0.2)
    yield one("PRELU", [X, const(f(1, 1, 4))], [X])
    yield one("SOFTMAX", [X], [X], "SoftmaxOptions", beta=0.7)
    yield one("LOG_SOFTMAX", [X], [X], "LogSoftmaxOptions")
    for code, options in (
        ("ADD", "AddOptions"),
        ("SUB", "SubOptions"),
        ("MUL", "MulOptions"),
        ("DIV", "DivOptions"),
    ):
        for act in (0, 1, 3):
            yield one(code, [X, const(f(4) + 3)], [X], options, fusedActivationFunction=act)
        if code != "DIV":
            n = T("int32", (3, 5))
            yield one(code, [n, n], [n], options)
    for code in ("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD"):
        yield one(code, [X, X], [X])
    n = T("int32", (3, 5))
    divisor = const(np.array([3, -4, 2, 7, -1], np.int32))
    yield one("FLOOR_DIV", [n, divisor], [n])
    yield one("FLOOR_MOD", [n, divisor], [n])
    yield Case("pow", single("POW", [X, const(np.float32(1.7))], [X]), positive)
    for code in ("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"):
        yield one(code, [n, n], [T("bool", (3, 5))])
    b = T("bool", (3, 5))
    yield one("LOGICAL_AND", [b, b], [b])
    yield one("LOGICAL_OR", [b, b], [b])
    yield one("LOGICAL_NOT", [b], [b])
    yield one("SELECT_V2", [b, T("float32", (3, 5)), T("float32", (5,))], [T("float32", (3, 5))])
    yield one(
        "SELECT",
        [T("bool", (3,)), T("float32", (3, 5)), T("float32", (3, 5))],
        [T("float32", (3, 5))],
    )
    yield one("ADD_N", [X, X, X], [X])
    for kind in ("int32", "bool", "int8"):
        yield one("CAST", [X], [T(kind, X.shape)], "CastOptions")
    yield one("ONE_HOT", [T("int32", (3, 2)), const(np.int32(5)), const(np.float32(2)), const(np.float32(-1))],
              [T("float32", (3, 2, 5))], "OneHotOptions", axis=-1)  # fmt: skip


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


def movement() -> Iterator[Case]:
    def ints(*v: int) -> T:
        return const(np.array(v, np.int32))

    for kind in ("float32", "int8"):
        scale = {"scale": 0.1, "zero": 4} if kind == "int8" else {}
        x = T(kind, (2, 3, 4), **scale)

        def t(*shape: int) -> T:
            return T(kind, shape, **scale)  # noqa: B023

        yield Case(
            "reshape",
            single("RESHAPE", [x, ints(6, -1)], [t(6, 4)], "ReshapeOptions", newShape=[6, -1]),
        )
        yield Case("transpose", single("TRANSPOSE", [x, ints(2, 0, 1)], [t(4, 2, 3)]))
        yield Case("squeeze", single("SQUEEZE", [t(1, 3, 1)], [t(3)], "SqueezeOptions"))
        yield Case("expand_dims", single("EXPAND_DIMS", [x, ints(-2)], [t(2, 3, 1, 4)]))
        yield Case("slice", single("SLICE", [x, ints(1, 0, 1), ints(1, -1, 2)], [t(1, 3, 2)]))
        yield Case("strided_slice", single("STRIDED_SLICE", [x, ints(1, 2, 3), ints(2, 0, 0), ints(1, -1, -2)],
                   [t(2, 2)], "StridedSliceOptions", shrinkAxisMask=1))  # fmt: skip
        yield Case("strided_slice masks", single("STRIDED_SLICE", [x, ints(0, 0, 1), ints(0, 0, 3), ints(1, 1, 1)],
                   [t(2, 3, 2)], "StridedSliceOptions", beginMask=3, endMask=3))  # fmt: skip
        yield Case(
            "split",
            single("SPLIT", [ints(2), x], [t(2, 3, 2), t(2, 3, 2)], "SplitOptions", numSplits=2),
        )
        yield Case(
            "split_v",
            single(
                "SPLIT_V",
                [x, ints(1, -1), ints(1)],
                [t(2, 1, 4), t(2, 2, 4)],
                "SplitVOptions",
                numSplits=2,
            ),
        )
        yield Case(
            "pack", single("PACK", [x, x], [t(2, 2, 3, 4)], "PackOptions", axis=1, valuesCount=2)
        )
        yield Case("unpack", single("UNPACK", [x], [t(2, 4)] * 3, "UnpackOptions", axis=1, num=3))
        yield Case(
            "concatenation",
            single("CONCATENATION", [x, x], [t(2, 6, 4)], "ConcatenationOptions", axis=1),
        )
        yield Case("tile", single("TILE", [x, ints(1, 2, 1)], [t(2, 6, 4)]))
        yield Case("broadcast_to", single("BROADCAST_TO", [t(3, 1), ints(2, 3, 4)], [t(2, 3, 4)]))
        yield Case(
            "pad",
            single("PAD", [x, const(np.array([[1, 0], [0, 2], [1, 1]], np.int32))], [t(3, 5, 6)]),
        )
        yield Case(
            "mirror_pad",
            single(
                "MIRROR_PAD",
                [x, const(np.array([[1, 0], [0, 2], [1, 1]], np.int32))],
                [t(3, 5, 6)],
                "MirrorPadOptions",
                mode=0,
            ),
        )
        yield Case(
            "mirror_pad",
            single(
                "MIRROR_PAD",
                [x, const(np.array([[1, 0], [0, 2], [1, 1]], np.int32))],
                [t(3, 5, 6)],
                "MirrorPadOptions",
                mode=1,
            ),
        )
        yield Case("reverse", single("REVERSE_V2", [x, ints(1)], [t(2, 3, 4)]))
        yield Case(
            "gather", single("GATHER", [x, ints(2, 0, 1, 1)], [t(2, 4, 4)], "GatherOptions", axis=1)
        )
        yield Case(
            "gather_nd",
            single("GATHER_ND", [x, const(np.array([[1, 2], [0, 1]], np.int32))], [t(2, 4)]),
        )
        yield Case(
            "space_to_batch",
            single(
                "SPACE_TO_BATCH_ND",
                [t(1, 4, 5, 2), ints(2, 2), const(np.array([[0, 0], [1, 0]], np.int32))],
                [t(4, 2, 3, 2)],
            ),
        )
        yield Case(
            "batch_to_space",
            single(
                "BATCH_TO_SPACE_ND",
                [t(4, 2, 3, 2), ints(2, 2), const(np.array([[0, 0], [1, 0]], np.int32))],
                [t(1, 4, 5, 2)],
            ),
        )
    f32 = T("float32", (2, 3, 4))
    yield Case(
        "gather batches",
        single(
            "GATHER",
            [f32, const(np.array([[2, 0], [1, 1]], np.int32))],
            [T("float32", (2, 2, 4))],
            "GatherOptions",
            axis=1,
            batchDims=1,
        ),
    )
    yield Case(
        "padv2",
        single(
            "PADV2",
            [f32, const(np.array([[1, 0], [0, 2], [1, 1]], np.int32)), const(np.float32(2.5))],
            [T("float32", (3, 5, 6))],
        ),
    )
    yield Case(
        "embedding",
        single("EMBEDDING_LOOKUP", [T("int32", (2,)), const(f(20, 5))], [T("float32", (2, 5))]),
        [np.array([3, 7], np.int32)],
    )
    yield Case(
        "reverse_sequence",
        single(
            "REVERSE_SEQUENCE",
            [f32, const(np.array([2, 3], np.int32))],
            [f32],
            "ReverseSequenceOptions",
            seqDim=1,
            batchDim=0,
        ),
    )
    yield Case("zeros_like", single("ZEROS_LIKE", [f32], [f32]))
    yield Case(
        "matrix_diag", single("MATRIX_DIAG", [T("float32", (2, 3))], [T("float32", (2, 3, 3))])
    )
    yield Case(
        "matrix_set_diag",
        single(
            "MATRIX_SET_DIAG",
            [T("float32", (2, 3, 3)), T("float32", (2, 3))],
            [T("float32", (2, 3, 3))],
        ),
    )


def reductions() -> Iterator[Case]:
    for axes, keep, shape in (
        ([1, 2], True, (1, 1, 1, 4)),
        ([1, 2], False, (1, 4)),
        ([3], False, (1, 6, 7)),
        ([-1, 1], True, (1, 1, 7, 1)),
    ):
        at = const(np.array(axes, np.int32))
        for code in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"):
            yield Case(
                f"{code.lower()} {axes}",
                single(code, [X, at], [T("float32", shape)], "ReducerOptions", keepDims=keep),
            )
        b = T("bool", (1, 6, 7, 4))
        for code in ("REDUCE_ANY", "REDUCE_ALL"):
            yield Case(
                code.lower(),
                single(code, [b, at], [T("bool", shape)], "ReducerOptions", keepDims=keep),
            )
        for t in (Q, U):
            # LiteRT's own SUM of int8 gives nonsense where scales differ; that of uint8 is right
            for code in ("MEAN", "SUM") if t is U else ("MEAN",):
                big = 1 if code == "MEAN" else 6
                yield Case(
                    f"{code.lower()} {t.dtype} {axes}",
                    single(
                        code,
                        [t, at],
                        [out(t, *shape, scale=0.03 * big, zero=9)],
                        "ReducerOptions",
                        keepDims=keep,
                    ),
                )
            yield Case(
                f"mean same {t.dtype}",
                single("MEAN", [t, at], [out(t, *shape)], "ReducerOptions", keepDims=keep),
            )
            yield Case(
                "reduce_max",
                single("REDUCE_MAX", [t, at], [out(t, *shape)], "ReducerOptions", keepDims=keep),
            )
    for code, options in (("ARG_MAX", "ArgMaxOptions"), ("ARG_MIN", "ArgMinOptions")):
        for t in (X, Q):
            yield Case(
                code.lower(),
                single(
                    code, [t, const(np.int32(2))], [T("int32", (1, 6, 4))], options, outputType=2
                ),
            )
    yield Case(
        "cumsum",
        single(
            "CUMSUM",
            [T("float32", (2, 5, 3)), const(np.int32(1))],
            [T("float32", (2, 5, 3))],
            "CumsumOptions",
            exclusive=True,
            reverse=True,
        ),
    )
    yield Case(
        "segment_sum",
        single(
            "SEGMENT_SUM",
            [T("float32", (5, 3)), const(np.array([0, 0, 1, 2, 2], np.int32))],
            [T("float32", (3, 3))],
        ),
    )


def quantised() -> Iterator[Case]:
    def bias(n: int, scale: Any) -> T:
        return const(RNG.integers(-2000, 2000, n).astype(np.int32), scale=scale)

    per = (RNG.random(5) * 0.01 + 0.001).astype(np.float32)
    for stride, padding, act in ((1, 0, 0), (2, 0, 3), (2, 1, 1)):
        fields = {
            "strideH": stride,
            "strideW": stride,
            "padding": padding,
            "fusedActivationFunction": act,
        }
        h, w = (-(-n // stride) if padding == 0 else (n - 3) // stride + 1 for n in (6, 7))
        y = T("int8", (1, h, w, 5), scale=0.07, zero=-11)
        for scales in (per, per[:1]):
            yield Case(
                "conv i8",
                single(
                    "CONV_2D",
                    [
                        Q,
                        const(i8(5, 3, 3, 4), scale=scales, axis=0),
                        bias(5, scales * np.float32(0.05)),
                    ],
                    [y],
                    "Conv2DOptions",
                    **fields,
                ),
            )
        dw = (RNG.random(8) * 0.01 + 0.001).astype(np.float32)
        yield Case(
            "depthwise i8",
            single(
                "DEPTHWISE_CONV_2D",
                [Q, const(i8(1, 3, 3, 8), scale=dw, axis=3), bias(8, dw * np.float32(0.05))],
                [T("int8", (1, h, w, 8), scale=0.04, zero=5)],
                "DepthwiseConv2DOptions",
                depthMultiplier=2,
                **fields,
            ),
        )
        u = const(RNG.integers(0, 256, (5, 3, 3, 4)).astype(np.uint8), scale=0.004, zero=117)
        yield Case(
            "conv u8",
            single(
                "CONV_2D",
                [U, u, bias(5, np.float32(0.05) * np.float32(0.004))],
                [T("uint8", (1, h, w, 5), scale=0.07, zero=101)],
                "Conv2DOptions",
                **fields,
            ),
        )
        v = const(RNG.integers(0, 256, (1, 3, 3, 4)).astype(np.uint8), scale=0.004, zero=117)
        yield Case(
            "depthwise u8",
            single(
                "DEPTHWISE_CONV_2D",
                [U, v, bias(4, np.float32(0.05) * np.float32(0.004))],
                [T("uint8", (1, h, w, 4), scale=0.03, zero=101)],
                "DepthwiseConv2DOptions",
                depthMultiplier=1,
                **fields,
            ),
        )
        for t in (Q, U):
            for code in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
                yield Case(
                    f"{code.lower()} {t.dtype}",
                    single(
                        code,
                        [t],
                        [out(t, 1, h, w, 4)],
                        "Pool2DOptions",
                        filterHeight=3,
                        filterWidth=3,
                        **fields,
                    ),
                )
    rows = T("int8", (6, 8), scale=0.05, zero=-3)
    for scales in (per, per[:1]):
        yield Case(
            "fully_connected i8",
            single(
                "FULLY_CONNECTED",
                [rows, const(i8(5, 8), scale=scales), bias(5, scales * np.float32(0.05))],
                [T("int8", (6, 5), scale=0.03, zero=7)],
                "FullyConnectedOptions",
            ),
        )
    yield Case(
        "fully_connected u8",
        single(
            "FULLY_CONNECTED",
            [
                T("uint8", (6, 8), scale=0.05, zero=90),
                const(RNG.integers(0, 256, (5, 8)).astype(np.uint8), scale=0.004, zero=117),
                bias(5, np.float32(0.05) * np.float32(0.004)),
            ],
            [T("uint8", (6, 5), scale=0.03, zero=77)],
            "FullyConnectedOptions",
        ),
    )
    yield Case(
        "batch_matmul i8",
        single(
            "BATCH_MATMUL",
            [T("int8", (2, 3, 8), scale=0.05, zero=-3), T("int8", (2, 8, 5), scale=0.04, zero=6)],
            [T("int8", (2, 3, 5), scale=0.3, zero=2)],
            "BatchMatMulOptions",
        ),
    )
    for size, padding in (((12, 14), 0), ((13, 15), 1)):
        yield Case(
            "transpose_conv i8",
            single(
                "TRANSPOSE_CONV",
                [
                    const(np.array([1, *size, 5], np.int32)),
                    const(i8(5, 3, 3, 4), scale=per, axis=0),
                    Q,
                ],
                [T("int8", (1, *size, 5), scale=0.07, zero=-11)],
                "TransposeConvOptions",
                strideH=2,
                strideW=2,
                padding=padding,
            ),
        )
    for t in (Q, U, H):
        y = out(t, scale=t.scale * 1.3, zero=0 if t is H else 4)
        z = T(t.dtype, (4,), scale=t.scale * 0.6, zero=0 if t is H else 7)
        for act in (0, 1):
            yield Case(
                f"add {t.dtype}",
                single(
                    "ADD",
                    [t, z],
                    [y],
                    "AddOptions",
                    fusedActivationFunction=act,
                    potScaleInt16=False,
                ),
            )
            yield Case(
                f"sub {t.dtype}",
                single(
                    "SUB",
                    [t, z],
                    [y],
                    "SubOptions",
                    fusedActivationFunction=act,
                    potScaleInt16=False,
                ),
            )
            yield Case(
                f"mul {t.dtype}",
                single("MUL", [t, z], [y], "MulOptions", fusedActivationFunction=act),
            )
        yield Case(f"maximum {t.dtype}", single("MAXIMUM", [t, out(t, 4)], [t]))
        if t is not H:
            for code in ("RELU", "RELU6", "RELU_N1_TO_1"):
                yield Case(f"{code} {t.dtype}", single(code, [t], [y]))
            yield Case("leaky", single("LEAKY_RELU", [t], [y], "LeakyReluOptions", alpha=0.3))
            yield Case(
                "logistic",
                single("LOGISTIC", [t], [out(t, scale=1 / 256, zero=-128 if t is Q else 0)]),
            )
            yield Case(
                "tanh", single("TANH", [t], [out(t, scale=1 / 128, zero=0 if t is Q else 128)])
            )
            yield Case(
                "softmax",
                single(
                    "SOFTMAX",
                    [t],
                    [out(t, scale=1 / 256, zero=-128 if t is Q else 0)],
                    "SoftmaxOptions",
                    beta=1.0,
                ),
                steps=1,
            )
            yield Case("hard_swish", single("HARD_SWISH", [t], [y]))
            yield Case(
                "prelu",
                single(
                    "PRELU",
                    [t, const(RNG.integers(0, 100, (1, 1, 4)).astype(t.dtype), scale=0.01, zero=3)],
                    [y],
                ),
            )
            for corners, centers in ((False, False), (True, False), (False, True)):
                for size in ((12, 14), (4, 3), (9, 11)):
                    yield Case(
                        f"resize_bilinear {t.dtype} {corners} {centers} {size}",
                        single(
                            "RESIZE_BILINEAR",
                            [t, const(np.array(size, np.int32))],
                            [out(t, 1, *size, 4)],
                            "ResizeBilinearOptions",
                            alignCorners=corners,
                            halfPixelCenters=centers,
                        ),
                    )
            yield Case(
                "resize_nearest",
                single(
                    "RESIZE_NEAREST_NEIGHBOR",
                    [t, const(np.array((12, 14), np.int32))],
                    [out(t, 1, 12, 14, 4)],
                    "ResizeNearestNeighborOptions",
                ),
            )
    yield Case("elu", single("ELU", [Q], [out(Q, scale=0.06)]), steps=1)
    yield Case(
        "l2_normalization i8",
        single("L2_NORMALIZATION", [Q], [out(Q, scale=1 / 128, zero=0)], "L2NormOptions"),
        steps=1,
    )
    yield Case("quantize", single("QUANTIZE", [X], [Q]))
    yield Case("quantize i8 u8", single("QUANTIZE", [Q], [U]))
    yield Case("quantize i8 i8", single("QUANTIZE", [Q], [out(Q, scale=0.031, zero=9)]))
    yield Case("quantize i16 i8", single("QUANTIZE", [H], [Q]))
    yield Case("quantize i8 i16", single("QUANTIZE", [Q], [H]))
    for t in (Q, U, H):
        yield Case("dequantize", single("DEQUANTIZE", [t], [X]))


def hybrid() -> Iterator[Case]:
    """Float operands, byte weights."""
    per = (RNG.random(5) * 0.01 + 0.001).astype(np.float32)
    rows = T("float32", (6, 8))
    for scales in (per[:1], per):
        w = const(i8(5, 8), scale=scales, axis=0)
        for asymmetric in (False, True):
            if scales.size == 1 or not asymmetric:
                yield Case(
                    "fully_connected hybrid",
                    single(
                        "FULLY_CONNECTED",
                        [rows, w, const(f(5))],
                        [T("float32", (6, 5))],
                        "FullyConnectedOptions",
                        asymmetricQuantizeInputs=asymmetric,
                    ),
                )
        w = const(i8(5, 3, 3, 4), scale=scales, axis=0)
        yield Case(
            "conv hybrid",
            single(
                "CONV_2D",
                [X, w, const(f(5))],
                [T("float32", (1, 6, 7, 5))],
                "Conv2DOptions",
                strideH=1,
                strideW=1,
                padding=0,
            ),
        )
    w = const(i8(1, 3, 3, 4), scale=per[:4], axis=3)
    yield Case(
        "depthwise hybrid",
        single(
            "DEPTHWISE_CONV_2D",
            [X, w, const(f(4))],
            [X],
            "DepthwiseConv2DOptions",
            strideH=1,
            strideW=1,
            depthMultiplier=1,
        ),
    )


CASES = [*hybrid(), *floats(), *windows(), *movement(), *reductions(), *quantised()]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.name}" for i, c in enumerate(CASES)])
def test_operator(case: Case) -> None:
    inputs = case.inputs or samples(case.model)
    wanted = Reference(case.model)(*inputs)
    graph = optimize(load_tflite(case.model))
    values = interp.run(graph, dict(zip(graph.inputs, inputs, strict=True)))
    for name, b in zip(graph.outputs, wanted, strict=True):
        a = values[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        if b.dtype.kind == "f":
            assert off <= case.tolerance * np.abs(b).max(initial=0)
        else:
            assert off <= case.steps, f"{off} steps, {(a != b).mean():.2%} of the elements"
