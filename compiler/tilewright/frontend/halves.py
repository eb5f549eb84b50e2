"""Models of float16: what lies between inputs and outputs is computed and kept in float32.

In: an imported graph. Out: the same with float16 at its inputs and outputs, where a value is cast to anything but
float32, and where an operator knows no wider type.
No target computes in float16, so keeping values in it would only round them. ONNX Runtime does the same on CPUs (its
insertion of casts, and their removal in pairs), so results agree to float32's roundings and not to float16's.
Constants become float32, as those of TensorFlow Lite models with float16 weights do.
Invariant: a value that a model casts to float16 and back with nothing between is rounded, which it asks for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.core.dtypes import F16, F32
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.registry import operator

#: Operators that look at the bits of an element.
_EXACT = frozenset({"bitcast"})


def widen_halves(graph: Graph) -> Graph:
    """`graph` with float32 in place of float16 inside; itself where there is none."""
    if all(t.dtype is not F16 for t in graph.types.values()):
        return graph
    return _Widening(graph).run()


class _Widening:
    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.new = graph.clone()
        self.new.nodes = []
        self.halves = {n for n, t in graph.types.items() if t.dtype is F16}
        self.narrow = {n: n for n in (*graph.inputs, *graph.constants) if n in self.halves}
        self.wide: dict[str, str] = {}
        self.consumers = graph.consumers()
        self.alias: dict[str, str] = {}
        """Values that are others now: casts to float32 of what is float32 already."""

    def run(self) -> Graph:
        for node in self.old.nodes:
            if node.op == "cast":
                self.cast(node)
            elif self.halves.isdisjoint((*node.inputs, *node.outputs)):
                self.keep(node)
            else:
                self.other(node)
        for name in dict.fromkeys(self.old.outputs):
            if name in self.alias:
                self.add("copy", f"output {name}", self.alias[name], name, {})
            elif name in self.halves and self.narrow.get(name) != name:
                self.add("cast", f"output {name}", self.wide[name], name, {"to": "f16"})
                self.new.types[name] = self.old.types[name]
        self.new.drop_unused()
        return self.new

    # ---- values

    def add(self, op: str, node: str, source: str, result: str, attrs: dict[str, str]) -> str:
        self.new.nodes.append(Node(node, op, (source,), (result,), attrs))
        return result

    def as_wide(self, name: str) -> str:
        """The value in float32; any other type as it is."""
        if name not in self.halves:
            return self.alias.get(name, name)
        if name not in self.wide:
            if name in self.old.constants:
                array = self.old.constants[name].astype(np.float32)
                self.wide[name] = self.new.add_constant(f"{name}.f32", array)
            else:
                self.wide[name] = self.cast_to(name, name, "f32")
        return self.wide[name]

    def as_narrow(self, name: str) -> str:
        """The value in float16; any other type as it is."""
        if name not in self.halves:
            return self.alias.get(name, name)
        if name not in self.narrow:
            self.narrow[name] = self.cast_to(self.wide[name], name, "f16")
        return self.narrow[name]

    def cast_to(self, source: str, name: str, to: str) -> str:
        result = self.new.fresh(f"{name}.{to}")
        wanted = F32 if to == "f32" else F16
        self.new.types[result] = TensorType(wanted, self.old.types[name].shape)
        return self.add("cast", f"{name} in {to}", source, result, {"to": to})

    def made(self, name: str) -> str:
        """A new name for a float16 result that is float32 now."""
        own = name if name not in self.old.outputs else self.new.fresh(f"{name}.f32")
        self.new.types[own] = replace(self.old.types[name], dtype=F32)
        self.wide[name] = own
        return own

    # ---- nodes

    def keep(self, node: Node) -> None:
        """As it is, float16 included."""
        inputs = tuple(self.as_narrow(i) if i else "" for i in node.inputs)
        self.new.nodes.append(node.with_(inputs=inputs))
        self.narrow |= {o: o for o in node.outputs if o in self.halves}

    def cast(self, node: Node) -> None:
        (source,), (result,) = node.inputs, node.outputs
        rounds = all(n.op == "cast" for n in self.consumers.get(result, []))
        if "round" in node.attrs or (result not in self.halves and source not in self.halves):
            self.keep(node)
        elif result in self.halves:
            kind = self.old.types[source].dtype
            if rounds or kind not in (F16, F32):
                self.keep(node)
            else:
                self.wide[result] = self.as_wide(source)
        elif self.new.types[result].dtype is F32:
            self.alias[result] = self.as_wide(source)
        else:
            self.keep(node)

    def other(self, node: Node) -> None:
        """In float32 where the operator takes it."""
        op = operator(node.op)
        inputs = (
            [self.as_wide(i) if i else "" for i in node.inputs] if node.op not in _EXACT else []
        )
        try:
            found = op.infer([self.new.types[i] if i else None for i in inputs], node.attrs)
        except (TilewrightError, ValueError, IndexError):
            found = []
        wanted = [
            replace(t, dtype=F32) if t.dtype is F16 else t
            for t in (self.old.types[o] for o in node.outputs)
        ]
        if found != wanted:
            self.keep(node)
            return
        outputs = tuple(self.made(o) if o in self.halves else o for o in node.outputs)
        self.new.nodes.append(node.with_(inputs=tuple(inputs), outputs=outputs))
