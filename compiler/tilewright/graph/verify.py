"""Check a graph's invariants.

In: a `Graph`. Out: nothing, or an `IRError` that names the node or value.
Invariant: a graph that passes can be interpreted, and its values have the types it declares.
"""

from __future__ import annotations

from tilewright.errors import IRError, ModelError, TilewrightError
from tilewright.graph.ir import Graph, Node, type_of
from tilewright.registry import Operator, operator

#: What a type rule raises that is given inputs or attributes it does not know how to read.
_CONFUSED = (ValueError, LookupError, TypeError, AssertionError, AttributeError, ArithmeticError)


def verify(graph: Graph) -> None:
    """Raise `IRError` unless values are defined once, before use, and have the inferred types."""
    defined: set[str] = set()
    for name in (*graph.inputs, *graph.constants):
        _define(graph, name, defined, "")
    for name, array in graph.constants.items():
        try:
            found = type_of(array)
        except (KeyError, TypeError):
            raise IRError(f"constant `{name}` has the unknown element type {array.dtype}") from None
        if found != graph.types[name]:
            raise IRError(f"constant `{name}` is {found}, declared {graph.types[name]}")
    for node in graph.nodes:
        _node(graph, node, defined)
    for name in graph.outputs:
        if name not in defined:
            raise IRError(f"graph output `{name}` is not defined")
    for state in graph.states:
        if not (0 <= state.input < len(graph.inputs) and 0 <= state.output < len(graph.outputs)):
            raise IRError(f"a state names input {state.input} and output {state.output}")
        types = {graph.types[graph.inputs[state.input]], graph.types[graph.outputs[state.output]]}
        if types != {type_of(state.initial)}:
            raise IRError(f"state `{graph.inputs[state.input]}` changes its type")


def _define(graph: Graph, name: str, defined: set[str], where: str) -> None:
    if not name:
        raise IRError(f"{where}a value has no name")
    if name in defined:
        raise IRError(f"{where}value `{name}` is defined twice")
    if name not in graph.types:
        raise IRError(f"{where}value `{name}` has no type")
    if any(n < 0 for n in graph.types[name].shape):
        raise IRError(f"{where}value `{name}` has a negative dimension: {graph.types[name]}")
    defined.add(name)


def _node(graph: Graph, node: Node, defined: set[str]) -> None:
    where = f"node `{node.name}` ({node.op})"
    for name in node.inputs:
        if name and name not in defined:
            raise IRError(f"{where} reads `{name}` before it is defined")
    try:
        op = operator(node.op)
    except TilewrightError as err:
        raise IRError(f"{where}: {err}") from None
    _attrs(node, op, where)
    for name in node.outputs:
        _define(graph, name, defined, f"{where}: ")
    try:
        types = op.infer([graph.types[i] if i else None for i in node.inputs], node.attrs)
    except ModelError as err:
        raise IRError(f"{where}: {err}") from None
    except _CONFUSED as err:
        raise IRError(
            f"{where} has inputs or attributes that its operator cannot read "
            f"({type(err).__name__}: {err})"
        ) from None
    declared = [graph.types[o] for o in node.outputs]
    if types != declared:
        raise IRError(
            f"{where} gives {', '.join(map(str, types))}, declared {', '.join(map(str, declared))}"
        )


def _attrs(node: Node, op: Operator, where: str) -> None:
    """The attributes are those of the operator's schema, of the types the IR allows."""
    if set(node.attrs) - set(op.optional_attrs) != set(op.attrs):
        raise IRError(f"{where} has attributes {sorted(node.attrs)}, wants {sorted(op.attrs)}")
    for key, kind in {**op.attrs, **op.optional_attrs}.items():
        if key not in node.attrs:
            continue
        value = node.attrs[key]
        wanted = kind if isinstance(kind, tuple) else (kind,)
        # bool is an int to Python, but not to an operator
        fits = bool in wanted if isinstance(value, bool) else isinstance(value, wanted)
        if isinstance(value, tuple):
            fits = fits and all(isinstance(v, int | float) for v in value)
        if not fits:
            names = " or ".join(k.__name__ for k in wanted)
            raise IRError(f"{where}: attribute `{key}` is {value!r}, it must be {names}")
