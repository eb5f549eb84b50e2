"""The graph IR: a list of nodes over named, typed values.

In: frontends. Out: graph passes, then fusion and lowering. An operator is a registry entry, so this
module knows no operator. Values are names; `Graph.types` gives dtype and static shape of each.
Invariant (checked by `graph.verify`): nodes are in topological order, every name is defined once (as a
graph input, a constant or a node output) before it is used, and types match what operators infer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union

import numpy as np
import numpy.typing as npt

from tilewright.core.dtypes import DType, dtype

Array = npt.NDArray[Any]
AttrValue = Union[int, float, str, bool, tuple[int, ...], tuple[float, ...]]
Attrs = Mapping[str, AttrValue]

#: Dims that a value may have.
MAX_RANK = 16


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and static shape of a value."""

    dtype: DType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def type_of(array: Array) -> TensorType:
    """The type of a NumPy array."""
    return TensorType(dtype(array.dtype), tuple(int(d) for d in array.shape))


@dataclass(frozen=True, slots=True)
class Node:
    """One application of operator `op`. An absent optional input is the empty string.

    `name` is the node's name in the model it came from (used in messages and profiles).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Attrs = field(default_factory=dict[str, AttrValue])

    def with_(self, **changes: Any) -> Node:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class State:
    """What a model keeps from run to run: output number `output` of a run is input number `input` of the
    next; the first run gets `initial`."""

    input: int
    output: int
    initial: Array


@dataclass(slots=True)
class Graph:
    """A model: `inputs` and `outputs` are value names in the model's order; `states` says which of them
    carry values from one run to the next."""

    name: str
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node] = field(default_factory=list[Node])
    types: dict[str, TensorType] = field(default_factory=dict[str, TensorType])
    constants: dict[str, Array] = field(default_factory=dict[str, Array])
    states: list[State] = field(default_factory=list[State])

    def clone(self) -> Graph:
        """A copy that can be changed without touching this one (arrays are shared)."""
        return Graph(
            self.name, list(self.inputs), list(self.outputs), list(self.nodes),
            dict(self.types), dict(self.constants), list(self.states),
        )  # fmt: skip

    def fresh(self, hint: str) -> str:
        """A value name that is not in use yet, derived from `hint`."""
        if hint not in self.types:
            return hint
        taken, free = 0, 1  # an unrolled loop asks for thousands: gallop, then halve
        while f"{hint}.{free}" in self.types:
            taken, free = free, 2 * free
        while free - taken > 1:
            k = (taken + free) // 2
            taken, free = (k, free) if f"{hint}.{k}" in self.types else (taken, k)
        return f"{hint}.{free}"

    def add_constant(self, hint: str, array: Array) -> str:
        """Add a constant and return its name."""
        name = self.fresh(hint)
        self.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        self.types[name] = type_of(array)
        return name

    def producers(self) -> dict[str, Node]:
        """The node that defines each value (graph inputs and constants have none)."""
        return {out: node for node in self.nodes for out in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, in order, a node once per value."""
        out: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    out.setdefault(name, []).append(node)
        return out

    def replace_uses(self, mapping: Mapping[str, str]) -> None:
        """Rename uses of values (in nodes and graph outputs) following `mapping`, transitively."""

        def final(name: str) -> str:
            while name in mapping:
                name = mapping[name]
            return name

        self.nodes = [
            n.with_(inputs=tuple(final(i) for i in n.inputs))
            if any(i in mapping for i in n.inputs)
            else n
            for n in self.nodes
        ]
        self.outputs = [final(o) for o in self.outputs]

    def drop_unused(self) -> None:
        """Forget types and constants of values that nothing mentions any more."""
        used: set[str] = {*self.inputs, *self.outputs}
        for node in self.nodes:
            used.update(node.inputs)
            used.update(node.outputs)
        self.constants = {k: v for k, v in self.constants.items() if k in used}
        self.types = {k: v for k, v in self.types.items() if k in used}
