"""Partition a graph into groups that become one kernel each.

In: a laid-out graph. Out: groups in execution order; a group is an anchor followed by elementwise
nodes that are applied to each of its results before it is stored.
Invariant: only the last node's value of a group leaves it; every node that needs a kernel is in
exactly one group.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    g = place.graph
    consumers = g.consumers()
    position = {id(n): i for i, n in enumerate(g.nodes)}
    taken: set[int] = set()
    groups: list[Group] = []
    for node in g.nodes:
        if id(node) in taken or all(o in place.aliased for o in node.outputs):
            continue
        members = _grow(g, place, node, consumers, taken) if enabled else [node]
        taken.update(id(n) for n in members)
        groups.append(Group(tuple(members)))
    groups.sort(key=lambda grp: position[id(grp.nodes[-1])])
    return groups


def _grow(
    g: Graph, place: Placement, anchor: Node, consumers: dict[str, list[Node]], taken: set[int]
) -> list[Node]:
    """The longest chain of followers after which exactly one value is still needed outside."""
    if len(anchor.outputs) != 1:
        return [anchor]
    shape = g.types[anchor.outputs[0]].shape
    members, best = [anchor], 1
    inside = {anchor.outputs[0]}
    outputs = set(g.outputs)
    while len(members) < _LOOKAHEAD:
        follower = _next(g, members, inside, shape, consumers, taken, place)
        if follower is None:
            break
        members.append(follower)
        inside.add(follower.outputs[0])
        alive = [v for v in inside if _escapes(v, members, consumers, outputs)]
        if alive == [follower.outputs[0]]:
            best = len(members)
    return members[:best]


def _next(
    g: Graph,
    members: Sequence[Node],
    inside: set[str],
    shape: tuple[int, ...],
    consumers: dict[str, list[Node]],
    taken: set[int],
    place: Placement,
) -> Node | None:
    """The earliest elementwise consumer whose operands are all known when the group runs."""
    candidates: list[Node] = []
    for v in inside:
        candidates += [n for n in consumers.get(v, []) if n not in members]
    order = {id(n): i for i, n in enumerate(g.nodes)}
    for n in sorted(candidates, key=lambda n: order[id(n)]):
        if id(n) in taken or operator(n.op).trait != "elementwise" or len(n.outputs) != 1:
            continue
        if g.types[n.outputs[0]].shape != shape:
            continue
        if any(
            _depends(g, i, inside, order[id(members[0])]) for i in n.inputs if i and i not in inside
        ):
            continue
        return n
    return None


def _depends(g: Graph, name: str, inside: set[str], start: int) -> bool:
    """Whether value `name`, computed outside the group, needs a value of the group."""
    producers = g.producers()
    order = {id(n): i for i, n in enumerate(g.nodes)}
    stack, seen = [name], set[str]()
    while stack:
        v = stack.pop()
        if v in inside:
            return True
        node = producers.get(v)
        if v in seen or node is None or order[id(node)] <= start:
            continue
        seen.add(v)
        stack.extend(i for i in node.inputs if i)
    return False


def _escapes(
    value: str, members: Sequence[Node], consumers: dict[str, list[Node]], outputs: set[str]
) -> bool:
    ids = {id(n) for n in members}
    return value in outputs or any(id(n) not in ids for n in consumers.get(value, []))
