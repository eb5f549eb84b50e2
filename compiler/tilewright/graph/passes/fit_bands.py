"""Make a graph fit into an arena: chains of layers are cut into bands of rows where most memory is needed.

In: a graph with its final operators, the bytes that may be used, a function that measures a graph. Out: the graph,
exact, in bands (`graph.bands`) until it fits, or until no cut makes it smaller.
Of the cuts that are enough, the one is taken that computes least twice; of others, the one that leaves least.

Patch-based inference on microcontrollers is from Lin et al., MCUNetV2, NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

from tilewright.graph.bands import ROWS, cut, heights, in_bands
from tilewright.graph.ir import Graph, Node
from tilewright.graph.passes.cut_bands import chains

#: Layers of a chain at most, and how many times a graph is cut.
LONGEST = 10
MOST = 6
#: Numbers of bands that are tried.
COUNTS = (2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that a graph needs at the same time, and the values that are alive then."""

    bytes: int
    values: Set[str]


def fit_bands(graph: Graph, limit: int, measure: Callable[[Graph], Usage]) -> Graph:
    """Cut `graph` until it needs at most `limit` bytes, as far as that goes."""
    for _ in range(MOST):
        usage = measure(graph)
        if usage.bytes <= limit:
            break
        tried = [
            (max(measure(made).bytes, limit), found.extra, k, made)
            for k, (nodes, rows) in enumerate(_candidates(graph, usage.values))
            if (found := in_bands(graph, nodes, rows)) is not None
            for made in (cut(graph, nodes, rows),)
        ]
        if not tried:
            break
        best = min(tried, key=lambda t: t[:3])
        if best[0] >= usage.bytes:
            break
        graph = best[3]
    return graph


def _candidates(graph: Graph, alive: Set[str]) -> Iterator[tuple[list[Node], int]]:
    """Pieces of chains inside of which a value of `alive` lies, with rows for their bands."""
    for run in chains(graph):
        for start in range(len(run)):
            for end in range(start + 2, min(start + LONGEST, len(run)) + 1):
                piece = run[start:end]
                if any(g.output in alive for g in piece[:-1]):
                    nodes = [n for g in piece for n in g.nodes]
                    height = graph.types[piece[-1].output].shape[ROWS]
                    yield from ((nodes, rows) for rows in heights(height, COUNTS))
