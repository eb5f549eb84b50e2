"""A Scan that carries nothing from one iteration to the next, as one computation with a dim in front.

In: what imports the body once, tensors that are walked along their first axis. Out: the stacked results, or None
where the body does more than this knows how to lift; then nothing was added and iterations are unrolled.
Invariant: row t of a result is what iteration t would give, whatever the operators' order inside it.

Distances of rows to 500 stored ones, as exporters of classical models write them, are a Scan of 500 iterations: unrolled
that is a kernel each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.frontend.node import Builder, ForeignNode
from tilewright.graph.ir import Attrs, Node, TensorType
from tilewright.registry import operator

_REDUCTIONS = frozenset({"reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"})


class _NoLift(Exception):
    """The body does something that has no lifted form here."""


def mapped(
    node: ForeignNode,
    states: Sequence[str],
    walked: Sequence[str],
    run: Callable[[Sequence[str]], list[str]],
) -> list[str] | None:
    """Results of all iterations, stacked along a new first axis. `run` imports the body, given the states and one
    element of each of `walked` (which lie along their first axes)."""
    b = node.builder
    first, made = len(b.graph.nodes), len(b.made)
    known = len(b.counts), len(b.sequences)
    taken = [_stand_in(node, v) for v in walked]
    results = run([*states, *taken])
    body = b.graph.nodes[first:]
    inner = {o for n in body for o in n.outputs}
    _undo(b, first, made)
    same = results[: len(states)] == list(states)
    if not results or not same or known != (len(b.counts), len(b.sequences)):
        return None
    lift = _Lift(node, dict(zip(taken, walked, strict=True)), node.type_of(walked[0]).shape[0])
    try:
        if any(r in b.sequences for r in results):
            return None
        for n in body:
            lift.node(n)
        return [lift.stacked(r) for r in results[len(states) :]]
    except (_NoLift, TilewrightError):
        _undo(b, first, made)
        return None
    finally:
        for name in (*taken, *inner):
            b.graph.types.pop(name, None)


def _stand_in(node: ForeignNode, value: str) -> str:
    """A name for one element of what is walked, so that nothing that depends on it counts as constant."""
    g, t = node.builder.graph, node.type_of(value)
    name = g.fresh("%row")
    g.types[name] = TensorType(t.dtype, t.shape[1:])
    return name


def _undo(b: Builder, nodes: int, made: int) -> None:
    """Take back nodes that were added; their types stay for who still asks."""
    del b.graph.nodes[nodes:]
    b.made[made:] = [v for v in b.made[made:] if v in b.graph.constants]


class _Lift:
    """Nodes of the body with a dim of `count` in front of whatever depends on the walked tensors."""

    def __init__(self, node: ForeignNode, lifted: dict[str, str], count: int) -> None:
        self.foreign, self.lifted, self.count = node, lifted, count
        self.plain: dict[str, str] = {}
        """Values of the body that are the same in all iterations."""

    def type_of(self, value: str) -> TensorType:
        return self.foreign.builder.graph.types[value]

    def node(self, n: Node) -> None:
        """Add what stands for a node of the body."""
        inputs = [self.plain.get(v, v) for v in n.inputs]
        wanted = [self.type_of(o) for o in n.outputs]
        if not any(v in self.lifted for v in inputs):
            found = self.foreign.add(n.op, inputs, n.attrs, len(n.outputs))
            self.plain.update(zip(n.outputs, found, strict=True))
            return
        if len(wanted) != 1 or not all(inputs):
            raise _NoLift
        (value,) = self.foreign.add(n.op, *self.form(n, inputs, wanted[0]))
        if self.type_of(value) != TensorType(wanted[0].dtype, (self.count, *wanted[0].shape)):
            raise _NoLift
        self.lifted[n.outputs[0]] = value

    def form(self, n: Node, inputs: Sequence[str], wanted: TensorType) -> tuple[list[str], Attrs]:
        """Operands and attributes of the lifted node."""
        shapes = [self.type_of(v).shape for v in inputs]
        attrs = dict(n.attrs)
        match n.op:
            case "reshape" | "expand":
                attrs["shape"] = (self.count, *wanted.shape)
            case "transpose":
                perm = attrs["perm"]
                assert isinstance(perm, tuple)
                attrs["perm"] = (0, *(int(p) + 1 for p in perm))
            case op if op in _REDUCTIONS:
                axes = attrs["axes"]
                assert isinstance(axes, tuple)
                attrs["axes"] = tuple(int(a) + 1 for a in axes)
            case "matmul" if all(len(s) >= 2 for s in shapes):
                pass
            case op if operator(op).trait == "elementwise" and not {"axis", "axes"} & set(attrs):
                if np.broadcast_shapes(*shapes) != wanted.shape:
                    raise _NoLift
            case _:
                raise _NoLift
        rank = len(wanted.shape) if n.op == "expand" else max(map(len, shapes))
        return [self.aligned(v, rank) for v in inputs], attrs

    def aligned(self, value: str, rank: int) -> str:
        """A lifted operand whose dims meet those of operands of `rank` dims; others as they are."""
        if value not in self.lifted:
            return value
        shape = self.type_of(value).shape
        whole = (self.count, *[1] * (rank - len(shape)), *shape)
        found = self.lifted[value]
        if len(shape) == rank:
            return found
        return self.foreign.add("reshape", [found], {"shape": whole})[0]

    def stacked(self, value: str) -> str:
        """A result of all iterations; one that is the same in all of them is repeated."""
        value = self.plain.get(value, value)
        if value in self.lifted:
            return self.lifted[value]
        shape = (self.count, *self.type_of(value).shape)
        return self.foreign.add("expand", [value], {"shape": shape})[0]
