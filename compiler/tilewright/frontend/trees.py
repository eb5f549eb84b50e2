"""Ensembles of decision trees (ai.onnx.ml TreeEnsemble, TreeEnsembleRegressor, TreeEnsembleClassifier).

In: an `ImportNode`. Out: value names; all is composed of canonical operators.
All trees of all rows walk together: a tensor [rows, trees] holds the node that each tree has reached, and a level of
the deepest tree is a few gathers and a comparison. A leaf is its own successor, so trees may differ in depth. That has
no branches, any number of rows fills vectors, and memory is known beforehand.
Invariant: every number of a child, feature or target that a file states is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.frontend.scores import transformed
from tilewright.graph.ir import Array
from tilewright.registry import ImportNode

#: Comparisons in the order of TreeEnsemble's numbers, by the name that the older operators use.
_MODES = (
    "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER",
)  # fmt: skip
_COMPARE = ("le", "lt", "ge", "gt", "eq", "ne")
_MEMBER = _MODES.index("BRANCH_MEMBER")
#: A tree that is deeper has a cycle, or would take more memory passes than its answer is worth.
_MOST_LEVELS = 256


@dataclass(slots=True)
class Forest:
    """All nodes of all trees in one numbering; leaves are their own successors."""

    roots: Array
    feature: Array
    split: Array
    mode: Array
    yes: Array
    no: Array
    missing: Array
    """Whether a feature that is not a number goes to `yes`."""
    members: dict[int, Array]
    """Per node of mode member: the set."""
    inner: Array
    """Whether a node compares."""


def _numbers(node: ImportNode, name: str, count: int | None = None) -> Array:
    """A list of whole numbers, of `count` if that is known."""
    found = np.asarray(node.attr(name, ()), np.int64).reshape(-1)
    if count is not None and found.size != count:
        raise node.fail(f"`{name}` has {found.size} numbers, not {count}: repair the model")
    return found


def _check(node: ImportNode, what: str, numbers: Array, count: int) -> None:
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
        raise node.fail(f"a {what} is not among the {count} there are: repair the model")


def _levels(node: ImportNode, forest: Forest) -> int:
    """Comparisons on the longest way from a root to a leaf."""
    front, levels = np.unique(forest.roots[forest.inner[forest.roots]]), 0
    while front.size:
        levels += 1
        if levels > _MOST_LEVELS:
            raise node.fail(f"a tree has more than {_MOST_LEVELS} levels: repair or prune it")
        front = np.unique(np.concatenate([forest.yes[front], forest.no[front]]))
        front = front[forest.inner[front]]
    return levels


def _reached(forest: Forest) -> int:
    """How many nodes ways from the roots lead to."""
    seen = np.zeros(forest.inner.size, bool)
    front = forest.roots
    while front.size:
        seen[front] = True
        front = front[forest.inner[front]]
        front = np.unique(np.concatenate([forest.yes[front], forest.no[front]]))
        front = front[~seen[front]]
    return int(seen.sum())


def _features(node: ImportNode) -> str:
    """The rows as floats [rows, features]."""
    t, x = node.type(0), node.inputs[0]
    if t.rank not in (1, 2):
        raise node.fail(f"trees over {t}: rows of features are wanted")
    if t.rank == 1:
        (x,) = node.add("reshape", [x], {"shape": (1, *t.shape)})
    if t.dtype.name not in ("f32", "f64"):
        (x,) = node.add("cast", [x], {"to": "f32"})
    return x


def _walk(node: ImportNode, forest: Forest, x: str) -> str:
    """i64[rows, trees]: the leaves that are reached."""
    t = node.type_of(x)
    rows, features = t.shape
    own = forest.inner
    _check(node, "feature", forest.feature[own], features)
    modes = sorted({int(m) for m in forest.mode[own]})
    node.reserve(rows, forest.roots.size)
    at = node.constant(np.tile(forest.roots, (rows, 1)), "roots")
    levels = _levels(node, forest)
    feature = node.constant(np.where(own, forest.feature, 0), "features")
    split = node.constant(forest.split.astype(t.dtype.numpy), "splits")
    yes, no = node.constant(forest.yes, "yes"), node.constant(forest.no, "no")
    for _ in range(levels):
        (column,) = node.add("gather", [feature, at], {"axis": 0})
        (value,) = node.add("gather_elements", [x, column], {"axis": 1})
        (bound,) = node.add("gather", [split, at], {"axis": 0})
        taken = _taken(node, forest, modes, at, value, bound)
        if forest.missing[own].any():
            (strays,) = node.add(
                "gather", [node.constant(forest.missing, "missing"), at], {"axis": 0}
            )
            (nothing,) = node.add("ne", [value, value])
            (strays,) = node.add("and", [strays, nothing])
            (taken,) = node.add("or", [taken, strays])
        (left,) = node.add("gather", [yes, at], {"axis": 0})
        (right,) = node.add("gather", [no, at], {"axis": 0})
        (at,) = node.add("where", [taken, left, right])
    return at


def _taken(
    node: ImportNode, forest: Forest, modes: Sequence[int], at: str, value: str, bound: str
) -> str:
    """bool[rows, trees]: whether the comparison of the node that is reached holds."""
    results: list[str] = []
    for mode in modes:
        if mode == _MEMBER:
            results.append(_is_member(node, forest, at, value))
        else:
            results += node.add(_COMPARE[mode], [value, bound])
    if len(results) == 1:
        return results[0]
    (kind,) = node.add("gather", [node.constant(forest.mode, "modes"), at], {"axis": 0})
    taken = results[0]
    for mode, result in zip(modes[1:], results[1:], strict=True):
        (mine,) = node.add("eq", [kind, node.constant(np.asarray(mode, np.int64), "mode")])
        (taken,) = node.add("where", [mine, result, taken])
    return taken


def _is_member(node: ImportNode, forest: Forest, at: str, value: str) -> str:
    """Whether the value is one of the set of the node that is reached: sets are filled up with what equals nothing."""
    t = node.type_of(value)
    width = max(1, *(s.size for s in forest.members.values()))
    node.reserve(forest.mode.size, width)
    sets = np.full((forest.mode.size, width), np.nan, t.dtype.numpy)
    for i, members in forest.members.items():
        sets[i, : members.size] = members
    (mine,) = node.add("gather", [node.constant(sets, "members"), at], {"axis": 0})
    (value,) = node.add("reshape", [value], {"shape": (*t.shape, 1)})
    (same,) = node.add("eq", [value, mine])
    return node.add("reduce_max", [same], {"axes": (2,), "keepdims": False})[0]


def _collected(
    node: ImportNode, leaves: str, weights: Array, given: Array, how: str, dtype: str
) -> str:
    """[rows, targets]: what the leaves give to each target. `weights` and whether they are `given`: per node and
    target."""
    numbers = weights.astype(np.float64 if dtype == "f64" else np.float32)
    if how in ("MIN", "MAX"):
        numbers = np.where(given, numbers, np.inf if how == "MIN" else -np.inf).astype(
            numbers.dtype
        )
    (each,) = node.add("gather", [node.constant(numbers, "leaves"), leaves], {"axis": 0})
    op = {"MIN": "reduce_min", "MAX": "reduce_max"}.get(how, "reduce_sum")
    (total,) = node.add(op, [each], {"axes": (1,), "keepdims": False})
    if how == "AVERAGE":
        trees = node.type_of(leaves).shape[1]
        (total,) = node.add(
            "div", [total, node.constant(np.asarray(trees, numbers.dtype), "trees")]
        )
    if how in ("MIN", "MAX"):  # a target to which no leaf gave anything
        (size,) = node.add("abs", [total])
        (none,) = node.add("eq", [size, node.constant(np.asarray(np.inf, numbers.dtype), "none")])
        (total,) = node.add(
            "where", [none, node.constant(np.zeros((), numbers.dtype), "zero"), total]
        )
    return total


# ---------------------------------------------------------------- TreeEnsemble


def tree_ensemble(node: ImportNode) -> Sequence[str]:
    """The operator since version 5: comparisons and leaves in tables of their own."""
    feature = _numbers(node, "nodes_featureids")
    n = feature.size
    modes = np.asarray(node.attr("nodes_modes"), np.int64).reshape(-1)
    split = np.asarray(node.attr("nodes_splits"), np.float64).reshape(-1)
    weights = np.asarray(node.attr("leaf_weights"), np.float64).reshape(-1)
    count = weights.size
    if (
        modes.size != n
        or split.size != n
        or not 0 <= modes.min(initial=0) <= modes.max(initial=0) <= _MEMBER
    ):
        raise node.fail(f"modes or splits do not fit the {n} nodes: repair the model")

    def children(which: str) -> Array:
        to, leaf = (
            _numbers(node, f"nodes_{which}nodeids", n),
            _numbers(node, f"nodes_{which}leafs", n),
        )
        _check(node, "leaf", to[leaf != 0], count)
        _check(node, "node", to[leaf == 0], n)
        return np.concatenate([np.where(leaf != 0, to + n, to), np.arange(n, n + count)])

    missing = _numbers(node, "nodes_missing_value_tracks_true")
    _check(node, "root", _numbers(node, "tree_roots"), n)
    forest = Forest(
        _numbers(node, "tree_roots"), _padded(feature, count), _padded(split, count),
        _padded(modes, count), children("true"), children("false"),
        _padded((missing if missing.size == n else np.zeros(n)) != 0, count),
        _member_sets(node, modes), _padded(np.ones(n, bool), count),
    )  # fmt: skip
    targets, each = int(node.attr("n_targets", 1)), _numbers(node, "leaf_targetids", count)
    _check(node, "target", each, targets)
    node.reserve(n + count, targets)
    table = np.zeros((n + count, targets))
    table[n + np.arange(count), each] = weights
    given = np.zeros(table.shape, bool)
    given[n + np.arange(count), each] = True
    x = _features(node)
    how = ("AVERAGE", "SUM", "MIN", "MAX")[int(node.attr("aggregate_function", 1))]
    kind = "f64" if node.type_of(x).dtype.name == "f64" else "f32"
    scores = _collected(node, _walk(node, forest, x), table, given, how, kind)
    names = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
    return [transformed(node, scores, names[int(node.attr("post_transform", 0))])]


def _padded(a: Array, count: int) -> Array:
    return np.concatenate([a, np.zeros(count, a.dtype)])


def _member_sets(node: ImportNode, modes: Array) -> dict[int, Array]:
    """The sets, each closed by a NaN, in the order of the nodes that test membership."""
    tests = np.flatnonzero(modes == _MEMBER)
    listed = np.asarray(node.attr("membership_values", ()), np.float64).reshape(-1)
    ends = np.flatnonzero(np.isnan(listed))
    sets = np.split(listed, ends + 1)
    if len(sets) < tests.size:
        raise node.fail(f"{len(sets)} sets for {tests.size} tests of membership: repair the model")
    return {int(i): s[~np.isnan(s)] for i, s in zip(tests, sets, strict=False)}


# ---------------------------------------------------------------- before version 5


def _forest(node: ImportNode) -> tuple[Forest, dict[tuple[int, int], int]]:
    """The nodes of TreeEnsembleRegressor and TreeEnsembleClassifier, and their numbers by (tree, node)."""
    trees, ids = _numbers(node, "nodes_treeids"), _numbers(node, "nodes_nodeids")
    n = trees.size
    known = {(int(t), int(i)): k for k, (t, i) in enumerate(zip(trees, ids, strict=False))}
    if ids.size != n or len(known) != n:
        raise node.fail("two nodes of a tree have one number: repair the model")
    kinds = [str(m) for m in node.attr("nodes_modes", ())]
    if len(kinds) != n or not set(kinds) <= {*_MODES[:_MEMBER], "LEAF"}:
        raise node.fail(f"nodes_modes are not those of {n} nodes: repair the model")
    inner = np.array([k != "LEAF" for k in kinds], bool)

    def children(which: str) -> Array:
        to, out = _numbers(node, f"nodes_{which}nodeids", n), np.arange(n)
        for k in np.flatnonzero(inner):
            child = known.get((int(trees[k]), int(to[k])))
            if child is None:
                raise node.fail(f"tree {trees[k]} has no node {to[k]}: repair the model")
            out[k] = child
        return out

    missing = _numbers(node, "nodes_missing_value_tracks_true")
    split = _floats(node, "nodes_values")
    if split.size != n:
        raise node.fail(f"{split.size} splits for {n} nodes: repair the model")
    yes, no = children("true"), children("false")
    aims = set(yes[inner].tolist()) | set(no[inner].tolist())
    roots = [known[t, i] for t, i in known if known[t, i] not in aims]
    forest = Forest(
        np.asarray(roots, np.int64), _numbers(node, "nodes_featureids", n), split,
        np.array([_MODES.index(k) if k != "LEAF" else 0 for k in kinds], np.int64), yes, no,
        (missing if missing.size == n else np.zeros(n)) != 0, {}, inner,
    )  # fmt: skip
    if len(roots) != len(set(trees.tolist())) or _reached(forest) != n:
        raise node.fail(
            "a tree is none: it has not one root that leads to all nodes; repair the model"
        )
    return forest, known


def _floats(node: ImportNode, name: str) -> Array:
    """A list of floats, or the tensor of the same name."""
    found = node.attr(f"{name}_as_tensor")
    return np.asarray(node.attr(name, ()) if found is None else found, np.float64).reshape(-1)


def _leaf_table(
    node: ImportNode, known: dict[tuple[int, int], int], what: str, targets: int
) -> tuple[Array, Array]:
    """(weights, whether given) per node and target, of attributes that begin with `what`."""
    weights = _floats(node, f"{what}_weights")
    trees, ids, each = (
        _numbers(node, f"{what}_{n}", weights.size) for n in ("treeids", "nodeids", "ids")
    )
    _check(node, "target", each, targets)
    node.reserve(len(known), targets)
    table, given = np.zeros((len(known), targets)), np.zeros((len(known), targets), bool)
    for t, i, target, weight in zip(trees, ids, each, weights, strict=True):
        at = known.get((int(t), int(i)))
        if at is None:
            raise node.fail(f"tree {t} has no leaf {i}: repair the model")
        table[at, target] += weight
        given[at, target] = True
    return table, given


def tree_regressor(node: ImportNode) -> Sequence[str]:
    """Numbers of the leaves, aggregated per target."""
    forest, known = _forest(node)
    targets = int(node.attr("n_targets", 1))
    table, given = _leaf_table(node, known, "target", targets)
    leaves = _walk(node, forest, _features(node))
    scores = _collected(
        node, leaves, table, given, str(node.attr("aggregate_function", "SUM")), "f32"
    )
    scores = _based(node, scores, targets)
    return [transformed(node, scores, str(node.attr("post_transform", "NONE")))]


def _based(node: ImportNode, scores: str, targets: int) -> str:
    base = _floats(node, "base_values")
    if not base.size:
        return scores
    if base.size not in (1, targets):
        raise node.fail(f"{base.size} base values for {targets} targets: repair the model")
    return node.add("add", [scores, node.constant(base.astype(np.float32), "base")])[0]


def tree_classifier(node: ImportNode) -> Sequence[str]:
    """Scores per class, and the label of the best.

    Two classes of which only the first has weights are one score s: of the second class, of probability s where no weight is negative,
    else with the sign that decides.
    """
    labels = _labels(node)
    forest, known = _forest(node)
    table, given = _leaf_table(node, known, "class", labels.size)
    leaves = _walk(node, forest, _features(node))
    transform = str(node.attr("post_transform", "NONE"))
    if labels.size == 2 and not given[:, 1].any():
        one = _collected(node, leaves, table[:, :1], given[:, :1], "SUM", "f32")
        one = _based(node, one, 1)
        sure = bool((table >= 0).all())
        limit = node.constant(np.asarray(0.5 if sure else 0.0, np.float32), "limit")
        (second,) = node.add("gt", [one, limit])
        (second,) = node.add("reshape", [second], {"shape": node.type_of(one).shape[:1]})
        both = (node.constant(np.asarray(v), "label") for v in labels[::-1])
        (label,) = node.add("where", [second, *both])
        if sure:
            (other,) = node.add("sub", [node.constant(np.asarray(1, np.float32), "one"), one])
        else:
            (other,) = node.add("neg", [one])
            if transform == "LOGISTIC":
                one, other = node.add("sigmoid", [one])[0], node.add("sigmoid", [other])[0]
            elif transform != "NONE":
                raise node.fail(f"{transform} of one score for two classes: use NONE or LOGISTIC")
        return [label, *node.add("concat", [other, one], {"axis": 1})]
    scores = _collected(node, leaves, table, given, "SUM", "f32")
    scores = _based(node, scores, labels.size)
    return [best_label(node, scores, labels), transformed(node, scores, transform)]


def _labels(node: ImportNode, name: str = "classlabels_int64s") -> Array:
    if node.attr(name.replace("int64s", "strings").replace("ints", "strings")):
        raise node.fail("labels are strings, which have no tensor: train with numbers as labels")
    labels = _numbers(node, name)
    if labels.size < 2:
        raise node.fail(f"{labels.size} class labels: two or more are wanted")
    return labels


def best_label(node: ImportNode, scores: str, labels: Array) -> str:
    """i64[rows]: the label of the highest score, the first of several."""
    attrs: dict[str, Any] = {"axis": 1, "keepdims": False, "select_last": False}
    (best,) = node.add("argmax", [scores], attrs)
    return node.add("gather", [node.constant(labels, "labels"), best], {"axis": 0})[0]


TREES: dict[str, Callable[[ImportNode], Sequence[str]]] = {
    "TreeEnsemble": tree_ensemble,
    "TreeEnsembleRegressor": tree_regressor,
    "TreeEnsembleClassifier": tree_classifier,
}
