"""Elementwise operators: inferred types, reference, loop nest, compiled code, importers, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.dtypes import ALL, dtype
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.ir import TensorType, type_of
from tilewright.registry import Sample, operator, operators

FILES = ("unary", "binary", "activation", "where", "cast")
NAMES = [n for n, op in operators().items() if op.infer.__module__.rpartition(".")[2] in FILES]


def _samples(name: str) -> list[Sample]:
    make = operator(name).samples
    assert make is not None
    return list(make(np.random.default_rng(1)))


CASES = [(name, i) for name in NAMES for i in range(len(_samples(name)))]


def _close(got: Any, want: Any) -> None:
    """Within a few roundings; integers and bools exactly."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    rtol = 1e-3 if want.dtype == np.float16 else 2e-5
    np.testing.assert_allclose(got, want, rtol=rtol, atol=3e-6)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_inferred_type_is_the_reference_s(name: str, case: int, reference: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    types = [None if a is None else type_of(a) for a in sample.inputs]
    assert op.infer(types, sample.attrs) == [type_of(a) for a in reference(op, sample)]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_lowering_is_the_reference(name: str, case: int, reference: Any, interpret: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), interpret(op, sample)
    _close(got, want)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_compiled_code_is_the_reference(
    name: str, case: int, reference: Any, compile_and_run: Any
) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), compile_and_run(op, sample, True)
    _close(got, want)


@pytest.mark.parametrize("base", [0, 2])
def test_large_integer_exponents(base: int, reference: Any, compile_and_run: Any) -> None:
    sample = Sample((np.array([base], np.uint8), np.array([64], np.uint8)))
    (want,) = reference(operator("pow"), sample)
    _close(compile_and_run(operator("pow"), sample, False)[0], want)


@pytest.mark.parametrize("kind", ["i8", "i32", "i64"])
def test_integer_division_truncates(kind: str, reference: Any) -> None:
    """Every pair of small numbers and extremes, against Python's integers."""
    info = np.iinfo(dtype(kind).numpy)  # type: ignore[type-var]
    some = np.array([info.min, info.min + 1, -7, -2, -1, 0, 1, 2, 7, info.max], info.dtype)
    a, b = np.repeat(some, len(some)), np.tile(some, len(some))
    (quotient,) = reference(operator("div"), Sample((a, b)))
    (rest,) = reference(operator("mod"), Sample((a, b)))
    for x, y, q, r in zip(a.tolist(), b.tolist(), quotient.tolist(), rest.tolist(), strict=True):
        want = 0 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        wrapped = info.min if want > info.max else want
        assert (q, r) == (wrapped, 0 if y == 0 else x - want * y), (x, y)


def test_round_is_half_to_even(reference: Any) -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    (got,) = reference(operator("round"), Sample((x,)))
    np.testing.assert_array_equal(got, [-2, -2, -0.0, 0, 2, 2])


# ---------------------------------------------------------------- importers


def f(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def i(*values: int, kind: Any = np.int32) -> Any:
    return np.asarray(values, kind)


def s(value: float, kind: Any = np.float32) -> Any:
    return np.asarray(value, kind)


ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.5, -1.5, 2.5], np.float32)
BITS = np.array([[True, False], [False, True]])

#: name -> (operator type, inputs, attributes, opset)
IMPORTS: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    **{
        op: (op, [f(3, 5)], {}, 17)
        for op in (
            "Neg", "Abs", "Sign", "Exp", "Tanh", "Erf", "Sigmoid", "Sin", "Cos", "Tan", "Floor", "Ceil",
            "Relu", "Reciprocal", "Softplus", "Softsign", "HardSwish", "Elu", "Selu", "Celu",
            "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Shrink",
        )
    },
    "sqrt": ("Sqrt", [np.abs(f(3, 5))], {}, 13),
    "log": ("Log", [np.abs(f(3, 5))], {}, 13),
    "round": ("Round", [ODD], {}, 17),
    "is nan": ("IsNaN", [ODD], {}, 13),
    "is inf": ("IsInf", [ODD], {}, 10),
    "is +inf": ("IsInf", [ODD], {"detect_negative": 0}, 10),
    "is -inf": ("IsInf", [ODD], {"detect_positive": 0}, 10),
    "is no inf": ("IsInf", [ODD], {"detect_positive": 0, "detect_negative": 0}, 10),
    "not": ("Not", [BITS], {}, 17),
    "gelu": ("Gelu", [f(3, 5)], {}, 20),
    "gelu tanh": ("Gelu", [f(3, 5)], {"approximate": "tanh"}, 20),
    "mish": ("Mish", [f(3, 5)], {}, 18),
    "elu alpha": ("Elu", [f(3, 5)], {"alpha": 0.3}, 17),
    "selu given": ("Selu", [f(3, 5)], {"alpha": 0.3, "gamma": 2.0}, 17),
    "celu alpha": ("Celu", [f(3, 5)], {"alpha": 0.3}, 17),
    "hard sigmoid given": ("HardSigmoid", [f(3, 5)], {"alpha": 0.3, "beta": 0.1}, 17),
    "shrink given": ("Shrink", [f(3, 5)], {"bias": 0.25, "lambd": 0.75}, 17),
    "prelu": ("PRelu", [f(1, 3, 4, 5), f(3, 1, 1)], {}, 16),
    "prelu, older": ("PRelu", [f(2, 5), f(5)], {}, 7),
    "clip attributes": ("Clip", [f(3, 5)], {"min": -0.5, "max": 0.25}, 6 + 1),
    "clip below": ("Clip", [f(3, 5)], {"min": 0.0}, 10),
    "clip inputs": ("Clip", [f(3, 5), s(-0.5), s(0.25)], {}, 11),
    "clip no lower": ("Clip", [f(3, 5), None, s(0.25)], {}, 13),
    "clip no upper": ("Clip", [f(3, 5), s(0.0)], {}, 13),
    "clip nothing": ("Clip", [f(3, 5)], {}, 13),
    "clip crossed": ("Clip", [f(3, 5), s(0.5), s(-0.5)], {}, 13),
    "clip ints": ("Clip", [i(-9, 0, 9), s(-2, np.int32), s(5, np.int32)], {}, 12),
    "clip large ints": (
        "Clip",
        [i(-(2**61), 0, 2**61, kind=np.int64), None, s(2**60 + 1, np.int64)],
        {},
        12,
    ),
    **{op: (op, [f(3, 5), f(2, 1, 5)], {}, 13) for op in ("Add", "Sub", "Mul", "Div")},
    **{op: (op, [f(3, 5), f(5), f(3, 1)], {}, 13) for op in ("Sum", "Mean", "Max", "Min")},
    **{f"{op} of one": (op, [f(3, 5)], {}, 8) for op in ("Sum", "Mean", "Max", "Min")},
    "max nan": ("Max", [ODD, ODD[::-1].copy()], {}, 13),
    "min nan": ("Min", [ODD, ODD[::-1].copy()], {}, 13),
    "max ints": ("Max", [i(1, -2), i(-1, 3)], {}, 13),
    "div ints": ("Div", [i(7, -7, 7, -7), i(2, 2, -2, -2)], {}, 13),
    "mod ints": ("Mod", [i(7, -7, 7, -7, 6), i(3, 3, -3, -3, -3)], {}, 13),
    "mod unsigned": ("Mod", [i(7, 200, kind=np.uint8), i(3, 7, kind=np.uint8)], {}, 13),
    "fmod ints": ("Mod", [i(7, -7, 7, -7), i(3, 3, -3, -3)], {"fmod": 1}, 13),
    "fmod": ("Mod", [f(3, 5) * 9, f(3, 5)], {"fmod": 1}, 13),
    **{
        op: (op, [np.round(f(4, 5)), np.round(f(5))], {}, 16)
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    },
    "equal bools": ("Equal", [BITS, BITS[0]], {}, 13),
    "less ints": ("Less", [i(1, 2, 3), i(2)], {}, 9),
    **{op: (op, [BITS, BITS.T[0]], {}, 13) for op in ("And", "Or", "Xor")},
    **{
        op: (op, [i(12, -7, 5), i(10, 3, -1)], {}, 18)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    },
    **{f"pow {p}": ("Pow", [np.abs(f(3, 5)) + 0.1, s(p)], {}, 13)
       for p in (-1, -0.5, 0.5, 1, 2, 3, 4, 2.5, 0)},
    "pow [1]": ("Pow", [f(3, 5), np.array([2.0], np.float32)], {}, 13),
    "pow broadcast up": ("Pow", [f(3), np.full((1, 1, 1), 2.0, np.float32)], {}, 13),
    "pow tensor": ("Pow", [np.abs(f(3, 5)), f(5)], {}, 13),
    "pow int exponent": ("Pow", [f(3, 5), i(0, 1, 2, 3, 4, kind=np.int64)], {}, 13),
    "pow int base": ("Pow", [i(1, 4, 9), s(0.5)], {}, 13),
    "pow ints": ("Pow", [i(2, -3, 4), i(5, 3, 2)], {}, 13),
    "pow ints, other width": ("Pow", [i(2, -3, 4), i(5, 3, 2, kind=np.int64)], {}, 13),
    "where": ("Where", [BITS, f(2, 2), s(7.0)], {}, 16),
    "where ints": ("Where", [BITS, i(1, 2, kind=np.int64), i(3, 4, kind=np.int64)], {}, 9),
    **{
        f"cast to {to}": ("Cast", [np.array([0.0, -1.7, 99.9, 1.5], np.float32)], {"to": to}, 13)
        for to in (1, 3, 5, 6, 7, 9, 10, 11)
    },
    "cast ints": ("Cast", [i(300, -1, 0)], {"to": 3}, 13),
    "cast bools": ("Cast", [BITS], {"to": 1}, 13),
    "cast like": ("CastLike", [f(3, 5) * 9, i(1)], {}, 15),
}  # fmt: skip


@pytest.mark.parametrize("constants", [True, False], ids=["constants", "inputs"])
@pytest.mark.parametrize("name", IMPORTS)
def test_importer_agrees_with_onnx_runtime(
    name: str, constants: bool, imported: Any, runtime: Any
) -> None:
    op_type, arrays, attrs, opset = IMPORTS[name]
    (got,) = imported(op_type, arrays, attrs, opset, constants=constants)
    (want,) = runtime(op_type, arrays, attrs, opset, constants=constants)
    _close(got, want)


def test_swish(imported: Any) -> None:
    x = f(3, 5)
    (got,) = imported("Swish", [x], {"alpha": 1.5}, 24)
    _close(got, (x / (1 + np.exp(-1.5 * x.astype(np.float64)))).astype(np.float32))


# ---------------------------------------------------------------- refusals


def t(kind: str, *shape: int) -> TensorType:
    return TensorType(ALL[kind], shape)


REFUSED: list[tuple[str, list[TensorType], dict[str, Any], str]] = [
    ("exp", [t("i32", 3)], {}, "wants a float tensor"),
    ("neg", [t("bool", 3)], {}, "not defined on bool"),
    ("not", [t("f32", 3)], {}, "wants a bool tensor"),
    ("add", [t("f32", 3), t("i32", 3)], {}, "element types differ"),
    ("add", [t("bool", 3), t("bool", 3)], {}, "not defined on bool"),
    ("and", [t("f32", 3), t("f32", 3)], {}, "not defined on f32"),
    ("mul", [t("f32", 3), t("f32", 4)], {}, "do not broadcast"),
    ("elu", [t("i32", 3)], {"alpha": 1.0}, "wants a float tensor"),
    ("clip", [t("bool", 3)], {"min": 0.0, "max": 1.0}, "wants a float tensor"),
    ("prelu", [t("f32", 3), t("f32", 2, 3)], {}, "does not broadcast"),
    ("prelu", [t("f32", 3), t("f32", 4)], {}, "does not broadcast"),
    ("prelu", [t("f32", 3), t("f64", 3)], {}, "one number type"),
    ("where", [t("f32", 3), t("f32", 3), t("f32", 3)], {}, "wants (bool, T, T)"),
    ("where", [t("bool", 3), t("f32", 3), t("f32", 4)], {}, "do not broadcast"),
    ("cast", [t("f32", 3)], {"to": "f8"}, "unknown element type f8"),
]


@pytest.mark.parametrize(("name", "types", "attrs", "reason"), REFUSED)
def test_bad_operands_are_refused(
    name: str, types: list[TensorType], attrs: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError) as error:
        operator(name).infer(types, attrs)
    assert reason in str(error.value) and name in str(error.value)


def test_cast_to_strings_is_refused(imported: Any) -> None:
    with pytest.raises(UnsupportedError, match="string is not supported"):
        imported("Cast", [f(3)], {"to": 8})
