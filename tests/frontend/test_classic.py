"""Operators of ai.onnx.ml, compiled, against plain Python and, where it is installed, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import tilewright
from tilewright.errors import ModelError, UnsupportedError
from tilewright.graph.ir import Array

ML = "ai.onnx.ml"


def model(
    op: str, x: Array, outputs: Sequence[tuple[str, int]], version: int = 3, **attrs: Any
) -> bytes:
    node = helper.make_node(op, ["x"], [n for n, _ in outputs], "the_node", domain=ML, **attrs)
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    given = [helper.make_tensor_value_info("x", kind, x.shape)]
    made = [helper.make_tensor_value_info(n, t, None) for n, t in outputs]
    graph = helper.make_graph([node], "g", given, made)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def compiled(data: bytes, x: Array) -> list[Array]:
    """Our results, which must be ONNX Runtime's as well."""
    ours = list(tilewright.compile(data)(x))
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    for a, b in zip(ours, session.run(None, {"x": x}), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return ours


def forest(
    rng: np.random.Generator, trees: int, targets: int, modes: Sequence[str]
) -> dict[str, Any]:
    """Attributes of random trees of different depths, as TreeEnsembleRegressor names them."""
    out: dict[str, list[Any]] = {}

    def put(**row: Any) -> None:
        for k, v in row.items():
            out.setdefault(k, []).append(v)

    for t in range(trees):
        todo, count = [(0, 0)], 1
        while todo:
            at, level = todo.pop()
            leaf = level > 1 + t % 3 or (level > 0 and rng.random() < 0.2)
            yes, no = (0, 0) if leaf else (count, count + 1)
            mode = "LEAF" if leaf else modes[int(rng.integers(len(modes)))]
            put(
                nodes_treeids=t, nodes_nodeids=at, nodes_modes=mode, nodes_truenodeids=yes, nodes_falsenodeids=no,
                nodes_featureids=int(rng.integers(4)), nodes_values=float(np.round(rng.normal(), 1)),
                nodes_missing_value_tracks_true=int(rng.integers(2)),
            )  # fmt: skip
            if leaf:
                put(
                    target_treeids=t, target_nodeids=at, target_ids=int(rng.integers(targets)),
                    target_weights=float(rng.normal()),
                )  # fmt: skip
            else:
                todo += [(count, level + 1), (count + 1, level + 1)]
                count += 2
    return {**out, "n_targets": targets}


def rows(rng: np.random.Generator) -> Array:
    x = np.round(rng.standard_normal((9, 4)), 1).astype(np.float32)  # some lie on a split
    x[2, 1] = x[5, 3] = np.nan
    return x


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
def test_regressor(how: str) -> None:
    rng = np.random.default_rng(len(how))
    x = rows(rng)
    attrs = forest(rng, 6, 1 if how == "SUM" else 3, ["BRANCH_LEQ"])
    (y,) = compiled(
        model("TreeEnsembleRegressor", x, [("y", 1)], aggregate_function=how, **attrs), x
    )
    assert len(np.unique(y)) > 4


def test_all_comparisons() -> None:
    rng = np.random.default_rng(7)
    x = rows(rng)
    names = [f"BRANCH_{n}" for n in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")]
    compiled(model("TreeEnsembleRegressor", x, [("y", 1)], **forest(rng, 8, 2, names)), x)


@pytest.mark.parametrize(
    ("classes", "single", "transform"),
    [(3, False, "NONE"), (3, False, "SOFTMAX"), (2, True, "LOGISTIC"), (2, True, "NONE")],
)
def test_classifier(classes: int, single: bool, transform: str) -> None:
    rng = np.random.default_rng(classes)
    x = rows(rng)
    attrs = forest(rng, 7, 1 if single else classes, ["BRANCH_LT"])
    attrs.pop("n_targets")
    attrs = {k.replace("target_", "class_"): v for k, v in attrs.items()}
    attrs["base_values"] = [0.125] if single else [0.5, -0.25, 0.125]
    data = model(
        "TreeEnsembleClassifier", x, [("label", TensorProto.INT64), ("scores", 1)],
        classlabels_int64s=[7, 3, 11][:classes], post_transform=transform, **attrs,
    )  # fmt: skip
    label, scores = compiled(data, x)
    assert scores.shape == (9, classes) and set(label.tolist()) <= {7, 3, 11}


def test_trees_that_are_none_are_refused() -> None:
    rng = np.random.default_rng(0)
    x = rows(rng)
    for name, value, said in (
        ("nodes_featureids", 99, "feature"),
        ("nodes_truenodeids", 77, "has no node 77"),
        ("nodes_truenodeids", 0, "a tree is none"),
        ("target_ids", 5, "target"),
        ("target_nodeids", 50, "no leaf 50"),
    ):
        attrs = forest(rng, 2, 1, ["BRANCH_LEQ"])
        attrs[name] = [value, *attrs[name][1:]]
        with pytest.raises((ModelError, UnsupportedError), match=said):
            tilewright.compile(model("TreeEnsembleRegressor", x, [("y", 1)], **attrs))


LINEAR = {
    "Scaler": {"offset": [0.5, 0.0, -1.0, 2.0], "scale": [2.0, 0.5, 1.0, -1.0]},
    "Imputer": {"replaced_value_float": float("nan"), "imputed_value_floats": [1.0, 2.0, 3.0, 4.0]},
    "Normalizer": {"norm": "L1"},
    "LinearRegressor": {"coefficients": [0.1, 0.2, 0.3, 0.4] * 2, "intercepts": [1.0, -1.0], "targets": 2},
}  # fmt: skip


@pytest.mark.parametrize("op", LINEAR)
def test_linear(op: str) -> None:
    rng = np.random.default_rng(1)
    x = rows(rng) if op == "Imputer" else rng.standard_normal((9, 4)).astype(np.float32)
    x[0] = 0
    compiled(model(op, x, [("y", 1)], **LINEAR[op]), x)


@pytest.mark.parametrize("norm", ["MAX", "L2"])
def test_norms(norm: str) -> None:
    x = np.random.default_rng(2).random((5, 4)).astype(np.float32)
    compiled(model("Normalizer", x, [("y", 1)], norm=norm), x)


def test_linear_classifier() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, 4)).astype(np.float32)
    data = model(
        "LinearClassifier", x, [("label", TensorProto.INT64), ("scores", 1)], post_transform="SOFTMAX", multi_class=1,
        classlabels_ints=[5, 2, 9], coefficients=rng.standard_normal(12).tolist(), intercepts=[0.1, 0.2, 0.3],
    )  # fmt: skip
    compiled(data, x)


def test_labels() -> None:
    x = np.array([[3, 8, 4], [9, 3, 3]], np.int64)
    data = model(
        "LabelEncoder", x, [("y", 1)], version=2, keys_int64s=[8, 3, 9], values_floats=[0.5, -1.0, 2.0],
        default_float=7.0,
    )  # fmt: skip
    (y,) = compiled(data, x)
    np.testing.assert_array_equal(y, np.float32([[-1, 0.5, 7], [2, -1, -1]]))


def test_strings_are_named() -> None:
    x = np.zeros((2, 4), np.float32)
    data = model(
        "LinearClassifier", x, [("label", TensorProto.STRING), ("scores", 1)], classlabels_strings=["a", "b"],
        coefficients=[0.0] * 8,
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="labels are strings"):
        tilewright.compile(data)
