"""States that a user declares: an output of one run that is an input of the next.

In: a graph (an ONNX file says nothing of states), pairs of names. Out: the graph with `Graph.states`.
Invariant: every pair has one type; the first run gets zeros, which is how such models are started.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tilewright.errors import ModelError
from tilewright.graph.ir import Graph, State


def declare_states(graph: Graph, pairs: Mapping[str, str]) -> Graph:
    """`graph` with input -> output of `pairs` kept from run to run, zeros at first.

    Raises `ModelError` for a name that is no input or output, one used twice, or a pair whose types differ.
    """
    kept = {s.input for s in graph.states}, {s.output for s in graph.states}
    states = list(graph.states)
    for source, result in pairs.items():
        i = _find(source, graph.inputs, "input", f"{source}={result}")
        o = _find(result, graph.outputs, "output", f"{source}={result}")
        if i in kept[0] or o in kept[1]:
            raise ModelError(
                f"--state {source}={result}: one of them belongs to another state already"
            )
        kept[0].add(i)
        kept[1].add(o)
        t, found = graph.types[source], graph.types[result]
        if t != found:
            raise ModelError(
                f"--state {source}={result}: the input is {t}, the output {found}; fix the sizes with "
                "--shape so that they are the same"
            )
        states.append(State(i, o, np.zeros(t.shape, t.dtype.numpy)))
    out = graph.clone()
    out.states = states
    return out


def _find(name: str, names: list[str], kind: str, shown: str) -> int:
    if name not in names:
        raise ModelError(
            f"--state {shown}: `{name}` is no {kind}; the {kind}s are {', '.join(names)}"
        )
    return names.index(name)
