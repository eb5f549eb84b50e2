"""Integer arithmetic where a model says so with pairs of quantize and dequantize (QDQ).

    quantize(relu(conv2d(dequantize(x), dequantize(w), b)))
      ->   requantize(conv2d(x, w, b'))          all integers; b' holds b and x's zero point
    quantize(f(dequantize(x))), f elementwise
      ->   table(x, [what it gives for each of 256 bytes])

How an operator works on integers is said by its own file (`Operator.quantized`, `graph.quantized`); what
has no integer form stays in floats between its pair. Tables are exact. The rest is not bit-equal to the
float form: a result may be one step away where the exact value lies between two steps, as every integer
runtime's may.
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tilewright.core.dtypes import I8, I32, U8, dtype
from tilewright.graph.ir import Array, Attrs, Graph, Node, TensorType
from tilewright.graph.quantized import Scale, movement
from tilewright.registry import operator


def quantize(graph: Graph) -> Graph:
    """Replace what lies between pairs by integer nodes, wherever there is an integer form."""
    if not any(n.op == "quantize" for n in graph.nodes):
        return graph
    g = graph.clone()
    work = _Pass(g, g.producers(), g.consumers(), _Unary(g))
    nodes: list[Node] = []
    for node in g.nodes:
        work.unary.see(node)
        done = work.integer_nodes(node, node) if node.op == "quantize" else None
        nodes += done or [node]
    g.nodes = _without_copies(g, nodes)
    return g


def _without_copies(g: Graph, nodes: list[Node]) -> list[Node]:
    """`nodes` reading what copies copy, of which only those that make outputs of the graph are left."""
    source: dict[str, str] = {}
    kept: list[Node] = []
    for node in nodes:
        node = node.with_(inputs=tuple(source.get(i, i) for i in node.inputs))
        if node.op == "copy" and node.outputs[0] not in g.outputs:
            source[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    return kept


@dataclass(frozen=True, slots=True)
class _Pass:
    """The graph as it was, with what makes and reads each value."""

    g: Graph
    made: Mapping[str, Node]
    users: Mapping[str, list[Node]]
    unary: _Unary

    def integer_nodes(
        self, node: Node, follower: Node, bounds: tuple[int, int] | None = None
    ) -> list[Node] | None:
        """The nodes that stand for quantising node `node` and what it quantises, which only `follower`
        may read; `bounds` cut the result."""
        scale = _scale(self.g, node)
        producer = self.made.get(node.inputs[0])
        if scale is None or scale.dtype not in (I8, U8) or producer is None:
            return None
        info = np.iinfo(str(scale.dtype.numpy))
        whole = (int(info.min), int(info.max))
        looked_up = self.unary.table(node, bounds or whole)
        if looked_up is not None:
            return [looked_up]
        if node.attrs.get("away", False):  # a format that says how floats are rounded, too
            return None
        form = _Form(self, node, follower, scale, whole, bounds or whole)
        return form.nodes if form.run(producer) else None


def _scale(g: Graph, node: Node) -> Scale | None:
    """Steps of a quantize or dequantize node with one scale for all."""
    step, zero = (g.constants.get(i) for i in node.inputs[1:3])
    if step is None or zero is None or step.size != 1 or not 0 < step.reshape(-1)[0] < np.inf:
        return None
    number = g.types[node.inputs[2]].dtype
    return Scale(float(step.reshape(-1)[0]), int(zero.reshape(-1)[0]), number)


class _Form:
    """`graph.quantized.IntegerForm` for one `quantize` node."""

    def __init__(
        self,
        work: _Pass,
        quantizer: Node,
        follower: Node,
        scale: Scale,
        whole: tuple[int, int],
        bounds: tuple[int, int],
    ) -> None:
        self.work, self.g, self.made = work, work.g, work.made
        self.quantizer, self.node = quantizer, follower
        self.scale, self.all = scale, whole
        self.low, self.high = bounds
        self.nodes: list[Node] = []

    def run(self, node: Node) -> bool:
        """Make integer nodes for `node`; not where others want its float result as well."""
        form = operator(node.op).quantized
        users = [n for o in node.outputs for n in self.work.users.get(o, [])]
        own = all(n is self.node or n.op == "quantize" for n in users)
        if form is None or not own or any(o in self.g.outputs for o in node.outputs):
            return False
        self.node = node
        return form(self)

    @property
    def whole(self) -> bool:
        return (self.low, self.high) == self.all

    # ---- reading the graph

    def type_of(self, value: str) -> TensorType:
        return self.g.types[value]

    def integers(self, value: str) -> tuple[str, Scale] | None:
        node = self.made.get(value)
        if node is None:
            return None
        if operator(node.op).quantized is movement:
            inner = self.integers(node.inputs[0])
            inputs = (inner[0], *node.inputs[1:]) if inner else ()
            return (self.make(node.op, inputs, node.attrs), inner[1]) if inner else None
        factor = self._factor(node)
        if factor > 0:
            inner = self.integers(node.inputs[0])
            return (inner[0], replace(inner[1], step=inner[1].step * factor)) if inner else None
        scale = _scale(self.g, node) if node.op == "dequantize" else None
        if scale is None or scale.dtype not in (I8, U8):
            return None
        return node.inputs[0], scale

    def _factor(self, node: Node) -> float:
        """The constant that `node` multiplies its operand 0 by; 0 if it does anything else."""
        known = self.g.constants.get(node.inputs[1]) if node.op in ("mul", "div") else None
        if known is None or known.size != 1 or known.dtype.kind != "f":
            return 0.0
        value = float(known.reshape(-1)[0])
        if node.op == "div":
            value = 1 / value if value else 0.0
        return value if 2.0**-20 < value < 2.0**20 else 0.0

    def weights(self, value: str, channel: int) -> tuple[Array, Array] | None:
        found = self._constant(value)
        if found is None:
            return None
        values, steps, zeros = found
        if not dtype(values.dtype).is_integer:
            return None
        centred = values.astype(np.int64) - zeros.astype(np.int64)
        rows = np.moveaxis(steps, channel, 0).reshape(steps.shape[channel], -1)
        sound = np.isfinite(rows).all() and (rows > 0).all() and (rows == rows[:, :1]).all()
        if values.dtype.itemsize > 1 or not sound:
            return None
        for kind in (np.int8, np.uint8, np.int16):
            if np.array_equal(centred, centred.astype(kind)):
                return centred.astype(kind), rows[:, 0].astype(np.float64)
        return None

    def _constant(self, value: str) -> tuple[Array, Array, Array] | None:
        """(integers, steps, zero points), all of one shape, through views of a constant."""
        node = self.made.get(value)
        if node is None:
            return None
        if node.op == "dequantize":
            known = [self.g.constants[i] for i in node.inputs if i in self.g.constants]
            if len(known) < 3:
                return None
            values, steps, zeros = (np.broadcast_to(p, known[0].shape) for p in known)
            return values, steps, zeros
        if operator(node.op).trait == "view" and (inner := self._constant(node.inputs[0])):
            a, b, c = (operator(node.op).reference([p], node.attrs)[0] for p in inner)
            return a, b, c
        return None

    def floats(self, value: str) -> Array | None:
        known = self.g.constants.get(value)
        if known is not None:
            return known.astype(np.float64)
        found = self._constant(value)
        if found is None:
            return None
        values, steps, zeros = found
        wide = [a.astype(np.float64) for a in (values, zeros, steps)]
        return np.asarray((wide[0] - wide[1]) * wide[2])

    # ---- making nodes

    def constant(self, hint: str, array: Array) -> str:
        return self.g.add_constant(f"{self.node.name}.{hint}", array)

    def make(self, op: str, inputs: tuple[str, ...], attrs: Attrs) -> str:
        out = self.g.fresh(f"{self.quantizer.outputs[0]}.{op}")
        (self.g.types[out],) = operator(op).infer([self.g.types[i] for i in inputs], attrs)
        self.nodes.append(Node(self.node.name, op, inputs, (out,), attrs))
        return out

    def finish(self, op: str, inputs: tuple[str, ...], attrs: Attrs) -> bool:
        self.nodes.append(Node(self.quantizer.name, op, inputs, self.quantizer.outputs, attrs))
        return True

    def quantized(self, value: str) -> str | None:
        out = self.g.fresh(f"{self.quantizer.outputs[0]}.before")
        self.g.types[out] = TensorType(self.scale.dtype, self.g.types[value].shape)
        inner = self.quantizer.with_(
            inputs=(value, *self.quantizer.inputs[1:]), outputs=(out,), name=self.node.name
        )
        nodes = self.work.integer_nodes(inner, self.node, (self.low, self.high))
        if nodes is None:
            return None
        self.nodes += nodes
        return out

    def shifted(self, value: str, by: int) -> str:
        if not by:
            return value
        return self.make("add", (value, self.constant("offset", np.asarray(by, np.int32))), {})

    def rescaled(self, value: str, scale: Scale) -> str | None:
        op, inputs, attrs = self._rescaling(value, scale)
        return self.make(op, inputs, attrs)

    def rescale(self, value: str, scale: Scale) -> bool:
        if scale == self.scale and self.whole:
            return self.finish("copy", (value,), {})
        return self.finish(*self._rescaling(value, scale))

    def requantize(self, total: str, factors: Array, largest: int, early: bool = False) -> bool:
        assert self.g.types[total].dtype is I32
        if factors.size == 0 or not factors.max() < 1 << 31:  # scales that make no sense
            return False
        floats = factors.astype(np.float32)
        attrs = self._rescale_attrs(largest * float(floats.max()))
        if early:
            attrs = {**attrs, "early": True}
        return self.finish("rescale", (total, self.constant("factor", floats)), attrs)

    def _rescaling(self, value: str, scale: Scale) -> tuple[str, tuple[str, ...], Attrs]:
        """The operator that gives what dequantizing and quantising again would, for every byte."""
        number = self.g.types[value].dtype.numpy
        every = np.arange(256).astype(np.uint8).view(number)
        sums = every.astype(np.int32) - scale.zero
        ours, theirs = np.float32(self.scale.step), np.float32(scale.step)
        with np.errstate(all="ignore"):
            steps = np.rint(sums.astype(np.float32) * theirs / ours).astype(np.float64)
            factor = theirs / ours
        steps = np.nan_to_num(steps, nan=0.0) + self.scale.zero
        wanted = np.clip(steps, self.low, self.high).astype(self.scale.dtype.numpy)
        for near in (factor, np.nextafter(factor, np.float32(np.inf)), np.nextafter(factor, 0)):
            if not near < 1 << 31:
                continue
            attrs = self._rescale_attrs(255 * float(near))
            (got,) = operator("rescale").reference([sums, near], attrs)
            if np.array_equal(got, wanted):
                wide = self.shifted(self.make("cast", (value,), {"to": "i32"}), -scale.zero)
                return "rescale", (wide, self.constant("factor", np.asarray(near))), attrs
        return "table", (value, self.constant("table", wanted)), {}

    def _rescale_attrs(self, largest: float) -> Attrs:
        return {
            "zero_point": self.scale.zero, "low": self.low, "high": self.high,
            "to": self.scale.dtype.name, "bounded": largest < 1 << 22,
        }  # fmt: skip

    def clamped(self, low: float, high: float) -> bool:
        inner = self.made.get(self.node.inputs[0])
        if inner is None:
            return False
        cut = np.rint(np.array([low, high]) / self.scale.step) + self.scale.zero
        below, self.high = (int(b) for b in np.clip(cut, self.low, self.high))
        self.low = min(below, self.high)
        return self.run(inner)


class _Unary:
    """Which values are elementwise functions of one tensor of bytes and of nothing else."""

    def __init__(self, g: Graph) -> None:
        self.g = g
        self.origin: dict[str, str] = {}
        self.made: dict[str, Node] = {}

    def see(self, node: Node) -> None:
        """Note whether the results of `node` are such functions; to be called in order."""
        self.made.update(dict.fromkeys(node.outputs, node))
        op = operator(node.op)
        if op.trait != "elementwise" or len(node.outputs) != 1:
            return
        sources: set[str | None] = set()
        for i in node.inputs:
            if not i or i in self.g.constants:
                if i and self.g.constants[i].size != 1:
                    return
                continue
            own = i if self.g.types[i].dtype in (I8, U8) else None
            sources.add(self.origin.get(i, own))
        if len(sources) != 1:
            return
        (source,) = sources
        if source and self.g.types[source].shape == self.g.types[node.outputs[0]].shape:
            self.origin[node.outputs[0]] = source

    def table(self, node: Node, bounds: tuple[int, int]) -> Node | None:
        """The node that looks up what quantising node `node` gives, within `bounds`."""
        source = self.origin.get(node.inputs[0])
        if source is None:
            return None
        every = np.arange(256).astype(np.uint8).view(self.g.types[source].dtype.numpy)
        known = {source: every}
        operands = [self._evaluate(i, known) for i in node.inputs]
        values = operator(node.op).reference(operands, node.attrs)[0].clip(*bounds)
        if values.dtype == every.dtype and (values == every).all():
            return Node(node.name, "copy", (source,), node.outputs, {})
        name = self.g.add_constant(f"{node.name}.table", values)
        return Node(node.name, "table", (source, name), node.outputs, {})

    def _evaluate(self, value: str, known: dict[str, Array]) -> Array:
        if value not in known:
            if value in self.g.constants:
                known[value] = self.g.constants[value].reshape(())
            else:
                node = self.made[value]
                operands = [self._evaluate(i, known) if i else None for i in node.inputs]
                with np.errstate(all="ignore"):
                    (known[value],) = operator(node.op).reference(operands, node.attrs)
        return known[value]
