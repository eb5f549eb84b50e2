"""Matrix products and convolutions: reference, lowering, compiled code, importers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.dtypes import F32
from tilewright.core.window import Window, read_window
from tilewright.errors import ModelError
from tilewright.graph.ir import TensorType, type_of
from tilewright.registry import Sample, operator

NAMES = ("matmul", "conv2d", "depthwise_conv2d", "conv_transpose2d")


def _samples(name: str) -> list[Sample]:
    make = operator(name).samples
    assert make is not None
    return list(make(np.random.default_rng(1)))


CASES = [(name, i) for name in NAMES for i in range(len(_samples(name)))]


def _tolerance(name: str, sample: Sample) -> float:
    """Rounding of a sum of products in f32, for values of a few units."""
    types = [None if a is None else type_of(a) for a in sample.inputs]
    return 1e-6 * (4 + operator(name).depth(types, sample.attrs))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_lowering_is_the_reference(name: str, case: int, reference: Any, interpret: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), interpret(op, sample)
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=_tolerance(name, sample))


@pytest.mark.parametrize("constants", [True, False], ids=["weights", "inputs"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_compiled_code_is_the_reference(
    name: str, case: int, constants: bool, reference: Any, compile_and_run: Any
) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), compile_and_run(op, sample, constants)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=_tolerance(name, sample))


def f(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


IMPORTS: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "matmul": ("MatMul", [f(3, 4), f(4, 5)], {}),
    "matmul batch": ("MatMul", [f(2, 1, 3, 4), f(3, 4, 5)], {}),
    "matmul vector left": ("MatMul", [f(4), f(2, 4, 5)], {}),
    "matmul vector right": ("MatMul", [f(2, 3, 4), f(4)], {}),
    "matmul vectors": ("MatMul", [f(4), f(4)], {}),
    "gemm": ("Gemm", [f(3, 4), f(4, 5)], {}),
    "gemm bias": ("Gemm", [f(3, 4), f(4, 5), f(5)], {}),
    "gemm bias column": ("Gemm", [f(3, 4), f(4, 5), f(3, 1)], {"beta": 0.5}),
    "gemm bias scalar": ("Gemm", [f(3, 4), f(4, 5), f()], {}),
    "gemm transposed": (
        "Gemm",
        [f(4, 3), f(5, 4), f(1, 5)],
        {"transA": 1, "transB": 1, "alpha": 0.3},
    ),
    "conv 3d": (
        "Conv",
        [f(2, 4, 5, 4, 5), f(6, 2, 3, 3, 2), f(6)],
        {"group": 2, "strides": [2, 1, 1], "pads": [1, 0, 1, 1, 1, 0], "dilations": [1, 2, 1]},
    ),
    "conv 3d depthwise": (
        "Conv",
        [f(1, 3, 5, 4, 5), f(3, 1, 3, 3, 3)],
        {"group": 3, "auto_pad": "SAME_UPPER", "strides": [2, 2, 2]},
    ),
    "transposed 3d": (
        "ConvTranspose",
        [f(1, 4, 3, 4, 4), f(4, 3, 3, 3, 3), f(6)],
        {
            "group": 2,
            "strides": [2, 1, 3],
            "pads": [1, 0, 1, 0, 1, 1],
            "output_padding": [1, 0, 2],
        },
    ),
    "transposed 3d wide pads": (
        "ConvTranspose",
        [f(1, 2, 1, 4, 4), f(2, 3, 3, 3, 3)],
        {"pads": [2, 0, 0, 0, 2, 0], "dilations": [2, 1, 1]},
    ),
    "gemm without c": ("Gemm", [f(3, 4), f(4, 5), f(5)], {"beta": 0.0, "alpha": 2.0}),
    "conv": (
        "Conv",
        [f(1, 3, 7, 8), f(5, 3, 3, 3), f(5)],
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
    ),
    "conv 1d": (
        "Conv",
        [f(2, 4, 11), f(6, 2, 3), f(6)],
        {"pads": [2, 1], "group": 2, "dilations": [2]},
    ),
    "conv same upper": (
        "Conv",
        [f(1, 2, 7, 6), f(3, 2, 2, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "conv same lower": (
        "Conv",
        [f(1, 2, 7, 6), f(3, 2, 4, 3)],
        {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    ),
    "conv valid": ("Conv", [f(1, 2, 7, 6), f(3, 2, 4, 3)], {"auto_pad": "VALID"}),
    "conv depthwise": (
        "Conv",
        [f(1, 6, 7, 6), f(6, 1, 3, 3), f(6)],
        {"group": 6, "pads": [1, 1, 1, 1]},
    ),
    "conv depthwise 1d": ("Conv", [f(1, 6, 9), f(6, 1, 3)], {"group": 6, "pads": [2, 0]}),
    "conv multiplier 2": ("Conv", [f(1, 3, 7, 6), f(6, 1, 3, 3), f(6)], {"group": 3}),
    "conv one channel": ("Conv", [f(1, 1, 7, 6), f(1, 1, 3, 3), f(1)], {"group": 1}),
    "transposed": ("ConvTranspose", [f(1, 3, 4, 5), f(3, 6, 3, 3), f(6)], {"strides": [2, 2]}),
    "transposed pads": (
        "ConvTranspose",
        [f(1, 3, 4, 5), f(3, 2, 4, 3)],
        {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]},
    ),
    "transposed group": (
        "ConvTranspose",
        [f(2, 4, 4, 3), f(4, 3, 2, 2)],
        {"group": 2, "strides": [3, 3]},
    ),
    "transposed dilated": (
        "ConvTranspose",
        [f(1, 2, 4, 5), f(2, 3, 3, 2)],
        {"dilations": [2, 3], "strides": [2, 2]},
    ),
    "transposed 1d": (
        "ConvTranspose",
        [f(1, 2, 6), f(2, 3, 4), f(3)],
        {"strides": [2], "pads": [1, 1]},
    ),
    "transposed output shape": (
        "ConvTranspose",
        [f(1, 2, 4, 5), f(2, 3, 4, 4)],
        {"strides": [2, 2], "output_shape": [9, 11]},
    ),
    "transposed same upper": (
        "ConvTranspose",
        [f(1, 2, 4, 5), f(2, 3, 3, 3)],
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
    "transposed same lower": (
        "ConvTranspose",
        [f(1, 2, 4, 5), f(2, 3, 3, 3)],
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ),
}


@pytest.mark.parametrize("constants", [True, False], ids=["weights", "inputs"])
@pytest.mark.parametrize("case", IMPORTS)
def test_import_agrees_with_onnxruntime(
    case: str, constants: bool, imported: Any, runtime: Any
) -> None:
    op_type, arrays, attrs = IMPORTS[case]
    (want,) = runtime(op_type, arrays, attrs, constants=constants)
    (got,) = imported(op_type, arrays, attrs, constants=constants)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


REFUSED: dict[str, tuple[str, list[Any], dict[str, Any], str]] = {
    "0d": ("Conv", [f(1, 2), f(3, 2)], {}, "no spatial dims"),
    "0d transposed": ("ConvTranspose", [f(1, 2), f(2, 3)], {}, "no spatial dims"),
    "no stride": ("Conv", [f(1, 2, 4, 4), f(3, 2, 1, 1)], {"strides": [0, 1]}, "strides"),
    "few strides": ("Conv", [f(1, 2, 4, 4), f(3, 2, 1, 1)], {"strides": [1]}, "2 entries"),
    "negative pads": ("Conv", [f(1, 2, 4, 4), f(3, 2, 1, 1)], {"pads": [0, -1, 0, 0]}, "pads"),
    "group 0": ("Conv", [f(1, 2, 4, 4), f(3, 2, 1, 1)], {"group": 0}, "0 groups"),
    "group 0 transposed": (
        "ConvTranspose",
        [f(1, 2, 4, 4), f(2, 2, 1, 1)],
        {"group": 0},
        "0 groups",
    ),
    "auto_pad": ("Conv", [f(1, 2, 4, 4), f(3, 2, 1, 1)], {"auto_pad": "SOME"}, "auto_pad SOME"),
    "kernel_shape": (
        "Conv",
        [f(1, 2, 4, 4), f(3, 2, 1, 1)],
        {"kernel_shape": [3, 3]},
        "kernel_shape",
    ),
    "too large": ("Conv", [f(1, 2, 4, 4), f(3, 2, 5, 5)], {}, "output is empty"),
    "channels": ("Conv", [f(1, 2, 4, 4), f(3, 3, 1, 1)], {}, "do not fit"),
    "matmul": ("MatMul", [f(2, 3), f(2, 3)], {}, "do not fit"),
    "matmul batch": ("MatMul", [f(2, 2, 3), f(3, 3, 2)], {}, "batch dims"),
    "matmul scalar": ("MatMul", [f(), f(3, 3)], {}, "scalar"),
    "gemm bias": ("Gemm", [f(2, 3), f(3, 4), f(3)], {}, "bias"),
    "gemm rank": ("Gemm", [f(1, 2, 3), f(3, 4)], {}, "two matrices"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(case: str, imported: Any) -> None:
    op_type, arrays, attrs, reason = REFUSED[case]
    with pytest.raises(ModelError, match=reason) as error:
        imported(op_type, arrays, attrs)
    assert "the_node" in str(error.value)


def test_a_convolution_reads_no_wider_border_than_its_windows_reach() -> None:
    wish = operator("conv2d").wishes
    assert wish is not None
    x, w = TensorType(F32, (1, 3, 8, 8)), TensorType(F32, (4, 3, 3, 3))
    attrs = {"strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1), "group": 1}
    assert wish([x, w], attrs).halos[0] == ((0, 0), (0, 0), (1, 0), (1, 0))


def test_depthwise_is_recognised() -> None:
    from onnx import helper, numpy_helper

    from tilewright.frontend.onnx import load_onnx

    node = helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    x = helper.make_tensor_value_info("x", 1, [1, 4, 5, 5])
    y = helper.make_empty_tensor_value_info("y")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(f(4, 1, 3, 3), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert [n.op for n in load_onnx(model).nodes] == ["depthwise_conv2d"]


def test_window_geometry() -> None:
    window = Window((3, 3), (2, 2), (1, 1), (0, 0, 0, 0))
    assert window.output((8, 7)) == (3, 3)
    assert window.overhang((8, 7)) == (1, 0)
    assert window.border((8, 7)) == ((0, 0), (0, 0))
    one = read_window(lambda name, default: default, (9,), (3,))
    assert one == Window((1, 3), (1, 1), (1, 1), (0, 0, 0, 0))
    with pytest.raises(ValueError, match="strides"):
        Window((3, 3), (0, 1), (1, 1), (0, 0, 0, 0))
