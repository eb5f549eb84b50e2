"""Reductions, pools, softmax and normalisation: reference, lowering, compiled code, importers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.core.dtypes import F32
from tilewright.errors import ModelError
from tilewright.graph.ir import TensorType, type_of
from tilewright.registry import Sample, operator

NAMES = (
    "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin",
    "softmax", "log_softmax", "layer_norm", "instance_norm", "batch_norm", "lrn", "max_pool2d",
    "avg_pool2d",
)  # fmt: skip


def _samples(name: str) -> list[Sample]:
    make = operator(name).samples
    assert make is not None
    return list(make(np.random.default_rng(1)))


CASES = [(name, i) for name in NAMES for i in range(len(_samples(name)))]


def _close(name: str, sample: Sample, got: Any, want: Any) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    types = [None if a is None else type_of(a) for a in sample.inputs]
    scale = max((float(np.abs(a).max()) for a in sample.inputs if a is not None), default=1.0)
    slack = 1e-6 * scale * (4 + operator(name).depth(types, sample.attrs))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=0 if want.dtype.kind in "iub" else slack)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_lowering_is_the_reference(name: str, case: int, reference: Any, interpret: Any) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), interpret(op, sample)
    _close(name, sample, got, want)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_compiled_code_is_the_reference(
    name: str, case: int, reference: Any, compile_and_run: Any
) -> None:
    sample, op = _samples(name)[case], operator(name)
    (want,), (got,) = reference(op, sample), compile_and_run(op, sample, True)
    _close(name, sample, got, want)


def f(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def n(*values: int) -> Any:
    return np.asarray(values, np.int64)


#: name -> (operator type, inputs, attributes, opset)
IMPORTS: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "sum, axes as attribute": ("ReduceMean", [f(3, 4, 5)], {"axes": [-1, 0]}, 13),
    "sum, axes as input": ("ReduceSum", [f(3, 4, 5), n(1)], {"keepdims": 0}, 13),
    "sum of all": ("ReduceSum", [f(3, 4, 5)], {}, 13),
    "sum of all, empty axes": ("ReduceSum", [f(3, 4, 5), n()], {}, 13),
    "sum of nothing": ("ReduceSum", [f(3, 4, 5), n()], {"noop_with_empty_axes": 1}, 13),
    "mean": ("ReduceMean", [f(3, 4, 5), n(0, 2)], {}, 18),
    "max": ("ReduceMax", [f(3, 4, 5), n(0, 2)], {}, 18),
    "max of ints": ("ReduceMax", [np.arange(12, dtype=np.int32).reshape(3, 4), n(0)], {}, 18),
    "min": ("ReduceMin", [f(3, 4, 5), n(1)], {}, 18),
    "prod": ("ReduceProd", [f(3, 4, 5), n(1)], {}, 18),
    "l1": ("ReduceL1", [f(3, 4, 5), n(1)], {}, 18),
    "l2": ("ReduceL2", [f(3, 4, 5), n(1)], {"keepdims": 0}, 18),
    "sum of squares": ("ReduceSumSquare", [f(3, 4, 5)], {"axes": [1]}, 13),
    "log sum": ("ReduceLogSum", [np.abs(f(3, 4)), n(1)], {}, 18),
    "log sum exp": ("ReduceLogSumExp", [f(3, 4) * 40, n(1)], {"keepdims": 0}, 18),
    "log sum exp of all": ("ReduceLogSumExp", [f(3, 4)], {}, 18),
    "sum of a scalar": ("ReduceSum", [f()], {}, 13),
    "global average": ("GlobalAveragePool", [f(2, 3, 4, 5)], {}, 17),
    "global average 1d": ("GlobalAveragePool", [f(2, 3, 4)], {}, 17),
    "global max": ("GlobalMaxPool", [f(2, 3, 4, 5)], {}, 17),
    "global lp": ("GlobalLpPool", [f(2, 3, 4, 5)], {"p": 3}, 17),
    "argmax": ("ArgMax", [f(3, 4, 5)], {"axis": -2, "keepdims": 0}, 17),
    "argmin last": ("ArgMin", [np.round(f(3, 40))], {"axis": 1, "select_last_index": 1}, 17),
    "softmax": ("Softmax", [f(3, 4, 5) * 9], {}, 13),
    "softmax axis 1": ("Softmax", [f(3, 4, 5)], {"axis": 1}, 13),
    "softmax flattened": ("Softmax", [f(3, 4, 5)], {}, 11),
    "softmax flattened, axis 0": ("Softmax", [f(3, 4, 5)], {"axis": 0}, 11),
    "softmax flattened, axis -1": ("Softmax", [f(3, 4, 5)], {"axis": -1}, 11),
    "softmax of a column": ("Softmax", [f(3, 4, 1, 1)], {}, 11),
    "log softmax": ("LogSoftmax", [f(3, 7) * 30], {}, 13),
    "layer norm": ("LayerNormalization", [f(2, 3, 8), f(8), f(8)], {"epsilon": 1e-3}, 17),
    "layer norm, two dims": ("LayerNormalization", [f(2, 3, 8), f(3, 8)], {"axis": 1}, 17),
    "instance norm": ("InstanceNormalization", [f(2, 3, 4, 5), f(3), f(3)], {}, 17),
    "instance norm 1d": ("InstanceNormalization", [f(2, 3, 9), f(3), f(3)], {"epsilon": 0.1}, 17),
    "group norm": ("GroupNormalization", [f(2, 6, 4, 5), f(6), f(6)], {"num_groups": 3}, 21),
    "batch norm": ("BatchNormalization", [f(2, 3, 4, 5), f(3), f(3), f(3), np.abs(f(3))], {}, 15),
    "batch norm rank 2": ("BatchNormalization", [f(2, 3), f(3), f(3), f(3), np.abs(f(3))], {}, 9),
    "lrn": ("LRN", [f(1, 9, 3, 4)], {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}, 13),
    "max pool": ("MaxPool", [f(1, 3, 7, 8)], {"kernel_shape": [3, 2], "strides": [2, 1]}, 12),
    "max pool pads": (
        "MaxPool",
        [f(1, 3, 7, 8) - 9],
        {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1]},
        12,
    ),
    "max pool ceil": (
        "MaxPool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        12,
    ),
    "max pool ceil dropped": (
        "MaxPool",
        [f(1, 1, 2, 2)],
        {"kernel_shape": [1, 1], "strides": [2, 2], "ceil_mode": 1},
        12,
    ),
    "max pool dilated": (
        "MaxPool",
        [f(1, 3, 9, 8)],
        {"kernel_shape": [3, 2], "dilations": [2, 3]},
        12,
    ),
    "max pool same": (
        "MaxPool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        12,
    ),
    "max pool 1d": (
        "MaxPool",
        [f(1, 3, 9)],
        {"kernel_shape": [3], "strides": [2], "pads": [1, 1]},
        12,
    ),
    "max pool of bytes": (
        "MaxPool",
        [np.arange(36, dtype=np.int8).reshape(1, 1, 6, 6) - 50],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        12,
    ),
    "average": ("AveragePool", [f(1, 3, 7, 8)], {"kernel_shape": [3, 2], "strides": [2, 1]}, 11),
    "average pads": (
        "AveragePool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1]},
        11,
    ),
    "average pads counted": (
        "AveragePool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "count_include_pad": 1},
        11,
    ),
    "average ceil": (
        "AveragePool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        19,
    ),
    "average ceil counted": (
        "AveragePool",
        [f(1, 3, 7, 9)],
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "ceil_mode": 1,
            "pads": [1, 1, 0, 0],
            "count_include_pad": 1,
        },
        19,
    ),
    "average dilated": (
        "AveragePool",
        [f(1, 3, 9, 9)],
        {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [2, 1, 2, 1]},
        19,
    ),
    "average same": (
        "AveragePool",
        [f(1, 3, 7, 8)],
        {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"},
        11,
    ),
    "average 1d": (
        "AveragePool",
        [f(1, 3, 9)],
        {"kernel_shape": [3], "strides": [2], "pads": [1, 1]},
        11,
    ),
    "lp": ("LpPool", [f(1, 3, 7, 8)], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, 18),
    "lp 1": ("LpPool", [f(1, 3, 7, 8)], {"kernel_shape": [3, 2], "p": 1}, 18),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_import_agrees_with_onnxruntime(case: str, imported: Any, runtime: Any) -> None:
    op_type, arrays, attrs, opset = IMPORTS[case]
    (want,) = runtime(op_type, arrays, attrs, opset)
    (got,) = imported(op_type, arrays, attrs, opset)
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


def test_lrn_over_an_even_number_of_channels(imported: Any) -> None:
    """One channel more after than before the centre; ONNX Runtime wants an odd number."""
    x = f(1, 9, 3, 4)
    (got,) = imported("LRN", [x], {"size": 4, "alpha": 0.5, "beta": 0.5, "bias": 2.0}, 13)
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (1, 2), (0, 0), (0, 0)))
    total = sum(squares[:, i : i + 9] for i in range(4))
    np.testing.assert_allclose(got, x / np.sqrt(2 + 0.5 / 4 * total), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 9), (1, 9, 4), (1, 9, 2, 3, 2)])
def test_lrn_of_any_rank(shape: tuple[int, ...], imported: Any, runtime: Any) -> None:
    x, attrs = f(*shape), {"size": 3, "alpha": 0.5}
    (got,) = imported("LRN", [x], attrs, 13)
    (want,) = runtime("LRN", [x.reshape(*shape[:2], -1, 1)], attrs, 13)
    np.testing.assert_allclose(got, want.reshape(shape), rtol=1e-6)


def test_group_norm_with_one_scale_per_group(imported: Any) -> None:
    """Opset 18, which ONNX Runtime does not run."""
    x, scale, bias = f(2, 6, 4), f(3), f(3)
    (got,) = imported("GroupNormalization", [x, scale, bias], {"num_groups": 3}, 18)
    g = x.reshape(2, 3, 8).astype(np.float64)
    y = (g - g.mean(2, keepdims=True)) / np.sqrt(g.var(2, keepdims=True) + 1e-5)
    want = (y * scale[:, None] + bias[:, None]).reshape(2, 6, 4)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top", [np.inf, -np.inf])
def test_log_sum_exp_of_infinities_is_not_nan(top: float, imported: Any) -> None:
    x = np.full((1, 4), -np.inf, np.float32)
    x[0, 2] = top
    (got,) = imported("ReduceLogSumExp", [x, n(1)], {}, 18)
    assert got[0, 0] == top


def test_a_window_counts_only_what_it_covers_of_the_declared_pads(imported: Any) -> None:
    """The last window of ceil_mode hangs over: what it hangs over is not counted."""
    x = np.ones((1, 1, 4, 4), np.float32)
    attrs = {
        "kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1,
    }  # fmt: skip
    (got,) = imported("AveragePool", [x], attrs, 19)
    np.testing.assert_array_equal(got, np.ones((1, 1, 2, 2), np.float32))


REFUSED: dict[str, tuple[str, list[Any], dict[str, Any], str]] = {
    "axis beyond": ("ReduceSum", [f(2, 3), n(2)], {}, "out of range"),
    "softmax axis": ("Softmax", [f(2, 3)], {"axis": 2}, "out of range"),
    "argmax axis": ("ArgMax", [f(2, 3)], {"axis": -3}, "out of range"),
    "layer norm axis": ("LayerNormalization", [f(2, 3), f(3)], {"axis": 2}, "out of range"),
    "layer norm scale": ("LayerNormalization", [f(2, 3), f(2)], {}, "does not fit"),
    "groups": ("GroupNormalization", [f(2, 5, 4), f(2), f(2)], {"num_groups": 2}, "2 groups"),
    "batch norm": ("BatchNormalization", [f(2, 3, 4), f(3), f(3), f(3), f(4)], {}, "parameter"),
    "no kernel": ("MaxPool", [f(1, 1, 3, 3)], {}, "kernel_shape"),
    "empty windows": (
        "MaxPool",
        [f(1, 1, 3, 3)],
        {"kernel_shape": [1, 1], "pads": [1, 1, 1, 1]},
        "pads",
    ),
    "no stride": (
        "AveragePool",
        [f(1, 1, 3, 3)],
        {"kernel_shape": [1, 1], "strides": [0, 1]},
        "strides",
    ),
    "large window": ("AveragePool", [f(1, 1, 3, 3)], {"kernel_shape": [4, 4]}, "output is empty"),
    "lrn": ("LRN", [f(1, 3, 3, 3)], {"size": 0}, "channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(case: str, imported: Any) -> None:
    op_type, arrays, attrs, reason = REFUSED[case]
    with pytest.raises(ModelError, match=reason) as error:
        imported(op_type, arrays, attrs, 18)
    assert "the_node" in str(error.value)


@pytest.mark.parametrize("name", ["reduce_max", "reduce_min"])
def test_booleans(name: str, reference: Any, interpret: Any, compile_and_run: Any) -> None:
    x = np.array([[True, False], [False, False], [True, True]])
    sample = Sample((x,), {"axes": (1,), "keepdims": False})
    (want,) = reference(operator(name), sample)
    for run in (interpret, lambda op, s: compile_and_run(op, s, True)):
        np.testing.assert_array_equal(run(operator(name), sample)[0], want)


def test_softmax_of_large_values_does_not_overflow(interpret: Any, compile_and_run: Any) -> None:
    x = np.array([[1e4, 1e4, -1e4] * 7], np.float32)
    sample = Sample((x,), {"axis": 1})
    want = np.where(x > 0, 1 / 14, 0)
    for got in (
        interpret(operator("softmax"), sample),
        compile_and_run(operator("softmax"), sample, True),
    ):
        np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_max_pool_asks_for_a_border_that_never_wins() -> None:
    wish = operator("max_pool2d").wishes
    assert wish is not None
    attrs = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    got = wish([TensorType(F32, (1, 3, 8, 8))], attrs)
    assert got.fill == -np.inf and got.halos[0] == ((0, 0), (0, 0), (1, 0), (1, 0))
