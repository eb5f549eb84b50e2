"""What a TFLite model keeps from run to run: resource variables, and tensors marked as variables.

In: VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE, CALL_ONCE. Out: for every variable that a run changes one
more input and output of the graph, tied by a `State`.
Invariant: the graph stays a pure function. A variable is read as the input until the run assigns it, then
as what was assigned; one that is only ever initialised is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tilewright.errors import ModelError, UnsupportedError
from tilewright.frontend.tflite.model import Op, Tensor
from tilewright.graph.ir import Array, Graph, State, TensorType, type_of

if TYPE_CHECKING:
    from tilewright.frontend.tflite.importer import Importer, Scope


@dataclass(slots=True)
class Variable:
    """A variable under import. `source` is its input of the graph once it was read, `value` what it holds
    now, both empty before."""

    graph: Graph
    name: str
    type: TensorType | None = None
    initial: Array | None = None
    source: str = ""
    value: str = ""

    def read(self) -> str:
        """The value now: that of the last run, unless this one assigned another."""
        if not self.value:
            if self.type is None:
                raise UnsupportedError(
                    [f"variable `{self.name}` is read, but nothing says its type"]
                )
            self.source = self.graph.fresh(self.name)
            self.graph.types[self.source] = self.type
            self.graph.inputs.append(self.source)
            self.value = self.source
        return self.value


@dataclass(slots=True)
class Variables:
    """All variables of a model by their key."""

    graph: Graph
    known: dict[str, Variable] = field(default_factory=dict[str, Variable])
    initialising: bool = False
    """Whether a subgraph of CALL_ONCE is under way: what it assigns is the initial value."""

    def of_key(self, key: str, name: str) -> Variable:
        return self.known.setdefault(key, Variable(self.graph, name))

    def of_tensor(self, prefix: str, t: Tensor) -> Variable:
        """A tensor that is marked as a variable: it starts with zeros."""
        v = self.of_key(f"tensor {prefix}{t.index}", f"{prefix}{t.name}" or f"state_{t.index}")
        if v.type is None and t.dtype is not None:
            v.type = TensorType(t.dtype, t.shape)
            zero = t.quantization.zero[0] if t.quantization is not None else 0
            v.initial = np.full(t.shape, zero, t.dtype.numpy)
        return v

    def kept(self) -> Iterator[Variable]:
        """The variables that were read, and now hold something else for the next run to read.

        One that no run changes becomes a constant.
        """
        for v in self.known.values():
            if not v.source:
                continue
            if v.value != v.source:
                yield v
                continue
            t = self.graph.types[v.source]
            initial = np.zeros(t.shape, t.dtype.numpy) if v.initial is None else v.initial
            if type_of(initial) != t:
                raise ModelError(f"variable `{v.name}` is read as {t}: repair the model")
            self.graph.inputs.remove(v.source)
            self.graph.constants[v.source] = initial

    def keep(self, v: Variable) -> None:
        """Tie the input of `v` to the last output of the graph."""
        graph, t = self.graph, self.graph.types[v.source]
        initial = np.zeros(t.shape, t.dtype.numpy) if v.initial is None else v.initial
        if graph.types[graph.outputs[-1]] != t or type_of(initial) != t:
            raise ModelError(f"variable `{v.name}` changes its type from {t}: repair the model")
        graph.states.append(State(graph.inputs.index(v.source), len(graph.outputs) - 1, initial))


def _variable(importer: Importer, op: Op, scope: Scope) -> Variable:
    key = scope.handles.get(op.inputs[0]) if op.inputs else None
    if key is None:
        raise UnsupportedError(
            ["its variable is not known here: make the handle in the same subgraph"]
        )
    return importer.variables.known[key]


def _handle(importer: Importer, op: Op, name: str, scope: Scope) -> Sequence[str]:
    shared = str(op.options.get("SharedName", ""))
    key = (
        f"{op.options.get('Container', '')}/{shared}"
        if shared
        else f"handle {scope.prefix}{op.index}"
    )
    importer.variables.of_key(key, shared or f"variable {len(importer.variables.known)}")
    scope.handles[op.outputs[0]] = key
    return [""]


def _read(importer: Importer, op: Op, name: str, scope: Scope) -> Sequence[str]:
    v = _variable(importer, op, scope)
    if v.type is None:
        t = scope.subgraph.tensors[op.outputs[0]]
        if t.dtype is not None:
            v.type = TensorType(t.dtype, t.shape)
    return [v.read()]


def _assign(importer: Importer, op: Op, name: str, scope: Scope) -> Sequence[str]:
    v = _variable(importer, op, scope)
    value = importer.value(scope, op.inputs[1])
    if value is None:
        raise ModelError("what it assigns is not computed by any operator: the file is damaged")
    graph = importer.builder.graph
    if not importer.variables.initialising:
        v.read()  # so that the next run gets it
        v.value = value
        return []
    if value not in graph.constants:
        raise UnsupportedError(
            ["an initial value that is computed is not supported: make it a constant"]
        )
    v.initial, v.type = graph.constants[value], graph.types[value]
    return []


def _call_once(importer: Importer, op: Op, name: str, scope: Scope) -> Sequence[str]:
    """Import a subgraph that runs before the first run."""
    index = int(op.options.get("InitSubgraphIndex", -1))
    if not 0 < index < len(importer.model.subgraphs):
        raise ModelError(f"subgraph {index} does not exist: the file is damaged")
    subgraph = importer.model.subgraphs[index]
    importer.variables.initialising = True
    try:
        importer.ops(scope.inner(subgraph, name, {}))
    finally:
        importer.variables.initialising = False
    return []


#: builtin -> importer; these see the scope, since handles are no values.
VARIABLES: Mapping[str, Callable[[Importer, Op, str, Scope], Sequence[str]]] = {
    "VAR_HANDLE": _handle,
    "READ_VARIABLE": _read,
    "ASSIGN_VARIABLE": _assign,
    "CALL_ONCE": _call_once,
}
