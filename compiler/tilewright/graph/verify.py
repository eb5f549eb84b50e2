"""Check a graph's invariants.

In: a `Graph`. Out: nothing, or an `IRError` that names the node.
"""

from __future__ import annotations

from tilewright.errors import IRError, ModelError, TilewrightError
from tilewright.graph.ir import Graph, Node, type_of
from tilewright.registry import operator


def verify(graph: Graph) -> None:
    """Raise `IRError` unless values are defined once, before use, and have the inferred types."""
    defined: set[str] = set()
    for name in (*graph.inputs, *graph.constants):
        if name in defined:
            raise IRError(f"value `{name}` is defined twice")
        if name not in graph.types:
            raise IRError(f"value `{name}` has no type")
        defined.add(name)
    for name, array in graph.constants.items():
        if type_of(array) != graph.types[name]:
            raise IRError(f"constant `{name}` is {type_of(array)}, declared {graph.types[name]}")
    for node in graph.nodes:
        _node(graph, node, defined)
        for out in node.outputs:
            if out in defined:
                raise IRError(f"node `{node.name}`: value `{out}` is defined twice")
            defined.add(out)
    for name in graph.outputs:
        if name not in defined:
            raise IRError(f"graph output `{name}` is not defined")


def _node(graph: Graph, node: Node, defined: set[str]) -> None:
    for name in node.inputs:
        if name and name not in defined:
            raise IRError(f"node `{node.name}` ({node.op}) reads `{name}` before it is defined")
    try:
        op = operator(node.op)
    except TilewrightError as err:
        raise IRError(f"node `{node.name}`: {err}") from None
    if set(node.attrs) != set(op.attrs):
        raise IRError(
            f"node `{node.name}` ({node.op}) has attributes {sorted(node.attrs)}, wants {sorted(op.attrs)}"
        )
    for key, kind in op.attrs.items():
        if not isinstance(node.attrs[key], kind):
            raise IRError(
                f"node `{node.name}` ({node.op}): attribute `{key}` is {node.attrs[key]!r}"
            )
    try:
        types = op.infer([graph.types[i] if i else None for i in node.inputs], node.attrs)
    except ModelError as err:
        raise IRError(f"node `{node.name}`: {err}") from None
    declared = [graph.types.get(o) for o in node.outputs]
    if types != declared:
        raise IRError(
            f"node `{node.name}` ({node.op}) gives {list(map(str, types))}, declared {list(map(str, declared))}"
        )
