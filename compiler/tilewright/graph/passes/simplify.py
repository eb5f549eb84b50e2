"""Remove nodes that change nothing, and merge chains of views.

    reshape(reshape(x))        -> reshape(x)          transpose(transpose(x)) -> transpose(x)
    x + -0, x * 1, x / 1, same-type cast, same-shape reshape, expand or slice, pad by 0  -> x
    where(constant all true, a, b) -> a               concat(x[:, a:b], x[:, b:c]) -> x[:, a:c]
    reduction over dims of 1   -> reshape(x)          pooling by 1 x 1, resize by 1  -> x
    relu(relu(x))              -> relu(x)             x + expand(y)                  -> x + y

Every rewrite is exact. where(isnan(softmax(..)), c, softmax(..)) is left alone: a NaN in the input
would show a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.graph.passes._values import forward, non_negative
from tilewright.registry import operator


def simplify(graph: Graph) -> Graph:
    """One sweep over the nodes."""
    g = graph.clone()
    made: dict[str, Node] = {}
    same: dict[str, str] = {}
    kept: list[Node] = []
    for old in g.nodes:
        node = old.with_(inputs=tuple(same.get(i, i) for i in old.inputs))
        rule = _MERGES.get(node.op)
        if rule is not None:
            node = rule(g, node, made)
        node = _without_expand(g, node, made)
        source = _identity(g, node, made)
        if source is not None:
            same[node.outputs[0]] = source
            continue
        kept.append(node)
        made.update((o, node) for o in node.outputs)
    g.nodes = kept
    forward(g, same)
    g.drop_unused()
    return g


# ---------------------------------------------------------------- identities


def _identity(g: Graph, node: Node, made: Mapping[str, Node]) -> str | None:
    """The value that `node` merely repeats, if so."""
    if len(node.outputs) != 1 or not node.inputs:
        return None
    out = g.types[node.outputs[0]]
    x = node.inputs[0]
    if node.op == "where":
        return _known_choice(g, node, out)
    if node.op in _NEUTRAL:
        return _neutral_operand(g, node, out)
    if node.op == "concat":
        return _only_part(g, node, out)
    if g.types[x] != out:
        return None
    if node.op == "relu":
        return x if non_negative(made.get(x)) else None
    test = _IDENTITIES.get(node.op)
    return x if test is not None and test(node) else None


#: operator -> whether a node that keeps the type of its input also keeps its value
_IDENTITIES: dict[str, Callable[[Node], bool]] = {
    "reshape": lambda n: True,
    "expand": lambda n: True,
    "cast": lambda n: True,
    "tile": lambda n: True,
    "slice": lambda n: _all(n, "steps", 1),
    "pad": lambda n: _all(n, "before", 0) and _all(n, "after", 0),
    "transpose": lambda n: n.attrs["perm"] == tuple(range(len(_numbers(n, "perm")))),
    "resize": lambda n: _all(n, "scales", 1.0),
    "max_pool2d": lambda n: _all(n, "kernel", 1) and _all(n, "strides", 1) and _all(n, "pads", 0),
    "avg_pool2d": lambda n: _all(n, "kernel", 1) and _all(n, "strides", 1) and _all(n, "pads", 0),
    "depth_to_space": lambda n: n.attrs["blocksize"] == 1,
    "space_to_depth": lambda n: n.attrs["blocksize"] == 1,
}


def _numbers(node: Node, name: str) -> tuple[float, ...]:
    value = node.attrs[name]
    assert isinstance(value, tuple)
    return value


def _all(node: Node, name: str, value: float) -> bool:
    return all(v == value for v in _numbers(node, name))


def _known_choice(g: Graph, node: Node, out: TensorType) -> str | None:
    """The operand that a constant condition always picks, or that both operands are."""
    condition = g.constants.get(node.inputs[0])
    if node.inputs[1] == node.inputs[2]:
        chosen = node.inputs[1]
    elif condition is not None and condition.size and (condition.all() or not condition.any()):
        chosen = node.inputs[1] if condition.all() else node.inputs[2]
    else:
        return None
    return chosen if g.types[chosen] == out else None


def _only_part(g: Graph, node: Node, out: TensorType) -> str | None:
    """The one part of a concatenation that is not empty."""
    parts = [i for i in node.inputs if g.types[i].size]
    return parts[0] if len(parts) == 1 and g.types[parts[0]] == out else None


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
        # x + 0 and x - -0 turn -0 into +0: for floats the sign of the zero matters
        signed = out.dtype.is_float and value == 0
        if (c == value).all() and (not signed or (np.signbit(c) == np.signbit(value)).all()):
            return node.inputs[other]
    return None


# ---------------------------------------------------------------- merges


def _merge_reshape(g: Graph, node: Node, made: Mapping[str, Node]) -> Node:
    inner = made.get(node.inputs[0])
    if inner is not None and inner.op == "reshape":
        return node.with_(inputs=inner.inputs)
    return node


def _merge_transpose(g: Graph, node: Node, made: Mapping[str, Node]) -> Node:
    out = g.types[node.outputs[0]]
    if sum(n != 1 for n in out.shape) <= 1:  # a vector has only one order
        return _merge_reshape(g, _reshape(node, out), made)
    inner = made.get(node.inputs[0])
    if inner is None or inner.op != "transpose":
        return node
    first, second = _numbers(inner, "perm"), _numbers(node, "perm")
    perm = tuple(int(first[int(p)]) for p in second)
    return node.with_(inputs=inner.inputs, attrs={"perm": perm})


def _merge_reduction(g: Graph, node: Node, made: Mapping[str, Node]) -> Node:
    """Reducing dims of one element only drops them, or nothing; the sum of a byte may be wider than it."""
    x, y = g.types[node.inputs[0]], g.types[node.outputs[0]]
    if any(x.shape[int(a)] != 1 for a in _numbers(node, "axes")):
        return node
    if x.dtype is not y.dtype:
        same = x.shape == y.shape
        return node.with_(op="cast", attrs={"to": y.dtype.name}) if same else node
    return _merge_reshape(g, _reshape(node, y), made)


def _reshape(node: Node, out: TensorType) -> Node:
    return node.with_(op="reshape", attrs={"shape": out.shape})


def _without_expand(g: Graph, node: Node, made: Mapping[str, Node]) -> Node:
    """Elementwise operators broadcast by themselves."""
    producers = [made.get(i) for i in node.inputs]
    if not any(p is not None and p.op == "expand" for p in producers):
        return node
    kind = operator(node.op)
    if kind.trait != "elementwise" or len(node.inputs) < 2:
        return node
    for i, p in enumerate(producers):
        if p is None or p.op != "expand":
            continue
        inputs = (*node.inputs[:i], p.inputs[0], *node.inputs[i + 1 :])
        try:
            types = kind.infer([g.types[v] if v else None for v in inputs], node.attrs)
        except ModelError:
            continue
        if types == [g.types[o] for o in node.outputs]:
            node = node.with_(inputs=inputs)
    return node


def _merge_concat(g: Graph, node: Node, made: Mapping[str, Node]) -> Node:
    """Neighbouring slices of one value that make up all of it become that value."""
    axis = int(node.attrs["axis"])  # type: ignore[arg-type]
    inputs: list[str] = []
    at = 0
    while at < len(node.inputs):
        whole, count = _whole(g, node.inputs[at:], made, axis)
        inputs.append(whole)
        at += count
    return node.with_(inputs=tuple(inputs))


def _whole(
    g: Graph, parts: tuple[str, ...], made: Mapping[str, Node], axis: int
) -> tuple[str, int]:
    """(the value that the first slices make up, how many); the first part itself if they do not."""
    end = 0
    source = ""
    for count, part in enumerate(parts, 1):
        span = _span(g, made.get(part), axis)
        if span is None or span[1] != end or (source and span[0] != source):
            break
        source, end = span[0], span[2]
        if end == g.types[source].shape[axis]:
            return source, count
    return parts[0], 1


def _span(g: Graph, node: Node | None, axis: int) -> tuple[str, int, int] | None:
    """(value, start, end) if `node` is a plain slice along `axis` only."""
    if node is None or node.op != "slice":
        return None
    shape = g.types[node.inputs[0]].shape
    starts, ends, steps = (_numbers(node, k) for k in ("starts", "ends", "steps"))
    for d, n in enumerate(shape):
        if steps[d] != 1 or (d != axis and (starts[d], ends[d]) != (0, n)):
            return None
    return node.inputs[0], int(starts[axis]), int(ends[axis])


_MERGES: dict[str, Callable[[Graph, Node, Mapping[str, Node]], Node]] = {
    "reshape": _merge_reshape,
    "transpose": _merge_transpose,
    "concat": _merge_concat,
    **dict.fromkeys(
        ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"), _merge_reduction
    ),
}
