"""One ONNX node as importers see it (`registry.ImportNode`), and the graph that importers add to.

In: a NodeProto, the names that its inputs have in our graph. Out: nodes and constants in the graph.
Invariant: whatever depends on constants alone is computed at once, within `limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tilewright.errors import IRError, ModelError, UnsupportedError
from tilewright.frontend import limits
from tilewright.frontend.tensors import read_tensor
from tilewright.graph.evaluate import evaluate, is_worth_computing
from tilewright.graph.ir import Array, Attrs, AttrValue, Graph, Node, TensorType
from tilewright.registry import operator


@dataclass(slots=True)
class Scope:
    """Where a node stands: value names there, opset, and what precedes names of inner values."""

    names: dict[str, str]
    opset: int
    depth: int = 0
    prefix: str = ""

    def inner(self, node: str, names: dict[str, str]) -> Scope:
        """The scope of a graph or function nested in `node`."""
        limits.check_depth(self.depth + 1)
        return Scope(names, self.opset, self.depth + 1, f"{node}/")


@dataclass(slots=True)
class Builder:
    """The graph so far. `made` lists values in order of creation, so that they can be named."""

    graph: Graph
    folder: Path | None
    made: list[str] = field(default_factory=list[str])
    stored_bytes: int = 0
    """Of all tensors that were read from the file."""
    folded_bytes: int = 0
    iterations: int = 0
    """Of loops that were unrolled."""
    counts: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    """Values padded to a bound -> (how many slices are valid, along which axis)."""
    sequences: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Names that stand for sequences -> their members."""
    asked: list[str] = field(default_factory=list[str])
    """Values that the node at hand wanted to know at compile time, and that are not known."""

    @property
    def most_folded(self) -> int:
        """Bytes that computed constants may take together."""
        return limits.MAX_FOLDED_BYTES + limits.MAX_FOLDED_RATIO * self.stored_bytes

    def constant(self, array: Array, hint: str) -> str:
        """Add a computed constant."""
        self.folded_bytes += array.nbytes
        if self.folded_bytes > self.most_folded:
            raise ModelError(
                f"constants computed from the model take more than {self.most_folded} bytes: "
                "the file is damaged, or needs a larger limit (frontend/limits.py)"
            )
        name = self.graph.add_constant(hint, array)
        self.made.append(name)
        return name

    def add(
        self, name: str, op: str, inputs: Sequence[str], attrs: Attrs | None, outputs: int
    ) -> list[str]:
        """Add a node of canonical operator `op`, or its value if all inputs are constants."""
        g = self.graph
        given: dict[str, AttrValue] = dict(attrs or {})
        kind = operator(op)
        operands = [g.types[i] if i else None for i in inputs]
        types = kind.infer(operands, given)
        if len(types) != outputs:
            raise IRError(f"node `{name}`: `{op}` has {len(types)} outputs, not {outputs}")
        for t in types:
            limits.check_shape(t.shape, f"the result of node `{name}`")
        if all(t.size == 0 for t in types):  # known without computing
            return [self.constant(np.zeros(t.shape, t.dtype.numpy), f"%{op}") for t in types]
        known = kind.fold_on_import and all(not i or i in g.constants for i in inputs)
        room = self.folded_bytes + sum(t.bytes for t in types) <= self.most_folded
        if known and room and is_worth_computing(kind, operands, given, types):
            values = evaluate(kind, [g.constants[i] if i else None for i in inputs], given)
            return [self.constant(v, f"%{op}") for v in values]
        names: list[str] = []
        for t in types:
            names.append(g.fresh(f"%{op}"))
            g.types[names[-1]] = t
        g.nodes.append(Node(name, op, tuple(inputs), tuple(names), given))
        self.made += names
        return names

    def origins(self, values: Iterable[str]) -> set[str]:
        """The graph's inputs that `values` are computed from."""
        makers = self.graph.producers()
        seen: set[str] = set()
        todo = list(values)
        while todo:
            value = todo.pop()
            if value and value not in seen:
                seen.add(value)
                todo += makers[value].inputs if value in makers else ()
        return seen.intersection(self.graph.inputs)

    def rename(self, old: str, new: str) -> None:
        """Call a value `new` everywhere; `new` must be free."""
        g = self.graph
        g.types[new] = g.types.pop(old)
        self.made.append(new)
        name = {old: new}
        self.counts = {
            name.get(v, v): (name.get(count, count), axis)
            for v, (count, axis) in self.counts.items()
        }
        for members in self.sequences.values():
            members[:] = [name.get(v, v) for v in members]
        if old in g.constants:
            g.constants[new] = g.constants.pop(old)
        for i in range(len(g.nodes) - 1, -1, -1):
            node = g.nodes[i]
            if old in node.inputs:
                node = node.with_(inputs=tuple(new if v == old else v for v in node.inputs))
            if old in node.outputs:
                g.nodes[i] = node.with_(outputs=tuple(new if v == old else v for v in node.outputs))
                return
            g.nodes[i] = node


@dataclass(slots=True)
class ForeignNode:
    """`registry.ImportNode` over an ONNX node."""

    builder: Builder
    proto: onnx.NodeProto
    name: str
    scope: Scope
    op_type: str = field(init=False)
    opset: int = field(init=False)
    inputs: Sequence[str] = field(init=False)
    output_count: int = field(init=False)

    def __post_init__(self) -> None:
        self.op_type = str(self.proto.op_type)
        self.opset = self.scope.opset
        self.inputs = [self.scope.names[v] if v else "" for v in self.proto.input]
        self.output_count = sum(1 for o in self.proto.output if o)

    def attr(self, name: str, default: Any = None) -> Any:
        a = next((a for a in self.proto.attribute if a.name == name), None)
        if a is None or a.ref_attr_name:  # a function's parameter that its caller left out
            return default
        if a.type == onnx.AttributeProto.TENSOR:
            what = f"attribute `{name}` of node `{self.name}`"
            return read_tensor(a.t, self.builder.folder, what)
        read = _READERS.get(a.type)
        if read is None:
            kind = onnx.AttributeProto.AttributeType.Name(a.type)
            raise self.fail(f"attribute `{name}` is {kind}, which is not supported")
        return read(a)

    def type(self, i: int) -> TensorType:
        if not self.has(i):
            raise self.fail(f"input {i} is missing: repair the model")
        return self.type_of(self.inputs[i])

    def type_of(self, value: str) -> TensorType:
        if value.startswith("%") and value not in self.builder.graph.types:
            raise self.fail("a sequence or an optional is not a tensor: repair the model")
        return self.builder.graph.types[value]

    def const(self, i: int) -> Array | None:
        if not self.has(i):
            return None
        value = self.builder.graph.constants.get(self.inputs[i])
        if value is None:
            self.builder.asked.append(self.inputs[i])
        return value

    def need_const(self, i: int, what: str) -> Array:
        value = self.const(i)
        if value is None:
            raise self.fail(
                f"{what} must be known at compile time, but is computed from the model's inputs: make "
                "it a constant in the model"
            )
        return value

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] != ""

    def constant(self, array: Array, hint: str = "const") -> str:
        return self.builder.constant(np.asarray(array), f"%{hint}")

    def add(
        self, op: str, inputs: Sequence[str], attrs: Attrs | None = None, outputs: int = 1
    ) -> list[str]:
        return self.builder.add(self.name, op, inputs, attrs, outputs)

    def counted(self, value: str, count: str, axis: int) -> str:
        known = self.builder.graph.constants.get(count)
        shape = self.type_of(value).shape
        if known is None:
            self.builder.counts[value] = (count, axis)
            return value
        ends = (*shape[:axis], int(known), *shape[axis + 1 :])
        attrs = {"starts": (0,) * len(shape), "ends": ends, "steps": (1,) * len(shape)}
        return value if ends == shape else self.add("slice", [value], attrs)[0]

    def reserve(self, *shape: int) -> None:
        limits.check_constant(shape, f"node `{self.name}`")

    def fail(self, reason: str) -> UnsupportedError:
        return UnsupportedError([f"node `{self.name}` ({self.op_type}): {reason}"])


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


_KIND = onnx.AttributeProto
_READERS: Mapping[int, Callable[[onnx.AttributeProto], Any]] = {
    _KIND.FLOAT: lambda a: float(a.f),
    _KIND.INT: lambda a: int(a.i),
    _KIND.STRING: lambda a: _text(a.s),
    _KIND.FLOATS: lambda a: tuple(float(v) for v in a.floats),
    _KIND.INTS: lambda a: tuple(int(v) for v in a.ints),
    _KIND.STRINGS: lambda a: tuple(_text(s) for s in a.strings),
    _KIND.GRAPH: lambda a: a.g,
}
