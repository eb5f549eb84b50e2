"""Operators over floats and plain integers, each alone in a model, against LiteRT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the extra `litert` is not installed")

from tflite_cases import RNG, Case, X, check, f, ids
from tflite_models import T, const, single


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


def more() -> Iterator[Case]:
    yield Case(
        "topk",
        single(
            "TOPK_V2",
            [T("float32", (3, 9)), const(np.int32(4))],
            [T("float32", (3, 4)), T("int32", (3, 4))],
            "TopKV2Options",
        ),
    )
    yield Case(
        "scatter_nd",
        single(
            "SCATTER_ND",
            [
                const(np.array([[1], [3], [1]], np.int32)),
                T("float32", (3, 4)),
                const(np.array([5, 4], np.int32)),
            ],
            [T("float32", (5, 4))],
            "ScatterNdOptions",
        ),
    )
    yield Case(
        "dynamic_update_slice",
        single(
            "DYNAMIC_UPDATE_SLICE",
            [T("float32", (4, 5)), T("float32", (2, 3)), T("int32", (2,))],
            [T("float32", (4, 5))],
        ),
        [f(4, 5), f(2, 3), np.array([1, 9], np.int32)],
    )
    yield Case(
        "atan2", single("ATAN2", [T("float32", (20,)), T("float32", (20,))], [T("float32", (20,))])
    )
    boxes = np.sort(RNG.random((12, 2, 2)).astype(np.float32), axis=1).reshape(12, 4)
    given = [boxes, RNG.random(12).astype(np.float32)]
    thresholds = [const(np.int32(6)), const(np.float32(0.3)), const(np.float32(0.1))]
    b, s = T("float32", (12, 4)), T("float32", (12,))
    yield Case(
        "nms4",
        single(
            "NON_MAX_SUPPRESSION_V4",
            [b, s, *thresholds],
            [T("int32", (6,)), T("int32", ())],
            "NonMaxSuppressionV4Options",
        ),
        given,
    )
    yield Case(
        "nms5",
        single(
            "NON_MAX_SUPPRESSION_V5",
            [b, s, *thresholds, const(np.float32(0))],
            [T("int32", (6,)), T("float32", (6,)), T("int32", ())],
            "NonMaxSuppressionV5Options",
        ),
        given,
    )


CASES = [*floats(), *more()]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_operator(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_compiled(case: Case) -> None:
    check(case, compiled=True)
