"""Linear models and what prepares features for them (ai.onnx.ml): Scaler, Normalizer, Imputer, FeatureVectorizer,
LabelEncoder of numbers, LinearRegressor, LinearClassifier.

In: an `ImportNode`. Out: value names; all is composed of canonical operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.frontend.scores import transformed
from tilewright.frontend.trees import best_label
from tilewright.graph.ir import Array, Attrs
from tilewright.registry import ImportNode


def _floats(node: ImportNode, name: str) -> Array:
    return np.asarray(node.attr(name, ()), np.float32).reshape(-1)


def _as_floats(node: ImportNode, i: int = 0) -> str:
    """Input i in float32, the type of these operators' results."""
    x = node.inputs[i]
    return x if node.type(i).dtype.name == "f32" else node.add("cast", [x], {"to": "f32"})[0]


def _scaler(node: ImportNode) -> Sequence[str]:
    x = _as_floats(node)
    for op, name in (("sub", "offset"), ("mul", "scale")):
        numbers = _floats(node, name)
        if numbers.size not in (1, node.type(0).shape[-1]):
            raise node.fail(
                f"`{name}` has {numbers.size} numbers for {node.type(0)}: repair the model"
            )
        (x,) = node.add(op, [x, node.constant(numbers, name)])
    return [x]


def _normalizer(node: ImportNode) -> Sequence[str]:
    """Rows by their largest element, sum of magnitudes or length; rows of zeros stay."""
    x, axes = _as_floats(node), (node.type(0).rank - 1,)
    how = str(node.attr("norm", "MAX"))
    if how not in ("MAX", "L1", "L2"):
        raise node.fail(f"there is no norm `{how}`: repair the model")
    if how == "MAX":
        (size,) = node.add("reduce_max", [x], {"axes": axes, "keepdims": True})
    else:
        (each,) = node.add("abs", [x]) if how == "L1" else node.add("mul", [x, x])
        (size,) = node.add("reduce_sum", [each], {"axes": axes, "keepdims": True})
        if how == "L2":
            (size,) = node.add("sqrt", [size])
    (none,) = node.add("eq", [size, node.constant(np.asarray(0, np.float32), "zero")])
    (size,) = node.add("where", [none, node.constant(np.asarray(1, np.float32), "one"), size])
    return node.add("div", [x, size])


def _imputer(node: ImportNode) -> Sequence[str]:
    """One value, which may be NaN, replaced by a number (per column)."""
    t, x = node.type(0), node.inputs[0]
    kind = "float" if t.dtype.numpy.kind == "f" else "int64"
    fill = np.asarray(node.attr(f"imputed_value_{kind}s", ()), t.dtype.numpy).reshape(-1)
    if fill.size not in (1, t.shape[-1]):
        raise node.fail(f"{fill.size} numbers to impute for {t}: repair the model")
    gone = np.asarray(node.attr(f"replaced_value_{kind}", 0), t.dtype.numpy)
    if gone.dtype.kind == "f" and np.isnan(gone):
        (missing,) = node.add("ne", [x, x])
    else:
        (missing,) = node.add("eq", [x, node.constant(gone, "replaced")])
    return node.add("where", [missing, node.constant(fill, "imputed"), x])


def _feature_vectorizer(node: ImportNode) -> Sequence[str]:
    parts: list[str] = []
    for i in range(len(node.inputs)):
        x, t = _as_floats(node, i), node.type(i)
        if t.rank == 1:
            (x,) = node.add("reshape", [x], {"shape": (1, *t.shape)})
        parts.append(x)
    return parts if len(parts) == 1 else node.add("concat", parts, {"axis": 1})


_KINDS = {"int64s": np.int64, "floats": np.float32}


def _label_encoder(node: ImportNode) -> Sequence[str]:
    """Numbers for numbers: the position of an element among sorted keys, then that position's value."""
    t, x = node.type(0), node.inputs[0]
    keys, values = (_table(node, what) for what in ("keys", "values"))
    if keys.size != values.size or not keys.size or len({*keys.tolist()}) != keys.size:
        raise node.fail(
            f"{keys.size} keys for {values.size} values, or two the same: repair the model"
        )
    if np.isnan(keys.astype(np.float64)).any():
        raise node.fail("a key that is not a number equals nothing: use Imputer")
    usual = node.attr("default_tensor")
    if usual is None:
        plain = -1 if values.dtype.kind == "i" else -0.0
        usual = node.attr("default_int64" if values.dtype.kind == "i" else "default_float", plain)
    node.reserve(*t.shape, keys.size)
    (each,) = node.add("reshape", [x], {"shape": (*t.shape, 1)})
    (same,) = node.add("eq", [each, node.constant(keys.astype(t.dtype.numpy), "keys")])
    (hit,) = node.add("cast", [same], {"to": "i32"})
    axes: Attrs = {"axes": (t.rank,), "keepdims": False}
    attrs: Attrs = {"axis": t.rank, "keepdims": False, "select_last": False}
    (at,) = node.add("argmax", [hit], attrs)
    (found,) = node.add("reduce_max", [same], axes)
    (value,) = node.add("gather", [node.constant(values, "values"), at], {"axis": 0})
    other = node.constant(np.asarray(usual, values.dtype).reshape(()), "default")
    return node.add("where", [found, value, other])


def _table(node: ImportNode, what: str) -> Array:
    """Keys or values: lists of numbers, or a tensor."""
    tensor = node.attr(f"{what}_tensor")
    if tensor is not None and np.asarray(tensor).dtype.kind in "if":
        return np.asarray(tensor).reshape(-1)
    for kind, dtype in _KINDS.items():
        found = node.attr(f"{what}_{kind}")
        if found is not None:
            return np.asarray(found, dtype).reshape(-1)
    raise node.fail(f"{what} are strings, which have no tensor: use numbers")


def _linear(node: ImportNode, outputs: int) -> str:
    """x times the coefficients, one row per output, plus intercepts."""
    x, t = _as_floats(node), node.type(0)
    if t.rank == 1:
        (x,) = node.add("reshape", [x], {"shape": (1, *t.shape)})
    weights = _floats(node, "coefficients")
    features = t.shape[-1]
    if t.rank > 2 or weights.size != outputs * features:
        raise node.fail(
            f"{weights.size} coefficients for {outputs} outputs of {t}: repair the model"
        )
    columns = np.ascontiguousarray(weights.reshape(outputs, features).T)
    (y,) = node.add("matmul", [x, node.constant(columns, "coefficients")])
    start = _floats(node, "intercepts")
    if not start.size:
        return y
    if start.size != outputs:
        raise node.fail(f"{start.size} intercepts for {outputs} outputs: repair the model")
    return node.add("add", [y, node.constant(start, "intercepts")])[0]


def _linear_regressor(node: ImportNode) -> Sequence[str]:
    y = _linear(node, int(node.attr("targets", 1)))
    return [transformed(node, y, str(node.attr("post_transform", "NONE")))]


def _linear_classifier(node: ImportNode) -> Sequence[str]:
    """Scores per class, and the label of the highest."""
    if node.attr("classlabels_strings"):
        raise node.fail("labels are strings, which have no tensor: train with numbers as labels")
    labels = np.asarray(node.attr("classlabels_ints", ()), np.int64).reshape(-1)
    if (
        labels.size < 2
        or _floats(node, "coefficients").size != labels.size * node.type(0).shape[-1]
    ):
        raise node.fail(
            "one row of coefficients for each class label is wanted: export it that way"
        )
    y = _linear(node, labels.size)
    return [
        best_label(node, y, labels),
        transformed(node, y, str(node.attr("post_transform", "NONE"))),
    ]


CLASSIC: dict[str, Callable[[ImportNode], Sequence[str]]] = {
    "Scaler": _scaler,
    "Normalizer": _normalizer,
    "Imputer": _imputer,
    "FeatureVectorizer": _feature_vectorizer,
    "LabelEncoder": _label_encoder,
    "LinearRegressor": _linear_regressor,
    "LinearClassifier": _linear_classifier,
}
