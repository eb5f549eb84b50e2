"""Operators that move elements, over floats and bytes, each alone in a model, against LiteRT."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import Case, check, f, ids
from tflite_models import T, const, single


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


CASES = [*movement()]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_operator(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_compiled(case: Case) -> None:
    check(case, compiled=True)
