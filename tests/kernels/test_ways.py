"""Transposed convolutions as ordinary ones: the same results, chosen for few channels."""

from __future__ import annotations

import numpy as np

from tilewright.graph import interp
from tilewright.graph.ir import Graph, Node, type_of
from tilewright.graph.passes.choose_variants import choose_variants
from tilewright.graph.verify import verify
from tilewright.pipeline import build
from tilewright.registry import Sample, operator, ways
from tilewright.schedule.target import load_target
from tilewright.session import Session

OP = operator("conv_transpose2d")


def graph_of(sample: Sample) -> Graph:
    g = Graph("one", ["x"], ["y"])
    x, *constants = (np.asarray(a) for a in sample.inputs)
    g.types["x"] = type_of(x)
    names = ["x", *(g.add_constant(f"c{i}", a) for i, a in enumerate(constants))]
    g.nodes = [Node("node", OP.name, tuple(names), ("y",), sample.attrs)]
    (g.types["y"],) = OP.infer([g.types[n] for n in names], sample.attrs)
    return g


def test_phases_as_channels() -> None:
    assert OP.samples is not None
    changed = 0
    for sample in OP.samples(np.random.default_rng(0)):
        g = graph_of(sample)
        other = choose_variants(g, lambda graph, node: "convolution")
        verify(other)
        changed += other.nodes != g.nodes
        x = {"x": np.asarray(sample.inputs[0])}
        want = interp.run(g, x)["y"]
        np.testing.assert_allclose(interp.run(other, x)["y"], want, rtol=1e-5, atol=1e-5)
        session = Session(build(g, "host", variants=lambda graph, node: "convolution"))
        session.set_inputs([x["x"]])
        np.testing.assert_allclose(session.run()[0], want, rtol=1e-4, atol=1e-4)
    assert changed >= 2


def test_it_is_chosen_for_few_channels() -> None:
    rng = np.random.default_rng(0)
    attrs = {
        "strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1), "output_padding": (0, 0), "group": 1,
    }  # fmt: skip
    rule, v4 = ways()[OP.name], load_target("x86-64-v4")
    for filters, name in ((1, "convolution"), (24, None)):
        arrays = tuple(
            rng.standard_normal(s).astype("f4") for s in ((1, 8, 4, 4), (8, filters, 2, 2))
        )
        g = graph_of(Sample(arrays, attrs))
        assert rule(g, g.nodes[0], v4) == name
        assert rule(g, g.nodes[0], load_target("cortex-m4")) is None
