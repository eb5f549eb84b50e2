"""Maps that no near cache holds are made and used up in bands of rows.

In: a graph with its final operators, what the device's caches are worth. Out: the graph, exact, in which chains of
layers between such maps are cut into bands (`graph.bands`), where less time goes to memory than is added by
computing the rows at the edges of bands twice. The arena shrinks with it.

The idea is that of fused layers (Alwani et al., Fused-Layer CNN Accelerators, MICRO 2016) and of patches on
microcontrollers (Lin et al., MCUNetV2, NeurIPS 2021); here no kernel knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.graph.bands import ROWS, bands, cut, extra_work, need, spans
from tilewright.graph.fuse import Group, grouped
from tilewright.graph.ir import Graph, Node

#: Layers of a chain, and bands of a map, at most.
LONGEST = 6
MOST = 64
#: Cycles that a step takes whatever it does: its call, its border, tiles that are not full.
STEP = 3000.0
#: Share of the time for memory that arithmetic does not hide (measured: 0.1 to 1 on Emerald Rapids).
EXPOSED = 0.3


@dataclass(frozen=True, slots=True)
class Caches:
    """`rate`: bytes per cycle at which one core streams data of so many bytes that are used together; `flops` it does
    per cycle."""

    rate: Callable[[int], float]
    flops: float


def cut_bands(graph: Graph, caches: Caches) -> Graph:
    """Cut the chains of `graph` for which that pays."""
    chosen: list[tuple[list[Node], int]] = []
    for run in chains(graph):
        chosen += _best(graph, run, caches)
    for nodes, rows in chosen:
        graph = cut(graph, nodes, rows)
    return graph


def chains(graph: Graph) -> list[list[Group]]:
    """Longest chains of groups that make maps row by row, each from what only the one before it makes."""
    groups = grouped(graph)
    consumers = graph.consumers()
    home = {id(n): k for k, g in enumerate(groups) for n in g.nodes}
    follower: dict[int, int] = {}
    for k, g in enumerate(groups):
        users = {home.get(id(n), -1) for n in consumers.get(g.output, [])}
        if len(users) != 1 or not _by_rows(graph, g):
            continue
        (user,) = users
        if user > k and _by_rows(graph, groups[user]) and user not in follower.values():
            follower[k] = user
    out: list[list[Group]] = []
    for k in sorted(follower.keys() - set(follower.values())):
        run = [k]
        while run[-1] in follower:
            run.append(follower[run[-1]])
        out.append([groups[i] for i in run])
    return out


def _by_rows(graph: Graph, group: Group) -> bool:
    """Whether every node of a group can make rows alone, and its result has some and may be joined of parts."""
    t = graph.types[group.output]
    return group.output not in graph.outputs and (
        t.rank == 4
        and t.shape[ROWS] > 1
        and all(need(graph, n, (0, 1)) is not None for n in group.nodes)
    )


def _best(graph: Graph, run: Sequence[Group], caches: Caches) -> list[tuple[list[Node], int]]:
    """The pieces of a run to cut, with the rows of their bands: by dynamic programming over its ends."""
    best: list[tuple[float, list[tuple[list[Node], int]]]] = [(0.0, [])]
    for end in range(1, len(run) + 1):
        found = best[end - 1]
        for start in range(max(0, end - LONGEST), end - 1):
            piece = run[start:end]
            if all(_fits(graph, g.output, caches) for g in piece[:-1]):
                continue
            gain, rows = max((_gain(graph, piece, r, caches), r) for r in _heights(graph, piece))
            if gain > 0 and best[start][0] + gain > found[0]:
                nodes = [n for g in piece for n in g.nodes]
                found = (best[start][0] + gain, [*best[start][1], (nodes, rows)])
        best.append(found)
    return best[-1][1]


def _heights(graph: Graph, piece: Sequence[Group]) -> list[int]:
    """Rows that a band may have: those that give bands of about the same height."""
    height = graph.types[piece[-1].output].shape[ROWS]
    return sorted({-(-height // count) for count in range(2, min(height, MOST) + 1)})


def _fits(graph: Graph, value: str, caches: Caches) -> bool:
    """Whether nothing can be saved by making a map smaller."""
    return caches.rate(graph.types[value].bytes) >= caches.rate(0)


def _gain(graph: Graph, piece: Sequence[Group], rows: int, caches: Caches) -> float:
    """Cycles saved by cutting a piece of a chain."""
    nodes = [n for g in piece for n in g.nodes]
    inside = [g.output for g in piece[:-1]]
    height = graph.types[piece[-1].output].shape[ROWS]
    made = dict.fromkeys([n.outputs[0] for n in nodes], 0)
    tallest = dict.fromkeys(made, 0)
    pieces = bands(height, rows)
    for band in pieces:
        known = spans(graph, nodes, band)
        if known is None:
            return 0.0
        for value in made:
            high = known[value][1] - known[value][0]
            made[value] += high
            tallest[value] = max(tallest[value], high)

    def row_bytes(value: str) -> float:
        t = graph.types[value]
        return t.bytes / t.shape[ROWS]

    before = after = 0.0
    for value, user in zip(inside, piece[1:], strict=True):
        size = graph.types[value].bytes
        before += 2 * size / caches.rate(size)
        near = tallest[value] * row_bytes(value) + tallest[user.output] * row_bytes(user.output)
        after += 2 * made[value] * row_bytes(value) / caches.rate(int(near))
    twice = extra_work(graph, nodes, rows) / caches.flops
    for node in nodes:
        weights = sum(graph.types[i].bytes for i in node.inputs[1:] if i in graph.constants)
        twice += (len(pieces) - 1) * weights / caches.rate(weights)
    steps = (len(pieces) - 1) * len(piece) * STEP
    return EXPOSED * (before - after) - twice - steps
