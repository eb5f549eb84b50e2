"""Remove nodes that change nothing, and merge chains of views.

    reshape(reshape(x))        -> reshape(x)          transpose(transpose(x)) -> transpose(x)
    x + 0, x * 1, x / 1, same-type cast, same-shape reshape, expand or slice  -> x
    where(constant all true, a, b) -> a               concat(x[:, a:b], x[:, b:c]) -> x[:, a:c]
    where(isnan(softmax(..)), c, softmax(..)) is left alone: NaN inputs would show a difference
Every rewrite is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.graph.ir import Graph, Node, TensorType


def simplify(graph: Graph) -> Graph:
    """One sweep over the nodes."""
    g = graph.clone()
    made: dict[str, Node] = {}
    same: dict[str, str] = {}
    kept: list[Node] = []
    for old in g.nodes:
        node = old.with_(inputs=tuple(same.get(i, i) for i in old.inputs))
        source = _identity(g, node)
        if source is not None:
            same[node.outputs[0]] = source
            continue
        rule = _MERGES.get(node.op)
        if rule is not None:
            node = rule(g, node, made)
            source = _identity(g, node)
            if source is not None:
                same[node.outputs[0]] = source
                continue
        kept.append(node)
        made.update((o, node) for o in node.outputs)
    g.nodes = kept
    g.outputs = [same.get(o, o) for o in g.outputs]
    return g


def _identity(g: Graph, node: Node) -> str | None:
    """The value that `node` merely repeats, if so."""
    if len(node.outputs) != 1 or not node.inputs:
        return None
    out = g.types[node.outputs[0]]
    x = node.inputs[0]
    if node.op in ("reshape", "expand", "cast", "tile", "slice") and g.types[x] == out:
        steps = node.attrs.get("steps", ())
        return x if not steps or all(s == 1 for s in steps) else None  # type: ignore[union-attr]
    if node.op == "transpose" and node.attrs["perm"] == tuple(range(out.rank)):
        return x
    if node.op == "concat" and len(node.inputs) == 1:
        return x
    if node.op in _NEUTRAL:
        return _neutral_operand(g, node, out)
    if node.op == "where":
        cond = g.constants.get(node.inputs[0])
        if cond is not None and (cond.all() or not cond.any()):
            chosen = node.inputs[1] if cond.all() else node.inputs[2]
            return chosen if g.types[chosen] == out else None
    return None


#: operator -> (neutral value, whether the left operand may be the neutral one)
_NEUTRAL: dict[str, tuple[float, bool]] = {
    "add": (-0.0, True), "sub": (0.0, False), "mul": (1.0, True), "div": (1.0, False),
}  # fmt: skip


def _neutral_operand(g: Graph, node: Node, out: TensorType) -> str | None:
    value, commutes = _NEUTRAL[node.op]
    for i, other in ((1, 0), (0, 1)) if commutes else ((1, 0),):
        c = g.constants.get(node.inputs[i])
        if c is None or g.types[node.inputs[other]] != out:
            continue
        # x + 0 turns -0.0 into +0.0: only -0.0 is neutral for floats, any 0 for integers
        exact = np.signbit(c).all() if node.op == "add" and out.dtype.is_float else True
        if (c == value).all() and exact:
            return node.inputs[other]
    return None


def _merge_reshape(g: Graph, node: Node, made: dict[str, Node]) -> Node:
    inner = made.get(node.inputs[0])
    if inner is not None and inner.op == "reshape":
        return node.with_(inputs=inner.inputs)
    return node


def _merge_transpose(g: Graph, node: Node, made: dict[str, Node]) -> Node:
    inner = made.get(node.inputs[0])
    if inner is None or inner.op != "transpose":
        return node
    first, second = inner.attrs["perm"], node.attrs["perm"]
    perm = tuple(first[p] for p in second)  # type: ignore[index, union-attr]
    return node.with_(inputs=inner.inputs, attrs={"perm": perm})


def _merge_concat(g: Graph, node: Node, made: dict[str, Node]) -> Node:
    """Neighbouring slices of one value become one slice."""
    axis = int(node.attrs["axis"])  # type: ignore[arg-type]
    parts: list[str] = []
    spans: list[tuple[str, int, int] | None] = []
    for name in node.inputs:
        span = _span(g, made.get(name), axis)
        last = spans[-1] if spans else None
        if span and last and span[0] == last[0] and span[1] == last[2]:
            whole = (span[0], last[1], span[2])
            spans[-1] = whole
            parts[-1] = ""
            continue
        spans.append(span)
        parts.append(name)
    inputs: list[str] = []
    for name, span in zip(parts, spans, strict=True):
        if name:
            inputs.append(name)
        elif span and (span[1], span[2]) == (0, g.types[span[0]].shape[axis]):
            inputs.append(span[0])
        else:
            return node  # part of a value: a slice node would have to be made; not worth it
    return node.with_(inputs=tuple(inputs))


def _span(g: Graph, node: Node | None, axis: int) -> tuple[str, int, int] | None:
    """(value, start, end) if `node` is a plain slice along `axis` only."""
    if node is None or node.op != "slice":
        return None
    shape = g.types[node.inputs[0]].shape
    starts, ends, steps = (node.attrs[k] for k in ("starts", "ends", "steps"))
    for d, n in enumerate(shape):
        if steps[d] != 1 or (d != axis and (starts[d], ends[d]) != (0, n)):  # type: ignore[index]
            return None
    return node.inputs[0], int(starts[axis]), int(ends[axis])  # type: ignore[index]


_MERGES: dict[str, Callable[[Graph, Node, dict[str, Node]], Node]] = {
    "reshape": _merge_reshape,
    "transpose": _merge_transpose,
    "concat": _merge_concat,
}
