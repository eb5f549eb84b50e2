"""A graph at any point of its sizes, from the same graph at some points.

In: graphs with the same nodes at known points, another point. Out: the graph there, with those nodes.
Invariant: dims and numbers in attributes follow forms that fit all known points; types are those that
operators infer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.core.index import evaluate
from tilewright.core.sizes import Point, fit
from tilewright.errors import ModelError
from tilewright.graph.interp import run
from tilewright.graph.ir import Array, AttrValue, Graph, Node, TensorType
from tilewright.graph.verify import verify

#: Share of the largest magnitude that results of two ways to compute may differ by; both add in float64.
TOLERANCE = 1e-5


class NoForm(ModelError):
    """A number that is no form of the sizes."""


def differs(bound: Graph, other: Graph) -> tuple[str, str] | None:
    """(what, how) of the first difference that no form of the sizes can express; None if there is none."""
    for a, b in zip(bound.nodes, other.nodes, strict=False):
        if (a.op, a.name, a.inputs, a.outputs, [*a.attrs]) != (
            b.op, b.name, b.inputs, b.outputs, [*b.attrs]
        ):  # fmt: skip
            return f"node `{a.name}` ({a.op})", "it is another node"
    if len(bound.nodes) != len(other.nodes) or bound.outputs != other.outputs:
        return "the model", "it has other nodes"
    for name, array in bound.constants.items():
        mine = other.constants.get(name)
        if mine is None or mine.dtype != array.dtype or mine.ndim != array.ndim:
            return f"constant `{name}`", "it is another"
        if array.size == 1 and mine.size == 1:
            continue  # a literal in the code
        inside = all(n <= m for n, m in zip(mine.shape, array.shape, strict=True))
        if not inside or not _equal(_corner(array, mine.shape), mine):
            return f"constant `{name}`", "its values are others"
    return None


def instance(graphs: Sequence[Graph], points: Sequence[Point], at: Point) -> Graph:
    """The graph at point `at`; raises `ModelError` or `IRError` where the forms do not hold there."""
    bound = graphs[0]

    def number(values: Sequence[int], what: str) -> int:
        form = fit(points, values)
        if form is None:
            raise NoForm(f"{what} is no linear form of the sizes")
        return evaluate(form, at)

    out = bound.clone()
    makers = bound.producers()
    for name, t in bound.types.items():
        what = f"a dim of `{name}`"
        if name in makers:
            what = f"a dim of what node `{makers[name].name}` ({makers[name].op}) computes"
        rows = zip(*(g.types[name].shape for g in graphs), strict=True)
        out.types[name] = TensorType(t.dtype, tuple(number(r, what) for r in rows))
    for name, array in bound.constants.items():
        out.constants[name] = _corner(array, out.types[name].shape)
        values = [g.constants[name] for g in graphs]
        if array.size == 1 and any(not _equal(v, array) for v in values):
            whole = [int(v.reshape(-1)[0]) for v in values]
            if any(w != v.reshape(-1)[0] for w, v in zip(whole, values, strict=True)):
                raise NoForm(f"constant `{name}` is no linear form of the sizes")
            out.constants[name] = np.full_like(array, number(whole, f"constant `{name}`"))
    out.nodes = [
        n.with_(attrs=_attributes(n, [g.nodes[i] for g in graphs], number))
        for i, n in enumerate(bound.nodes)
    ]
    verify(out)
    return out


def _attributes(bound: Node, nodes: Sequence[Node], number: Any) -> dict[str, AttrValue]:
    out: dict[str, AttrValue] = {}
    for key, value in bound.attrs.items():
        values: list[Any] = [n.attrs[key] for n in nodes]
        what = f"attribute `{key}` of node `{bound.name}`"
        if all(v == value for v in values):
            out[key] = value
        elif all(type(v) is int for v in values):
            out[key] = number(values, what)
        elif isinstance(value, tuple) and all(
            len(v) == len(value) and all(type(x) is int for x in v) for v in values
        ):
            out[key] = tuple(number(r, what) for r in zip(*values, strict=True))
        else:
            raise NoForm(f"{what} is no linear form of the sizes")
    return out


def numbers_differ(mine: Graph, other: Graph) -> tuple[str, str] | None:
    """The first type or attribute of two graphs with the same nodes that is not the same."""
    for name, t in mine.types.items():
        if name in other.types and other.types[name] != t:
            return f"value `{name}`", f"it is {other.types[name]} and not {t}"
    for a, b in zip(mine.nodes, other.nodes, strict=True):
        if dict(a.attrs) != dict(b.attrs):
            return f"node `{a.name}` ({a.op})", "its attributes are others"
    return None


def results_differ(mine: Graph, other: Graph, seed: int = 0) -> str:
    """Run two graphs on the same random inputs: the output that differs, empty if none does."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for name in mine.inputs:
        t = mine.types[name]
        if other.types.get(name) != t:
            return f"input `{name}`"
        x = rng.standard_normal(t.shape) if t.dtype.is_float else rng.integers(0, 2, t.shape)
        inputs[name] = np.asarray(x).astype(t.dtype.numpy)
    want, got = run(other, inputs), run(mine, inputs)
    for (a, x), (_, y) in zip(want.items(), got.items(), strict=True):
        if x.shape != y.shape:
            return f"output `{a}`"
        if x.size and not np.allclose(
            x.astype(np.float64), y.astype(np.float64), equal_nan=True, rtol=0,
            atol=TOLERANCE * max(float(np.abs(x.astype(np.float64)).max()), 1e-30),
        ):  # fmt: skip
            return f"output `{a}`"
    return ""


def _corner(array: Array, shape: Sequence[int]) -> Array:
    return np.ascontiguousarray(array[tuple(slice(0, n) for n in shape)]).reshape(tuple(shape))


def _equal(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
