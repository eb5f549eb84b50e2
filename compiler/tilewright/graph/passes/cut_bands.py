"""Maps that no near cache holds are made and used up in bands of rows.

In: a graph with its final operators, what the device's caches are worth. Out: the graph, exact, in which chains of
layers between such maps are cut into bands (`graph.bands`), where less time goes to memory than is added by
computing the rows at the edges of bands twice. The arena shrinks with it.

Attention is such a chain, too: scores, their softmax and the product with the values, head by head and then some rows at
a time. So the scores of a long text never leave the caches (as in Dao et al., FlashAttention, NeurIPS 2022).

The idea is that of fused layers (Alwani et al., Fused-Layer CNN Accelerators, MICRO 2016) and of patches on
microcontrollers (Lin et al., MCUNetV2, NeurIPS 2021); here no kernel knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tilewright.graph.bands import HEADS, RANK, ROWS, bands, cut, heights, in_bands, need, spans
from tilewright.graph.fuse import Group, grouped
from tilewright.graph.ir import Graph, Node
from tilewright.registry import operator

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
    chosen: list[tuple[list[Node], _Cut]] = []
    for run in chains(graph):
        chosen += _best(graph, run, caches)
    for nodes, found in chosen:
        graph = cut(graph, nodes, found.rows, found.heads)
    return graph


def chains(graph: Graph) -> list[list[Group]]:
    """Longest chains of groups that make maps row by row, each from what only the one before it makes."""
    groups = grouped(graph)
    consumers = graph.consumers()
    home = {id(n): k for k, g in enumerate(groups) for n in g.nodes}
    follower: dict[int, int] = {}
    taken: set[int] = set()
    for k, g in enumerate(groups):
        users = {home.get(id(n), -1) for n in consumers.get(g.output, [])}
        if len(users) != 1 or not _by_rows(graph, g):
            continue
        (user,) = users
        if user > k and user not in taken and _by_rows(graph, groups[user]):
            follower[k] = user
            taken.add(user)
    out: list[list[Group]] = []
    for k in sorted(follower.keys() - taken):
        run = [k]
        while run[-1] in follower:
            run.append(follower[run[-1]])
        out.append([groups[i] for i in run])
    return out


def _by_rows(graph: Graph, group: Group) -> bool:
    """Whether every node of a group can make rows alone, and its result has some and may be joined of parts."""
    t = graph.types[group.output]
    return group.output not in graph.outputs and (
        t.rank == RANK
        and t.shape[ROWS] > 1
        and all(need(graph, n, (0, 1)) is not None for n in group.nodes)
    )


@dataclass(frozen=True, slots=True, order=True)
class _Cut:
    """A way to cut a chain: cycles that it saves, rows of a band, heads that are computed together (0: all)."""

    gain: float
    rows: int
    heads: int


def _best(graph: Graph, run: Sequence[Group], caches: Caches) -> list[tuple[list[Node], _Cut]]:
    """The pieces of a run to cut, with the rows of their bands: by dynamic programming over its ends."""
    best: list[tuple[float, list[tuple[list[Node], _Cut]]]] = [(0.0, [])]
    for end in range(1, len(run) + 1):
        found = best[end - 1]
        for start in range(max(0, end - LONGEST), end - 1):
            piece = run[start:end]
            if all(_fits(graph, g.output, caches) for g in piece[:-1]):
                continue
            way = max(c for r in _heights(graph, piece) for c in _cuts(graph, piece, r, caches))
            if way.gain > 0 and best[start][0] + way.gain > found[0]:
                nodes = [n for g in piece for n in g.nodes]
                found = (best[start][0] + way.gain, [*best[start][1], (nodes, way)])
        best.append(found)
    return best[-1][1]


def _heights(graph: Graph, piece: Sequence[Group]) -> list[int]:
    """Rows that a band may have: those that give bands of about the same height."""
    height = graph.types[piece[-1].output].shape[ROWS]
    return heights(height, range(1, MOST + 1))


def _heads(graph: Graph, piece: Sequence[Group]) -> list[int]:
    """Heads that may be computed together, 0 for all of them: fewer where a product keeps them apart."""
    nodes = [n for g in piece for n in g.nodes]
    count = graph.types[piece[-1].output].shape[HEADS]
    apart = any(operator(n.op).apart is not None for n in nodes)
    if not apart or spans(graph, nodes, (0, 1), HEADS) is None:
        return [0]
    return [0, *heights(count, range(2, count + 1))]


def _fits(graph: Graph, value: str, caches: Caches) -> bool:
    """Whether nothing can be saved by making a map smaller."""
    return caches.rate(graph.types[value].bytes) >= caches.rate(0)


def _cuts(graph: Graph, piece: Sequence[Group], rows: int, caches: Caches) -> Iterator[_Cut]:
    """What it saves to cut a piece of a chain into bands of so many rows."""
    nodes = [n for g in piece for n in g.nodes]
    inside = [g.output for g in piece[:-1]]
    shape = graph.types[piece[-1].output].shape
    yield _Cut(0.0, rows, 0)
    found = in_bands(graph, nodes, rows)
    if found is None:
        return

    def row_bytes(value: str) -> float:
        t = graph.types[value]
        return t.bytes / t.shape[ROWS]

    whole = {g.output: _whole(graph, g) for g in piece}
    extra = found.extra / caches.flops
    for heads in _heads(graph, piece):
        share = heads / shape[HEADS] if heads else 1.0
        count = len(bands(shape[HEADS], heads)) * found.count if heads else found.count
        before = after = again = 0.0
        for value, user in zip(inside, piece[1:], strict=True):
            size = graph.types[value].bytes
            before += 2 * size / caches.rate(size)
            near = sum(found.tallest[v] * row_bytes(v) for v in (value, user.output))
            near += sum(n for i, n in whole[user.output].items() if i not in graph.constants)
            after += 2 * found.made[value] * row_bytes(value) / caches.rate(int(near * share))
        for size in (sum(operands.values()) for operands in whole.values()):
            again += (found.count - 1) * size / caches.rate(int(size * share))
        steps = (count - 1) * len(piece) * STEP
        yield _Cut(EXPOSED * (before - after) - extra - again - steps, rows, heads)


def _whole(graph: Graph, group: Group) -> dict[str, int]:
    """Bytes of the operands that each band of a group's result needs all of."""
    found: dict[str, int] = {}
    for node in group.nodes:
        wanted = need(graph, node, (0, 1))
        for name in node.inputs:
            if name and wanted is not None and name not in wanted.spans:
                found[name] = graph.types[name].bytes
    return found
