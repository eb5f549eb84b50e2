"""Operators of ONNX's other domains: optimisers (ai.onnx.preview.training) and classical ML (ai.onnx.ml).

In: an `ImportNode`. Out: value names; all is composed of canonical operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.frontend.classic import CLASSIC
from tilewright.frontend.grouped_attention import grouped_attention
from tilewright.frontend.transformer import TRANSFORMERS, simplified_norm
from tilewright.frontend.trees import TREES
from tilewright.graph.ir import TensorType
from tilewright.registry import ImportNode

Importer = Callable[[ImportNode], Sequence[str]]


class _Algebra:
    """Arithmetic on values of one type; numbers become constants of that type."""

    def __init__(self, node: ImportNode, t: TensorType) -> None:
        self.node = node
        self.dtype = t.dtype.numpy

    def __call__(self, op: str, *operands: str | float) -> str:
        names = [o if isinstance(o, str) else self.number(o) for o in operands]
        return self.node.add(op, names)[0]

    def number(self, value: float) -> str:
        return self.node.constant(np.asarray(value, self.dtype), "number")

    def scalar(self, value: str) -> str:
        """A value of one element as a scalar of this type."""
        if self.node.type_of(value).shape:
            (value,) = self.node.add("reshape", [value], {"shape": ()})
        t = self.node.type_of(value)
        if t.dtype.numpy == self.dtype:
            return value
        return self.node.add("cast", [value], {"to": _short(self.dtype)})[0]


def _short(number: np.dtype[Any]) -> str:
    return f"{number.kind}{8 * number.itemsize}"


_Step = Callable[[ImportNode, _Algebra, str, str, list[str]], list[str]]


def _optimiser(states: int, step: _Step) -> Importer:
    """One step for every tensor: inputs are rate, count, tensors, gradients, then each kind of state."""

    def importer(node: ImportNode) -> Sequence[str]:
        kinds = 2 + states
        count, rest = divmod(len(node.inputs) - 2, kinds)
        if rest or count < 1:
            raise node.fail(
                f"{len(node.inputs)} inputs are not 2 and {kinds} per tensor: repair the model"
            )
        results: list[list[str]] = []
        for i in range(count):
            own = [node.inputs[2 + kind * count + i] for kind in range(kinds)]
            a = _Algebra(node, node.type_of(own[0]))
            rate, at = a.scalar(node.inputs[0]), a.scalar(node.inputs[1])
            results.append(step(node, a, rate, at, own))
        return [r[kind] for kind in range(1 + states) for r in results]

    return importer


def _regularised(node: ImportNode, a: _Algebra, x: str, gradient: str) -> str:
    return a("add", a("mul", x, float(node.attr("norm_coefficient", 0.0))), gradient)


def _adagrad(node: ImportNode, a: _Algebra, rate: str, at: str, own: list[str]) -> list[str]:
    x, gradient, squares = own
    decay = a("add", a("mul", at, float(node.attr("decay_factor", 0.0))), 1.0)
    g = _regularised(node, a, x, gradient)
    squares = a("add", squares, a("mul", g, g))
    root = a("add", a("sqrt", squares), float(node.attr("epsilon", 0.0)))
    return [a("sub", x, a("div", a("mul", a("div", rate, decay), g), root)), squares]


def _adam(node: ImportNode, a: _Algebra, rate: str, at: str, own: list[str]) -> list[str]:
    x, gradient, mean, squares = own
    alpha, beta = float(node.attr("alpha", 0.9)), float(node.attr("beta", 0.999))
    g = _regularised(node, a, x, gradient)
    mean = a("add", a("mul", mean, alpha), a("mul", g, 1 - alpha))
    squares = a("add", a("mul", squares, beta), a("mul", a("mul", g, g), 1 - beta))
    root = a("add", a("sqrt", squares), float(node.attr("epsilon", 0.0)))
    begun = a("gt", at, 0.0)
    late = a("where", begun, at, 1.0)  # at the first step nothing is corrected
    upper = a("sqrt", a("sub", 1.0, a("pow", a.number(beta), late)))
    corrected = a("div", a("mul", rate, upper), a("sub", 1.0, a("pow", a.number(alpha), late)))
    step = a("mul", a("where", begun, corrected, rate), a("div", mean, root))
    after = 1 - float(node.attr("norm_coefficient_post", 0.0))
    return [a("mul", a("sub", x, step), after), mean, squares]


def _momentum(node: ImportNode, a: _Algebra, rate: str, at: str, own: list[str]) -> list[str]:
    x, gradient, velocity = own
    alpha = float(node.attr("alpha"))
    g = _regularised(node, a, x, gradient)
    weight = a("where", a("gt", at, 0.0), a.number(float(node.attr("beta"))), 1.0)
    velocity = a("add", a("mul", velocity, alpha), a("mul", g, weight))
    step = velocity
    if node.attr("mode") == "nesterov":
        step = a("add", g, a("mul", velocity, alpha))
    return [a("sub", x, a("mul", rate, step)), velocity]


# ---------------------------------------------------------------- ai.onnx.ml


def _feature_extractor(node: ImportNode) -> Sequence[str]:
    """Columns by number."""
    t = node.type(0)
    x = node.inputs[0]
    if t.rank == 1:
        (x,) = node.add("reshape", [x], {"shape": (1, *t.shape)})
    (columns,) = node.add("reshape", [node.inputs[1]], {"shape": (node.type(1).size,)})
    return node.add("gather", [x, columns], {"axis": max(t.rank, 2) - 1})


def _binarizer(node: ImportNode) -> Sequence[str]:
    t = node.type(0)
    bound = np.asarray(node.attr("threshold", 0.0)).astype(t.dtype.numpy)
    (above,) = node.add("gt", [node.inputs[0], node.constant(bound, "threshold")])
    return node.add("cast", [above], {"to": t.dtype.name})


OTHER_DOMAINS: dict[tuple[str, str], Importer] = {
    ("ai.onnx.preview.training", "Adagrad"): _optimiser(1, _adagrad),
    ("ai.onnx.preview.training", "Adam"): _optimiser(2, _adam),
    ("ai.onnx.preview.training", "Momentum"): _optimiser(1, _momentum),
    ("ai.onnx.ml", "ArrayFeatureExtractor"): _feature_extractor,
    ("ai.onnx.ml", "Binarizer"): _binarizer,
    **{("ai.onnx.ml", name): importer for name, importer in {**TREES, **CLASSIC}.items()},
    ("", "SimplifiedLayerNormalization"): simplified_norm,
    **{("com.microsoft", name): importer for name, importer in TRANSFORMERS.items()},
    ("com.microsoft", "GroupQueryAttention"): grouped_attention,
}
