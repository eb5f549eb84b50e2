"""Partition a graph into groups that become one kernel each.

In: a laid-out graph. Out: groups in execution order; a group is an anchor followed by elementwise
nodes that are applied to each of its results before it is stored.
Invariant: only the last node's value of a group leaves it; every node that needs a kernel is in
exactly one group.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from tilewright.graph.ir import Graph, Node
from tilewright.graph.layout import Placement
from tilewright.registry import operator

#: How many followers are looked at before giving up on closing a group again.
_LOOKAHEAD = 24


@dataclass(frozen=True, slots=True)
class Group:
    """`nodes[0]` is the anchor, the rest its elementwise followers in order."""

    nodes: tuple[Node, ...]

    @property
    def anchor(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]


def fuse(place: Placement, enabled: bool = True) -> list[Group]:
    """Groups of `place.graph`; `enabled=False` puts every node in a group of its own."""
    return grouped(place.graph, place.aliased, enabled)


def grouped(graph: Graph, views: Set[str] = frozenset(), enabled: bool = True) -> list[Group]:
    """Groups of the nodes of `graph` that do not make `views` alone."""
    uses = _Uses(graph)
    groups: list[Group] = []
    for node in graph.nodes:
        if id(node) in uses.taken or all(o in views for o in node.outputs):
            continue
        members = _grow(uses, node) if enabled else [node]
        uses.taken.update(id(n) for n in members)
        groups.append(Group(tuple(members)))
    groups.sort(key=lambda grp: uses.order[id(grp.nodes[-1])])
    return groups


class _Uses:
    """Who makes and reads which value, found once for the whole graph; nodes `taken` into a group."""

    def __init__(self, g: Graph) -> None:
        self.g = g
        self.consumers = g.consumers()
        self.producers = g.producers()
        self.order = {id(n): i for i, n in enumerate(g.nodes)}
        self.outputs = set(g.outputs)
        self.taken: set[int] = set()

    def escapes(self, value: str, members: set[int]) -> bool:
        """Whether anything but the nodes `members` (by identity) needs `value`."""
        readers = self.consumers.get(value, [])
        return value in self.outputs or any(id(n) not in members for n in readers)


def _grow(uses: _Uses, anchor: Node) -> list[Node]:
    """The longest chain of followers after which exactly one value is still needed outside."""
    if len(anchor.outputs) != 1 or operator(anchor.op).alone:
        return [anchor]
    members, best = [anchor], 1
    ids = {id(anchor)}
    inside = {anchor.outputs[0]}
    while len(members) < _LOOKAHEAD:
        follower = _next(uses, members, ids, inside)
        if follower is None:
            break
        members.append(follower)
        ids.add(id(follower))
        inside.add(follower.outputs[0])
        if [v for v in inside if uses.escapes(v, ids)] == [follower.outputs[0]]:
            best = len(members)
    return members[:best]


def _next(uses: _Uses, members: Sequence[Node], ids: set[int], inside: set[str]) -> Node | None:
    """The earliest elementwise consumer whose operands are all known when the group runs."""
    types, order = uses.g.types, uses.order
    shape, start = types[members[0].outputs[0]].shape, order[id(members[0])]
    candidates = {
        order[id(n)]: n
        for v in inside
        for n in uses.consumers.get(v, [])
        if id(n) not in ids and id(n) not in uses.taken
    }
    free: set[str] = set()  # shared by the candidates, so that no value is looked at twice
    for _, n in sorted(candidates.items()):
        if operator(n.op).trait != "elementwise" or len(n.outputs) != 1:
            continue
        if types[n.outputs[0]].shape != shape:
            continue
        others = (i for i in n.inputs if i and i not in inside)
        if not any(_depends(uses, i, inside, start, free) for i in others):
            return n
    return None


def _depends(uses: _Uses, name: str, inside: set[str], start: int, free: set[str]) -> bool:
    """Whether value `name`, computed outside the group, needs a value of the group.

    `free` holds values that do not, and gains those that this search shows not to.
    """
    stack, seen = [name], set[str]()
    while stack:
        v = stack.pop()
        if v in inside:
            return True
        node = uses.producers.get(v)
        if v in seen or v in free or node is None or uses.order[id(node)] <= start:
            continue
        seen.add(v)
        stack.extend(i for i in node.inputs if i)
    free |= seen
    return False
