"""Einsum as transposes, products and sums.

In: an Einsum node with any number of operands. Out: movement, `matmul`, `mul` and `reduce_sum` nodes.
Invariant: labels that only one operand has and the result has not are summed first; then operands are
multiplied in pairs, each pair by one batched matrix product, so that no intermediate has more dims than the
labels that are still needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from tilewright.registry import ImportNode


@dataclass(frozen=True, slots=True)
class _Term:
    """A value whose dims are called `labels`, each at most once."""

    value: str
    labels: str


def einsum(node: ImportNode) -> Sequence[str]:
    """Terms and result of the equation, dims of an ellipsis named by digits."""
    equation = str(node.attr("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs) or right.count("...") > 1:
        raise node.fail(f"equation {equation} does not fit {len(node.inputs)} operands: repair it")
    spans = [_span(node, i, t, equation) for i, t in enumerate(terms)]
    most = max(spans, default=0)
    dims = "0123456789"[:most]
    full = [t.replace("...", dims[most - n :]) for t, n in zip(terms, spans, strict=True)]
    if arrow:
        result = right.replace("...", dims)
    else:  # the ellipsis, then what occurs once, in alphabetical order
        counts = Counter("".join(full))
        once = sorted(c for c in counts if counts[c] == 1 and c.isalpha())
        result = dims + "".join(once)
    if len(set(result)) != len(result) or not set(result) <= set("".join(full)):
        raise node.fail(f"equation {equation}: the result {right} is not possible, repair it")
    sizes = _sizes(node, full, equation)
    parts = [_prepared(node, node.inputs[i], t, sizes) for i, t in enumerate(full)]
    while len(parts) > 1:
        a, b, *rest = parts
        needed = {*result, *"".join(p.labels for p in rest)}
        parts = [
            _multiplied(
                node,
                _summed(node, a, {*needed, *b.labels}),
                _summed(node, b, {*needed, *a.labels}),
                needed,
            ),
            *rest,
        ]
    last = _summed(node, parts[0], set(result))
    y = _ordered(node, last, "".join(c for c in result if c in last.labels))
    shape = tuple(sizes[c] for c in result)
    same = node.type_of(y).shape == shape
    return [y] if same else node.add("expand", [y], {"shape": shape})


def _span(node: ImportNode, i: int, term: str, equation: str) -> int:
    """How many dims the ellipsis of a term stands for."""
    letters = term.replace("...", "", 1)
    rank = node.type(i).rank
    fits = rank >= len(letters) if "..." in term else rank == len(letters)
    if not fits or not all(c.isalpha() for c in letters) or rank - len(letters) > 10:
        raise node.fail(
            f"equation {equation}: {term} does not fit {node.type(i)}, repair the model"
        )
    return rank - len(letters)


def _sizes(node: ImportNode, terms: Sequence[str], equation: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for i, t in enumerate(terms):
        for c, n in zip(t, node.type(i).shape, strict=True):
            known = sizes.setdefault(c, n)
            if known == 1:
                sizes[c] = n
            elif n not in (1, known):
                raise node.fail(f"equation {equation}: {c} is {known} and {n}, repair the model")
    return sizes


def _prepared(node: ImportNode, value: str, term: str, sizes: dict[str, int]) -> _Term:
    """Without repeated labels (diagonals) and without dims of 1 that others stretch."""
    while repeated := next((c for c in term if term.count(c) > 1), None):
        value, term = _diagonal(node, value, term, repeated)
    shape = node.type_of(value).shape
    kept = [d for d, c in enumerate(term) if shape[d] == sizes[c]]
    if len(kept) < len(term):
        (value,) = node.add("reshape", [value], {"shape": tuple(shape[d] for d in kept)})
    return _Term(value, "".join(term[d] for d in kept))


def _diagonal(node: ImportNode, value: str, term: str, label: str) -> tuple[str, str]:
    """The elements whose first two indices called `label` are equal: every (n + 1)-th of a plane."""
    i = term.index(label)
    j = term.index(label, i + 1)
    rest = [d for d in range(len(term)) if d not in (i, j)]
    shape = node.type_of(value).shape
    n = shape[i]
    (value,) = node.add("transpose", [value], {"perm": (*rest, i, j)})
    lead = tuple(shape[d] for d in rest)
    (value,) = node.add("reshape", [value], {"shape": (*lead, n * n)})
    cut = {
        "starts": (0,) * (len(lead) + 1), "ends": (*lead, n * n), "steps": (*(1,) * len(lead), n + 1)
    }  # fmt: skip
    (value,) = node.add("slice", [value], cut)
    return value, "".join(term[d] for d in rest) + label


def _summed(node: ImportNode, term: _Term, needed: Collection[str]) -> _Term:
    """Summed over labels that nothing else needs."""
    axes = tuple(d for d, c in enumerate(term.labels) if c not in needed)
    if not axes:
        return term
    (value,) = node.add("reduce_sum", [term.value], {"axes": axes, "keepdims": False})
    return _Term(value, "".join(c for c in term.labels if c in needed))


def _ordered(node: ImportNode, term: _Term, labels: str) -> str:
    perm = tuple(term.labels.index(c) for c in labels)
    if perm == tuple(range(len(perm))):
        return term.value
    return node.add("transpose", [term.value], {"perm": perm})[0]


def _multiplied(node: ImportNode, a: _Term, b: _Term, needed: Collection[str]) -> _Term:
    """The product of two terms, summed over what both have and nothing else needs."""
    shared = [c for c in a.labels if c in b.labels]
    batch = "".join(c for c in shared if c in needed)
    sums = "".join(c for c in shared if c not in needed)
    rows = "".join(c for c in a.labels if c not in shared)
    columns = "".join(c for c in b.labels if c not in shared)
    sizes = dict(zip(a.labels, node.type_of(a.value).shape, strict=True))
    sizes.update(zip(b.labels, node.type_of(b.value).shape, strict=True))

    def shaped(term: _Term, *groups: str) -> str:
        value = _ordered(node, term, "".join(groups))
        shape = tuple(prod(sizes[c] for c in g) for g in groups[1:])
        whole = (*(sizes[c] for c in groups[0]), *shape)
        same = node.type_of(value).shape == whole
        return value if same else node.add("reshape", [value], {"shape": whole})[0]

    if sums:
        left, right = shaped(a, batch, rows, sums), shaped(b, batch, sums, columns)
        (y,) = node.add("matmul", [left, right])
    else:  # nothing to sum: an outer product
        left = shaped(a, batch, rows, "")
        right = shaped(b, batch, "", columns)
        (y,) = node.add("mul", [left, right])
    labels = batch + rows + columns
    shape = tuple(sizes[c] for c in labels)
    if node.type_of(y).shape != shape:
        (y,) = node.add("reshape", [y], {"shape": shape})
    return _Term(y, labels)
