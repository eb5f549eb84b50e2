"""Which way to compute a node: the first thing to decide, since every other schedule depends on it.

In: a graph, the log. Out: whether anything is left to measure, records of what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tilewright.graph.ir import Graph, Node
from tilewright.graph.passes import optimize
from tilewright.registry import variants
from tilewright.schedule.target import Target
from tilewright.tune.identity import node_hash
from tilewright.tune.library import Library
from tilewright.tune.records import Record
from tilewright.tune.whole import TOLERANCE, WayTimes

#: A way that is not the operator's own must gain this much: it may cost memory and accuracy.
WORTH = 0.97


def unmeasured(graph: Graph, target: Target, library: Library) -> bool:
    """Whether some node could be computed in another way and no record says which is best."""
    optimised = optimize(graph)
    asked: set[str] = set()
    for node in optimised.nodes:
        ways = variants().get(node.op, {})
        digest = node_hash(optimised, node) if ways else ""
        if not ways or digest in library.ways or digest in asked:
            continue
        asked.add(digest)
        if any(_applies(optimised, node, name) for name in ways):
            return True
    return False


def _applies(graph: Graph, node: Node, name: str) -> bool:
    return variants()[node.op][name](graph.clone(), node) is not None


def way_records(found: Sequence[WayTimes], target: str, device: str) -> Iterator[Record]:
    """The best way for nodes that compute the same, over all their places in the model."""
    grouped: dict[str, list[WayTimes]] = {}
    for w in found:
        grouped.setdefault(w.kernel, []).append(w)
    for group in grouped.values():
        first, n = group[0], len(group)
        total = {
            w: sum(g.seconds[w] for g in group)
            for w in first.seconds
            if all(w in g.seconds and g.errors[w] <= TOLERANCE for g in group)
        }
        own, best = total[""], min(total, key=lambda w: total[w])
        faster = best != "" and total[best] < WORTH * own
        best = best if faster else ""
        yield Record(
            kind="variant",
            kernel=first.kernel,
            target=target,
            operator=first.operator,
            verdict="faster" if faster else "default",
            extents=first.extents,
            choice=first.choice,
            seconds=total[best] / n,
            default=own / n,
            ratio=total[best] / own,
            variant=best,
            note=", ".join(f"{w or 'own'} {s / n * 1e6:.0f} us" for w, s in total.items()),
            device=device,
        )
