"""Move transposes between channels-last and channels-first to where they cancel or end.

    op(transpose(x), ..)  -> transpose(op(x, ..))     for transposes that bring channels last, downwards
    transpose(op(x, ..))  -> op(transpose(x), ..)     for those that bring channels first, upwards

Models of channels-last formats come with such a pair around every convolution. In memory a transpose is
a view, but it stands between an operator and what could be fused with it, and keeps borders away. Once
moved, pairs meet and vanish (`simplify`). Exact. Values moved are called `name@nchw`.
"""

from __future__ import annotations

import numpy as np

from tilewright.core.attributes import integer, ints
from tilewright.graph.ir import Attrs, Graph, Node, TensorType
from tilewright.graph.passes._values import forward
from tilewright.registry import operator

Perm = tuple[int, ...]

#: Ranks with spatial dims; a transpose of rank 3 may be of a matrix, and is its own inverse.
_RANKS = (4, 5)


def move_transposes(graph: Graph) -> Graph:
    """One sweep down and one up."""
    if not any(_last(n) or _first(n) for n in graph.nodes):
        return graph
    g = graph.clone()
    _Sweep(g).down()
    _Sweep(g).up()
    g.drop_unused()
    return g


def _perm(node: Node | None) -> Perm:
    if node is None or node.op != "transpose":
        return ()
    return ints(node.attrs, "perm")


def channels_last(rank: int) -> Perm:
    """From [N, C, ..] to [N, .., C]."""
    return (0, *range(2, rank), 1)


def channels_first(rank: int) -> Perm:
    """From [N, .., C] to [N, C, ..]."""
    return (0, rank - 1, *range(1, rank - 1))


def _last(node: Node | None) -> bool:
    perm = _perm(node)
    return len(perm) in _RANKS and perm == channels_last(len(perm))


def _first(node: Node | None) -> bool:
    perm = _perm(node)
    return len(perm) in _RANKS and perm == channels_first(len(perm))


def turned(node: Node, perm: Perm) -> Attrs | None:
    """Attributes of the same operator over operands transposed by `perm`, whose result is then transposed
    by it as well; None if there is no such form."""
    attrs = node.attrs
    if operator(node.op).trait == "elementwise" or node.op == "copy":
        return attrs

    def places(name: str) -> tuple[int, ...]:
        return tuple(ints(attrs, name)[p] for p in perm)

    if node.op == "pad":
        return {**attrs, "before": places("before"), "after": places("after")}
    if node.op == "slice":
        return {k: places(k) for k in ("starts", "ends", "steps")}
    if node.op == "tile":
        return {"repeats": places("repeats")}
    if node.op in ("concat", "softmax", "log_softmax"):
        return {**attrs, "axis": perm.index(integer(attrs, "axis"))}
    if node.op.startswith("reduce_") and attrs["keepdims"]:
        return {**attrs, "axes": tuple(sorted(perm.index(a) for a in ints(attrs, "axes")))}
    if node.op in ("argmax", "argmin") and attrs["keepdims"]:
        return {**attrs, "axis": perm.index(integer(attrs, "axis"))}
    return None


class _Sweep:
    """The graph while its list of nodes is being rewritten."""

    def __init__(self, g: Graph) -> None:
        self.g = g
        self.made = g.producers()
        self.nodes: list[Node] = []

    def emit(self, node: Node) -> None:
        self.nodes.append(node)
        self.made.update((o, node) for o in node.outputs)

    # ---- down

    def down(self) -> None:
        for node in self.g.nodes:
            if not self.lowered(node):
                self.emit(node)
        self.g.nodes = self.nodes

    def lowered(self, node: Node) -> bool:
        """Put `node` before the transposes of its operands, if they all have one."""
        before = next((p for p in (self.made.get(i) for i in node.inputs) if _last(p)), None)
        if before is None or len(node.outputs) != 1:
            return False
        rank = len(_perm(before))
        out = self.g.types[node.outputs[0]]
        if out.rank != rank:
            return self.dropped(node, before)
        attrs = turned(node, channels_first(rank))
        if attrs is None or not self.turnable(node, channels_first(rank)):
            return False
        inputs = tuple(self.operand(node, i, channels_first(rank)) for i in range(len(node.inputs)))
        name = self.fresh(node.outputs[0], out, channels_first(rank))
        self.emit(node.with_(inputs=inputs, outputs=(name,), attrs=attrs))
        back: Attrs = {"perm": channels_last(rank)}
        self.emit(Node(node.name, "transpose", (name,), node.outputs, back))
        return True

    def dropped(self, node: Node, before: Node) -> bool:
        """A reduction that drops dims, where what is left keeps its order."""
        if not node.op.startswith(("reduce_", "arg")) or node.attrs["keepdims"]:
            return False
        perm = _perm(before)
        axes = ints(node.attrs, "axes") if "axes" in node.attrs else (integer(node.attrs, "axis"),)
        left = [perm[d] for d in range(len(perm)) if d not in axes]
        if left != sorted(left):
            return False
        moved = tuple(sorted(perm[a] for a in axes))
        attrs: Attrs = {"axes": moved} if "axes" in node.attrs else {"axis": moved[0]}
        self.emit(node.with_(inputs=(before.inputs[0],), attrs={**node.attrs, **attrs}))
        return True

    def turnable(self, node: Node, perm: Perm) -> bool:
        """Whether every operand can be had transposed by `perm` at no cost."""
        for i, name in enumerate(node.inputs):
            t = self.g.types[name] if name else None
            if t is None or not _follows(node, i) or name in self.g.constants:
                continue
            if _perm(self.made.get(name)) == channels_last(len(perm)):
                continue
            if sum(n != 1 for n in t.shape) > 1 or operator(node.op).trait != "elementwise":
                return False
        return True

    # ---- up

    def up(self) -> None:
        users = self.g.consumers()
        same: dict[str, str] = {}
        gone: set[int] = set()
        for node in reversed(self.g.nodes):
            turns = [u for o in node.outputs for u in users.get(o, [])]
            movable = turns and len(node.outputs) == 1 and all(_first(u) for u in turns)
            moved = None
            if movable and node.outputs[0] not in self.g.outputs:
                moved = self.raised(node, turns[0])
            if moved is None:
                self.nodes.append(node)
                continue
            same.update((u.outputs[0], turns[0].outputs[0]) for u in turns[1:])
            gone.update(map(id, turns))
            self.nodes += reversed(moved)
            for i in dict.fromkeys(node.inputs):
                users[i] = [u for u in users.get(i, []) if u is not node]
            for n in moved:
                for i in dict.fromkeys(n.inputs):
                    users.setdefault(i, []).append(n)
        self.g.nodes = [n for n in reversed(self.nodes) if id(n) not in gone]
        forward(self.g, same)

    def raised(self, node: Node, turn: Node) -> list[Node] | None:
        """`node` behind transposes of its operands instead of before `turn`, in order."""
        perm, rank = _perm(turn), self.g.types[node.outputs[0]].rank
        attrs = turned(node, perm) if rank == len(perm) else None
        if attrs is None or any(self.g.types[i].rank > rank for i in node.inputs if i):
            return None
        done, self.nodes = self.nodes, []
        inputs = tuple(self.operand(node, i, perm) for i in range(len(node.inputs)))
        made, self.nodes = self.nodes, done
        return [*made, node.with_(inputs=inputs, outputs=turn.outputs, attrs=attrs)]

    # ---- operands

    def operand(self, node: Node, i: int, perm: Perm) -> str:
        """Operand `i` of `node` transposed by `perm`."""
        name = node.inputs[i]
        if not name or not _follows(node, i):
            return name
        t = self.g.types[name]
        if t.size == 1 and operator(node.op).trait == "elementwise":
            return name
        shape = (1,) * (len(perm) - t.rank) + t.shape
        if name in self.g.constants:
            value = self.g.constants[name].reshape(shape).transpose(perm)
            return self.g.add_constant(f"{name}@nchw", np.ascontiguousarray(value))
        made = self.made.get(name)
        if made is not None and _perm(made) == channels_last(len(perm)):
            return made.inputs[0]
        if shape != t.shape:
            full = self.g.fresh(f"{name}.full")
            self.g.types[full] = TensorType(t.dtype, shape)
            self.emit(Node(node.name, "reshape", (name,), (full,), {"shape": shape}))
            name = full
        out = self.fresh(name, self.g.types[name], perm)
        self.emit(Node(node.name, "transpose", (name,), (out,), {"perm": perm}))
        return out

    def fresh(self, name: str, t: TensorType, perm: Perm) -> str:
        """A name for `name` transposed by `perm`, with its type."""
        out = self.g.fresh(f"{name}@nchw")
        self.g.types[out] = TensorType(t.dtype, tuple(t.shape[p] for p in perm))
        return out


def _follows(node: Node, i: int) -> bool:
    """Whether operand `i` has the dims of the result: what is looked up in has not."""
    return node.op != "table" or i == 0
