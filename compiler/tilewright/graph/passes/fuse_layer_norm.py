"""Recognise layer normalisation that an exporter spelled out.

    d = x - mean(x);  y = d / sqrt(mean(d * d) + epsilon)             ->  layer_norm(x, 1)
    the same as d * reciprocal(sqrt(..)) or d * (1 / sqrt(..))        ->  layer_norm(x, 1)
    and  y * scale,  y * scale + bias                                 ->  layer_norm(x, scale, bias)

Means are over the last dims. The formula is the one `layer_norm` computes, in one kernel and not in six;
results differ by rounding only. What is left alone: a step that something else reads, too (it would
be computed twice), statistics over other dims or over very long rows, parameters that do not fit a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tilewright.core.attributes import ints
from tilewright.errors import ModelError
from tilewright.graph.ir import Graph, Node
from tilewright.graph.passes._values import only_use
from tilewright.registry import operator

#: Longest row in elements: `layer_norm` keeps one on the stack, which these keep to 16 KiB of f32.
MAX_ROW = 4096


def fuse_layer_norm(graph: Graph) -> Graph:
    """Replace every such chain by one node, which takes the place and the name of the chain's end."""
    chains = _Chains(graph)
    g = graph.clone()
    gone: set[str] = set()
    fused: dict[str, Node] = {}
    for node in graph.nodes:
        found = chains.core(node)
        if found is None:
            continue
        found = chains.with_parameters(found)
        x, scale, bias = found.x, found.scale, found.bias
        row = g.types[x].rank - found.axis
        if scale is None:
            one = np.ones(1, g.types[x].dtype.numpy)
            scale = g.add_constant(f"{found.end}.scale", one)
        names = [_flat(g, v, row) for v in (scale, bias) if v is not None]
        attrs = {"axis": found.axis, "epsilon": found.epsilon}
        fused[found.end] = Node(node.name, "layer_norm", (x, *names), (found.end,), attrs)
        gone.update(found.values)
    g.nodes = [fused.get(n.outputs[0], n) for n in g.nodes if n.outputs[0] not in gone]
    g.drop_unused()
    return g


@dataclass(frozen=True, slots=True)
class _Chain:
    """A normalisation of `x` whose result is `end`; `values` are those in between."""

    x: str
    axis: int
    epsilon: float
    end: str
    values: tuple[str, ...]
    scale: str | None = None
    bias: str | None = None


class _Chains:
    """Finds chains in one graph, from the end of their core back to x, then on to scale and bias."""

    def __init__(self, g: Graph) -> None:
        self._g = g
        self._made: Mapping[str, Node] = g.producers()
        self._consumers: Mapping[str, Sequence[Node]] = g.consumers()

    def core(self, node: Node) -> _Chain | None:
        """The chain that ends in `node`, without scale and bias."""
        for delta, root, way in self._ratios(node):
            difference = self._node(delta, "sub")
            variance = self._variance(root)
            if difference is None or variance is None:
                continue
            epsilon, square, values = variance
            x, mean = difference.inputs
            average = self._node(mean, "reduce_mean")
            if square != delta or average is None or average.inputs[0] != x:
                continue
            if self._g.types[delta] != self._g.types[x] or not self._g.types[x].dtype.is_float:
                continue
            axis = self._axis(average)
            deviation = self._made[values[-1]]  # the mean of squares
            readers = {n.outputs[0] for n in self._consumers[delta]}
            inside = {node.outputs[0], self._made[deviation.inputs[0]].outputs[0]}
            if axis is None or self._axis(deviation) != axis or readers != inside:
                continue
            if delta in self._g.outputs or not only_use(self._g, self._consumers, mean):
                continue
            taken = (mean, delta, deviation.inputs[0], *way, *values)
            return _Chain(x, axis, epsilon, node.outputs[0], taken)
        return None

    def with_parameters(self, chain: _Chain) -> _Chain:
        """The chain with the multiplication and the addition that follow, as far as they fit."""
        scaled = self._next(chain, "mul")
        if scaled is not None:
            factor, end = scaled
            values = (*chain.values, chain.end)
            chain = _Chain(chain.x, chain.axis, chain.epsilon, end, values, factor)
        shifted = self._next(chain, "add")
        if shifted is not None:
            bias, end = shifted
            values = (*chain.values, chain.end)
            chain = _Chain(chain.x, chain.axis, chain.epsilon, end, values, chain.scale, bias)
        return chain

    def _next(self, chain: _Chain, op: str) -> tuple[str, str] | None:
        """(other operand, result) of the one `op` that reads the chain's end, if the operand fits a row."""
        if not only_use(self._g, self._consumers, chain.end):
            return None
        (node,) = self._consumers[chain.end]
        if node.op != op or node.inputs.count(chain.end) != 1:
            return None
        (other,) = (i for i in node.inputs if i != chain.end)
        x = self._g.types[chain.x]
        if self._g.types[node.outputs[0]] != x:
            return None
        parameter = self._g.types[other]
        if other in self._g.constants:  # leading dims of 1 say nothing: `_flat` drops them
            drop = max(parameter.rank - (x.rank - chain.axis), 0)
            if any(n != 1 for n in parameter.shape[:drop]):
                return None
            parameter = type(parameter)(parameter.dtype, parameter.shape[drop:])
        attrs = {"axis": chain.axis, "epsilon": chain.epsilon}
        try:
            operator("layer_norm").infer([x, parameter], attrs)
        except ModelError:
            return None
        return other, node.outputs[0]

    def _ratios(self, node: Node) -> list[tuple[str, str, tuple[str, ...]]]:
        """(d, s, values on the way) in the ways in which `node` can be read as d / s."""
        if node.op == "div":
            return [(node.inputs[0], node.inputs[1], ())]
        if node.op != "mul":
            return []
        found: list[tuple[str, str, tuple[str, ...]]] = []
        for delta, factor in (node.inputs, node.inputs[::-1]):
            inverse = self._only(factor)
            if inverse is None:
                continue
            if inverse.op == "reciprocal" or (
                inverse.op == "div" and self._number(inverse.inputs[0]) == 1.0
            ):
                found.append((delta, inverse.inputs[-1], (factor,)))
        return found

    def _variance(self, name: str) -> tuple[float, str, tuple[str, ...]] | None:
        """(epsilon, d, values on the way) if `name` is sqrt(mean(d * d) + epsilon)."""
        root = self._only(name)
        total = self._only(root.inputs[0]) if root is not None and root.op == "sqrt" else None
        if root is None or total is None or total.op != "add":
            return None
        for mean, constant in (total.inputs, total.inputs[::-1]):
            epsilon = self._number(constant)
            average = self._only(mean)
            if epsilon is None or not 0 <= epsilon < 1 or average is None:
                continue
            square = self._only(average.inputs[0]) if average.op == "reduce_mean" else None
            delta = None if square is None else self._squared(square)
            if delta is not None:
                return epsilon, delta, (name, root.inputs[0], mean)
        return None

    def _squared(self, node: Node) -> str | None:
        if node.op == "mul" and node.inputs[0] == node.inputs[1]:
            return node.inputs[0]
        if node.op == "pow" and self._number(node.inputs[1]) == 2.0:
            return node.inputs[0]
        return None

    def _axis(self, mean: Node) -> int | None:
        """First of the last dims that `mean` is over, if it is over those and keeps them."""
        rank = self._g.types[mean.inputs[0]].rank
        axes = sorted(ints(mean.attrs, "axes"))
        first = rank - len(axes)
        if not axes or not mean.attrs["keepdims"] or axes != [*range(first, rank)]:
            return None
        row = prod(self._g.types[mean.inputs[0]].shape[first:])
        return first if 0 < row <= MAX_ROW else None

    def _node(self, name: str, op: str) -> Node | None:
        node = self._made.get(name)
        return node if node is not None and node.op == op else None

    def _only(self, name: str) -> Node | None:
        """The node that makes a value that one node alone reads."""
        return self._made.get(name) if only_use(self._g, self._consumers, name) else None

    def _number(self, name: str) -> float | None:
        value = self._g.constants.get(name)
        return None if value is None or value.size != 1 else float(value.reshape(-1)[0])


def _flat(g: Graph, name: str, rank: int) -> str:
    """A parameter with at most `rank` dims: a constant's leading dims of 1 are dropped."""
    value = g.constants.get(name)
    if value is None or value.ndim <= rank:
        return name
    return g.add_constant(f"{name}.row", value.reshape(value.shape[value.ndim - rank :]))
