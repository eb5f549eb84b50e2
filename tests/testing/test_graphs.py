"""Random graphs: none fails; planted bugs in graph stages are found, named and made small."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import F32
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.schedule.target import load_target
from tilewright.testing import graphs
from tilewright.testing.graph_mutants import GRAPH_MUTANTS, GraphMutant, planted
from tilewright.testing.graph_strategies import fuzz_graphs
from tilewright.testing.graphs import GraphCase

TARGET = "x86-64-v3"
pytestmark = pytest.mark.skipif(not runs_here(load_target(TARGET)), reason="needs AVX2")


def case() -> GraphCase:
    """Two products and a sum of the first and the last value: the first one stays alive for long."""
    g = Graph("chain", ["x"], ["out"])
    rng = np.random.default_rng(0)
    w = [g.add_constant("w", rng.integers(-2, 3, (8, 8)).astype(np.float32)) for _ in range(3)]
    for name in ("x", "a", "b", "c", "d", "out"):
        g.types[name] = TensorType(F32, (4, 8))
    g.nodes = [
        Node("first", "matmul", ("x", w[0]), ("a",)),
        Node("second", "matmul", ("a", w[1]), ("b",)),
        Node("third", "matmul", ("b", w[2]), ("c",)),
        Node("sum", "add", ("c", "a"), ("d",)),
        Node("last", "relu", ("d",), ("out",)),
    ]
    return GraphCase(g, TARGET)


@pytest.mark.parametrize(
    "mutant",
    [m for m in GRAPH_MUTANTS if m.stage not in ("eliminate_dead", "cut_bands")],
    ids=lambda m: m.name,
)
def test_planted_bugs_are_named_and_made_small(mutant: GraphMutant) -> None:
    assert graphs.judge(case()) is None
    with planted(mutant):
        failure = graphs.judge(case())
        assert failure is not None
        small = graphs.minimise(case())
        assert len(small.graph.nodes) < 5 and small.failure is not None
        assert graphs.blame(small) == f"stage {mutant.stage}"


def test_a_bug_in_bands_is_named() -> None:
    """Checked code has its chains in bands, however small the maps are."""
    g = Graph("g", ["x"], ["out"], types={"x": TensorType(F32, (1, 2, 8, 3))})
    kernel = g.add_constant("w", np.ones((2, 2, 3, 1), np.float32))
    attrs = {"strides": (1, 1), "pads": (1, 0, 1, 0), "dilations": (1, 1), "group": 1}
    for name in ("a", "b", "c"):
        g.types[name] = g.types["x"]
        source = {"a": "x", "b": "a", "c": "b"}[name]
        g.nodes.append(Node(name, "conv2d", (source, kernel), (name,), attrs))  # type: ignore[arg-type]
    g.types["out"] = g.types["x"]
    g.nodes.append(Node("last", "transpose", ("c",), ("out",), {"perm": (0, 1, 2, 3)}))
    (mutant,) = (m for m in GRAPH_MUTANTS if m.stage == "cut_bands")
    assert graphs.judge(GraphCase(g, TARGET)) is None
    with planted(mutant):
        assert graphs.judge(GraphCase(g, TARGET)) is not None
        assert graphs.blame(GraphCase(g, TARGET)) == "stage cut_bands"


def test_no_drawn_graph_is_wrong() -> None:
    found = fuzz_graphs(TARGET, float("inf"), most=12, enough=1)
    assert not found.failures, graphs.to_json(found.failures[0])
    assert found.examples == 12


def test_json() -> None:
    text = graphs.to_json(case())
    assert graphs.to_json(graphs.from_json(text)) == text
    for bad in ("", "[]", "{}", text.replace('"graph": [', '"graph": 3, "more": ['), text[:-20],
                text.replace("matmul", "nothing"), text.replace('"seed": 0', '"seed": -1')):  # fmt: skip
        with pytest.raises(TilewrightError):
            graphs.from_json(bad)
