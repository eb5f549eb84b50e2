"""Run a graph with the operators' NumPy reference functions: the definition of a model's meaning.

In: a `Graph` and input arrays by name. Out: values by name.
Invariant: floats accumulate in float64, so this is at least as accurate as any compiled code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.ir import Array, Graph, type_of
from tilewright.registry import operator


def run(
    graph: Graph, inputs: Mapping[str, Array], keep: Iterable[str] | None = None
) -> dict[str, Array]:
    """Outputs of `graph` by name, and the values named in `keep` as well.

    Raises `ModelError` for a missing input or one of the wrong type. Values are dropped after their
    last use.
    """
    values: dict[str, Array] = dict(graph.constants)
    for name in graph.inputs:
        if name not in inputs:
            raise ModelError(f"input `{name}` is missing")
        array = np.asarray(inputs[name])
        if type_of(array) != graph.types[name]:
            raise ModelError(
                f"input `{name}` is {type_of(array)}, the model wants {graph.types[name]}"
            )
        values[name] = array
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    wanted = {*graph.outputs, *(keep or ())}
    for i, node in enumerate(graph.nodes):
        with np.errstate(all="ignore"):
            out = operator(node.op).reference(
                [values[n] if n else None for n in node.inputs], node.attrs
            )
        values.update(zip(node.outputs, out, strict=True))
        for name in node.inputs:
            if last.get(name) == i and name not in wanted:
                values.pop(name, None)
    return {name: values[name] for name in wanted if name in values}
