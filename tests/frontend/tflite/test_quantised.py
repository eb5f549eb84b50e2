"""Operators over quantised tensors: bit for bit those of LiteRT's reference kernels, but for `steps`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import RNG, Case, H, Q, U, X, check, f, i8, ids, out
from tflite_models import T, const, single


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
                        # unsigned bytes are interpolated in float32, where ties are lost
                        steps=1 if t is U else 0,
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
    for scales, bias in ((per[:1], []), (per, [const(f(5))])):
        w = const(i8(5, 3, 3, 4), scale=scales, axis=0)
        shape = const(np.array([1, 12, 14, 5], np.int32))
        yield Case(
            "transpose_conv hybrid",
            single(
                "TRANSPOSE_CONV",
                [shape, w, X, *bias],
                [T("float32", (1, 12, 14, 5))],
                "TransposeConvOptions",
                strideH=2,
                strideW=2,
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


def wide() -> Iterator[Case]:
    """16-bit operands, byte weights, a bias of 64 bits."""
    per = (RNG.random(5) * 0.01 + 0.001).astype(np.float32)
    for scales, size in ((per, 4), (per[:1], 4), (per, 160)):
        x = T("int16", (1, 4, 5, size), scale=0.0003)
        bias = const(RNG.integers(-(2**20), 2**20, 5).astype(np.int64), scale=scales * x.scale)
        y = T("int16", (1, 4, 5, 5), scale=0.002)
        w = const(i8(5, 3, 3, size), scale=scales, axis=0)
        fields = {"strideH": 1, "strideW": 1, "fusedActivationFunction": 1}
        yield Case("conv i16", single("CONV_2D", [x, w, bias], [y], "Conv2DOptions", **fields))
    x = T("int16", (1, 4, 5, 5), scale=0.0003)
    bias = const(RNG.integers(-(2**20), 2**20, 5).astype(np.int64), scale=per * x.scale)
    w = const(i8(1, 3, 3, 5), scale=per, axis=3)
    options = "DepthwiseConv2DOptions"
    yield Case(
        "depthwise i16",
        single(
            "DEPTHWISE_CONV_2D", [x, w, bias], [x], options, strideH=1, strideW=1, depthMultiplier=1
        ),
    )
    rows, w = T("int16", (6, 8), scale=0.0003), const(i8(5, 8), scale=per[:1])
    bias = const(RNG.integers(-(2**20), 2**20, 5).astype(np.int64), scale=per[:1] * rows.scale)
    y = T("int16", (6, 5), scale=0.0005)
    yield Case(
        "fully_connected i16",
        single("FULLY_CONNECTED", [rows, w, bias], [y], "FullyConnectedOptions"),
    )


CASES = [*wide(), *quantised(), *hybrid()]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_operator(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_compiled(case: Case) -> None:
    check(case, compiled=True)
