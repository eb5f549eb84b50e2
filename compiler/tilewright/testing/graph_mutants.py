"""Bugs planted in graph stages, for `mutation_table` and the tests of the search itself.

In: nothing. Out: for each bug what is wrong, the statements that plant it in a process, and the stage to blame.
Invariant: a bug lives in the worker that compiles and runs graphs, never in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tilewright.testing import graphs


@dataclass(frozen=True, slots=True)
class GraphMutant:
    """`statements`, executed in the worker, make `what` is wrong of the stage called `stage`."""

    name: str
    what: str
    statements: str
    stage: str


_PASS = """
import tilewright.pipeline as p
def planted(change, name):
  def one(old):
    def run(g):
      g = old(g).clone()
      change(g)
      return g
    run.__name__ = name
    return run
  p.PASSES = tuple(one(q) if q.__name__ == name else q for q in p.PASSES)
"""

GRAPH_MUTANTS: tuple[GraphMutant, ...] = (
    GraphMutant(
        "life-too-short", "the memory plan lets a tensor go after the step that makes it",
        "import tilewright.graph.plan as p\n"
        "A = p.Allocation\n"
        "p.Allocation = lambda n, size, a, b: A(n, size, a, a)", "memory",
    ),
    GraphMutant(
        "stale-fusion", "what is fused behind an operator is another operator",
        "import tilewright.pipeline as p\n"
        "from tilewright.graph.fuse import Group, fuse\n"
        "def wrong(place, on=True):\n"
        "  def bad(n): return n.with_(op='abs') if n.op == 'relu' else n\n"
        "  return [Group((g.nodes[0], *map(bad, g.nodes[1:]))) for g in fuse(place, on)]\n"
        "p.fuse = wrong", "fuse",
    ),
    GraphMutant(
        "pass-changes-operator", "a pass turns one operator into another",
        _PASS + "def change(g):\n"
        "  for i, n in enumerate(g.nodes):\n"
        "    if n.op == 'relu': g.nodes[i] = n.with_(op='neg')\n"
        "planted(change, 'simplify')", "simplify",
    ),
    GraphMutant(
        "pass-swaps-operands", "a pass swaps the operands of subtractions",
        _PASS + "def change(g):\n"
        "  for i, n in enumerate(g.nodes):\n"
        "    if n.op == 'sub': g.nodes[i] = n.with_(inputs=n.inputs[::-1])\n"
        "planted(change, 'eliminate_dead')", "eliminate_dead",
    ),
    GraphMutant(
        "bands-pad-inside", "bands are padded where others begin",
        "import tilewright.registry as r, tilewright.core.window as w\n"
        "old = w.Window.rows\n"
        "def rows(self, first, end, height):\n"
        "  low, high, above, below = old(self, first, end, height)\n"
        "  return (low + 1, high, above + 1, below) if low > 0 and high - low > 1 else (low, high, above, below)\n"
        "w.Window.rows = rows", "cut_bands",
    ),
)  # fmt: skip


@contextmanager
def planted(mutant: GraphMutant) -> Iterator[None]:
    """Workers with one bug more."""
    graphs.forget_worker()
    graphs.BUGS.append(mutant.statements)
    try:
        yield
    finally:
        graphs.BUGS.pop()
        graphs.forget_worker()
