"""Samples of an operator as one graph: what tests of other machines build once and run once."""

from __future__ import annotations

from tilewright.graph.ir import Array, Graph, Node, type_of
from tilewright.registry import Sample, operator


def program_of(name: str, samples: list[Sample]) -> tuple[Graph, list[Array]]:
    """One node per sample, each with inputs and an output of its own; parameters are constants."""
    op = operator(name)
    g = Graph(name, [], [])
    inputs: list[Array] = []
    for k, sample in enumerate(samples):
        names: list[str] = []
        for i, a in enumerate(sample.inputs):
            if a is None:
                names.append("")
            elif i:
                names.append(g.add_constant(f"c{k}_{i}", a))
            else:
                names.append(f"x{k}")
                g.types[f"x{k}"] = type_of(a)
                g.inputs.append(f"x{k}")
                inputs.append(a)
        types = [None if a is None else type_of(a) for a in sample.inputs]
        g.types.update({f"y{k}": t for t in op.infer(types, sample.attrs)})
        g.nodes.append(Node(f"node {k}", name, tuple(names), (f"y{k}",), sample.attrs))
        g.outputs.append(f"y{k}")
    return g, inputs
