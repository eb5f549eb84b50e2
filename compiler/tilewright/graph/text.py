"""The graph's text form, which parses back.

In: a `Graph`. Out: one line per input, constant, node and output; and the way back.
Large constants are written as a content hash; `parse` takes their arrays from a dict by name.
Invariant: `same_graph(parse(to_text(g), g.constants), g)`.

    graph net
    input x: f32[1, 3, 8, 8]
    const w: f32[8, 3, 3, 3] = sha256 0123456789abcdef
    y: f32[1, 8, 8, 8] = conv2d(x, w) {dilations=(1, 1), group=1, ...} # 'conv 1'
    output y
    state 1 1 = sha256 0123456789abcdef

The last line says that output 1 of a run is input 1 of the next one, and what the first one gets; `parse`
takes its array by the name of the input.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping
from typing import Literal

import numpy as np

from tilewright.core.dtypes import ALL
from tilewright.errors import IRError
from tilewright.graph.ir import Array, AttrValue, Graph, Node, State, TensorType

#: Constants up to this many elements are readable in the text.
_INLINE = 8

Constants = Literal["inline-small", "inline", "hash"]


def to_text(graph: Graph, constants: Constants = "inline-small") -> str:
    """Text of `graph`; names are quoted only where they are not plain words.

    `constants`: which ones are written out, the others as a content hash.
    """
    limit = {"inline-small": _INLINE, "inline": None, "hash": -1}[constants]
    lines = [f"graph {_name(graph.name)}"]
    lines += [f"input {_name(n)}: {graph.types[n]}" for n in graph.inputs]
    for n, array in graph.constants.items():
        short = limit is None or array.size <= limit
        shown = _values(array) if short and not _has_nan(array) else _hash(array)
        lines.append(f"const {_name(n)}: {graph.types[n]} = {shown}")
    for node in graph.nodes:
        outs = ", ".join(f"{_name(o)}: {graph.types[o]}" for o in node.outputs)
        ins = ", ".join(_name(i) if i else "_" for i in node.inputs)
        attrs = ", ".join(f"{k}={_attr(v)}" for k, v in sorted(node.attrs.items()))
        lines.append(f"{outs} = {node.op}({ins}) {{{attrs}}} # {node.name!r}")
    lines += [f"output {_name(n)}" for n in graph.outputs]
    for state in graph.states:
        short = limit is None or state.initial.size <= limit
        shown = _values(state.initial) if short else _hash(state.initial)
        lines.append(f"state {state.input} {state.output} = {shown}")
    return "\n".join(lines) + "\n"


def same_graph(a: Graph, b: Graph) -> bool:
    """Whether two graphs are equal: structure, names and types, and constants bit for bit."""
    parts = ((g.name, g.inputs, g.outputs, g.nodes, g.types, list(g.constants)) for g in (a, b))
    same = next(parts) == next(parts) and len(a.states) == len(b.states)
    return (
        same
        and all(
            _hash(v) == _hash(b.constants[k]) and v.dtype == b.constants[k].dtype
            for k, v in a.constants.items()
        )
        and all(
            (x.input, x.output, _hash(x.initial)) == (y.input, y.output, _hash(y.initial))
            for x, y in zip(a.states, b.states, strict=True)
        )
    )


def _name(name: str) -> str:
    return name if re.fullmatch(_WORD, name, re.ASCII) and name != "_" else ascii(name)


def _attr(v: AttrValue) -> str:
    if isinstance(v, tuple):
        return f"({''.join(f'{_attr(x)}, ' for x in v).removesuffix(' ' if len(v) == 1 else ', ')})"
    return ascii(v)


def _hash(a: Array) -> str:
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]}"


def _has_nan(a: Array) -> bool:
    """NaNs have signs and payloads, which the text of a number loses."""
    return a.dtype.kind == "f" and bool(np.isnan(a).any())


def _values(a: Array) -> str:
    """Elements in order; floats in hexadecimal, so that they come back bit for bit."""
    flat = a.reshape(-1).tolist()
    return f"[{', '.join(x.hex() if isinstance(x, float) else str(x) for x in flat)}]"


# ---------------------------------------------------------------- parsing

_WORD = r"[A-Za-z_%][\w.%]*"
_TOKENS = re.compile(
    rf"""\s*(?:(?P<word>{_WORD})
    |(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<number>[+-]?(?:0x[0-9a-f.]+p[+-]?\d+|inf|nan|\d+\.?\d*(?:e[+-]?\d+)?))
    |(?P<mark>[][(){{}}:,=#]))""",
    re.VERBOSE | re.ASCII,
)


def parse(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph of `text`; `constants` gives the arrays that the text only names by their hash.

    Raises `IRError` that names the line that cannot be read.
    """
    graph = Graph("", [], [])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            _Line(graph, line, constants or {}).read()
        except (ValueError, KeyError, IndexError, OverflowError) as err:
            raise IRError(f"line {number}: cannot read `{line}` ({err})") from None
    return graph


class _Line:
    """Recursive descent over the tokens of one line."""

    def __init__(self, graph: Graph, line: str, constants: Mapping[str, Array]) -> None:
        self.graph = graph
        self.constants = constants
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(line.rstrip())
        while at < end:
            m = _TOKENS.match(line, at)
            if m is None:
                raise ValueError(f"unexpected character at column {at + 1}")
            self.tokens.append((str(m.lastgroup), m.group(str(m.lastgroup))))
            at = m.end()
        self.at = 0

    # ---- tokens

    def peek(self, text: str, ahead: int = 0) -> bool:
        i = self.at + ahead
        return i < len(self.tokens) and self.tokens[i] == ("mark", text)

    def take(self) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            raise ValueError("the line ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def expect(self, text: str) -> None:
        kind, found = self.take()
        if (kind, found) != ("mark", text):
            raise ValueError(f"expected `{text}`, found `{found}`")

    def name(self) -> str:
        kind, found = self.take()
        if kind == "string":
            return str(ast.literal_eval(found))
        if kind != "word":
            raise ValueError(f"expected a name, found `{found}`")
        return found

    # ---- grammar

    def read(self) -> None:
        """One line: a keyword and its value, or a node. A value called like a keyword has a `:`."""
        first = self.tokens[0][1] if not self.peek(":", 1) else ""
        if first == "graph":
            self.at = 1
            self.graph.name = self.name()
        elif first == "input":
            self.at = 1
            self.graph.inputs.append(self.declared())
        elif first == "output":
            self.at = 1
            self.graph.outputs.append(self.name())
        elif first == "const":
            self.at = 1
            self.const()
        elif first == "state":
            self.at = 1
            source, result = int(self.take()[1]), int(self.take()[1])
            name = self.graph.inputs[source]
            initial = self.array(name)
            self.graph.states.append(State(source, result, initial))
        else:
            self.node()
        if self.at != len(self.tokens):
            raise ValueError(f"`{self.tokens[self.at][1]}` is too much")

    def declared(self) -> str:
        """`name: dtype[shape]`."""
        name = self.name()
        if name in self.graph.types:
            raise ValueError(f"{name} is defined twice")
        self.expect(":")
        kind = self.name()
        if kind not in ALL:
            raise ValueError(f"there is no element type {kind}")
        self.expect("[")
        shape: list[int] = []
        while not self.peek("]"):
            shape.append(int(self.take()[1]))
            if not self.peek("]"):
                self.expect(",")
        self.expect("]")
        self.graph.types[name] = TensorType(ALL[kind], tuple(shape))
        return name

    def const(self) -> None:
        name = self.declared()
        self.graph.constants[name] = self.array(name)

    def array(self, name: str) -> Array:
        """`= [..]`, or a hash of the array that was given for `name`."""
        self.expect("=")
        if self.peek("["):
            return self.values(self.graph.types[name])
        digest = " ".join(text for _, text in self.tokens[self.at :])
        self.at = len(self.tokens)
        array = self.constants.get(name)
        if array is None:
            raise ValueError(f"the array of {name} was not given")
        if _hash(array).replace(" ", "") != digest.replace(" ", ""):
            raise ValueError(f"the array given for {name} has other content")
        return array

    def values(self, t: TensorType) -> Array:
        self.expect("[")
        flat: list[float | bool] = []
        while not self.peek("]"):
            _, text = self.take()
            if text in ("True", "False"):
                flat.append(text == "True")
            else:
                flat.append(float.fromhex(text) if t.dtype.is_float else int(text))
            if not self.peek("]"):
                self.expect(",")
        self.expect("]")
        return np.array(flat, t.dtype.numpy).reshape(t.shape)

    def node(self) -> None:
        outs = [self.declared()]
        while self.peek(","):
            self.expect(",")
            outs.append(self.declared())
        self.expect("=")
        op = self.name()
        self.expect("(")
        ins: list[str] = []
        while not self.peek(")"):
            absent = self.tokens[self.at] == ("word", "_")
            found = self.name()
            ins.append("" if absent else found)
            if not self.peek(")"):
                self.expect(",")
        self.expect(")")
        self.expect("{")
        attrs: dict[str, AttrValue] = {}
        while not self.peek("}"):
            key = self.name()
            self.expect("=")
            attrs[key] = self.tuple() if self.peek("(") else self.value()
            if not self.peek("}"):
                self.expect(",")
        self.expect("}")
        self.expect("#")
        self.graph.nodes.append(Node(self.name(), op, tuple(ins), tuple(outs), attrs))

    def tuple(self) -> tuple[int, ...] | tuple[float, ...]:
        self.expect("(")
        out: list[int | float] = []
        while not self.peek(")"):
            v = self.value()
            if isinstance(v, str):
                raise ValueError("a tuple holds numbers only")
            out.append(v)
            if not self.peek(")"):
                self.expect(",")
        self.expect(")")
        return tuple(out)

    def value(self) -> int | float | str | bool:
        kind, text = self.take()
        if kind == "string":
            return str(ast.literal_eval(text))
        if text in ("True", "False"):
            return text == "True"
        if text in ("inf", "nan", "-inf", "-nan"):
            return float(text)
        if kind != "number":
            raise ValueError(f"expected a value, found `{text}`")
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
