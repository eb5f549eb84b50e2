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
    "mutant", [m for m in GRAPH_MUTANTS if m.stage != "eliminate_dead"], ids=lambda m: m.name
)
def test_planted_bugs_are_named_and_made_small(mutant: GraphMutant) -> None:
    assert graphs.judge(case()) is None
    with planted(mutant):
        failure = graphs.judge(case())
        assert failure is not None
        small = graphs.minimise(case())
        assert len(small.graph.nodes) < 5 and small.failure is not None
        assert graphs.blame(small) == f"stage {mutant.stage}"


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
