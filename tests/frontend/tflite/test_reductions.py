"""Reductions over floats, bools and bytes, each alone in a model, against LiteRT."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import Case, Q, U, X, check, ids, out
from tflite_models import T, const, single


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


CASES = [*reductions()]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_operator(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_compiled(case: Case) -> None:
    check(case, compiled=True)
