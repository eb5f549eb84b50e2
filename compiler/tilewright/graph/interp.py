"""Run a graph with the operators' NumPy reference functions: the definition of a model's meaning.

In: a `Graph` and input arrays by name. Out: values by name.
Invariant: floats accumulate in float64, so this is at least as accurate as any compiled code; every
value has the type that the graph declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from tilewright.errors import IRError, ModelError
from tilewright.graph.ir import Array, Graph, type_of
from tilewright.registry import operator


def run(
    graph: Graph,
    inputs: Mapping[str, Array],
    keep: Iterable[str] | Literal["all"] | None = None,
) -> dict[str, Array]:
    """Outputs of `graph` by name, in order, then the other values named in `keep`.

    `keep="all"` gives every value, inputs and constants included. Otherwise values are dropped after
    their last use. Raises `ModelError` for an input that is missing, unknown or of the wrong type.
    """
    values = {**graph.constants, **_checked_inputs(graph, inputs)}
    everything = keep == "all"
    wanted = dict.fromkeys([*graph.outputs, *(() if everything else keep or ())])
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for i, node in enumerate(graph.nodes):
        with np.errstate(all="ignore"):
            results = operator(node.op).reference(
                [values[n] if n else None for n in node.inputs], node.attrs
            )
        for name, value in zip(node.outputs, results, strict=True):
            values[name] = np.asarray(value)
            if type_of(values[name]) != graph.types[name]:
                raise IRError(
                    f"node `{node.name}` ({node.op}) computed {type_of(values[name])}, declared "
                    f"{graph.types[name]}"
                )
        if everything:
            continue
        for name in (*node.inputs, *node.outputs):
            if last.get(name, i) == i and name not in wanted:
                values.pop(name, None)
    names = dict.fromkeys([*wanted, *values]) if everything else wanted
    return {name: values[name] for name in names if name in values}


def _checked_inputs(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    extra = sorted(set(inputs) - set(graph.inputs))
    if extra:
        raise ModelError(
            f"there is no input `{extra[0]}`: the model's inputs are {', '.join(graph.inputs)}"
        )
    out: dict[str, Array] = {}
    for name in graph.inputs:
        if name not in inputs:
            raise ModelError(f"input `{name}` is missing")
        out[name] = np.asarray(inputs[name])
        if type_of(out[name]) != graph.types[name]:
            raise ModelError(
                f"input `{name}` is {type_of(out[name])}, the model wants {graph.types[name]}"
            )
    return out
