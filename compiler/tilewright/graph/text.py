"""The graph's text form, which parses back.

In: a `Graph`. Out: one line per input, constant, node and output; and the way back.
Large constants are written as a content hash; `parse` takes their arrays from a dict by name.
Invariant: parse(to_text(g), g.constants) equals g.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilewright.core.dtypes import ALL
from tilewright.errors import IRError
from tilewright.graph.ir import Array, AttrValue, Graph, Node, TensorType

_INLINE = 8


def to_text(graph: Graph) -> str:
    """Text of `graph`; names are quoted only where they are not plain words."""
    lines = [f"graph {_name(graph.name)}"]
    lines += [f"input {_name(n)}: {graph.types[n]}" for n in graph.inputs]
    for n, array in graph.constants.items():
        lines.append(f"const {_name(n)}: {graph.types[n]} = {_array(array)}")
    for node in graph.nodes:
        outs = ", ".join(f"{_name(o)}: {graph.types[o]}" for o in node.outputs)
        ins = ", ".join(_name(i) if i else "_" for i in node.inputs)
        attrs = ", ".join(f"{k}={_attr(v)}" for k, v in sorted(node.attrs.items()))
        lines.append(f"{outs} = {node.op}({ins}) {{{attrs}}} # {node.name!r}")
    lines += [f"output {_name(n)}" for n in graph.outputs]
    return "\n".join(lines) + "\n"


def _name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z%][\w.%]*", name) and name != "_" else repr(name)


def _attr(v: AttrValue) -> str:
    return repr(v)


def _array(a: Array) -> str:
    if a.size <= _INLINE:
        flat = [x.hex() if isinstance(x, float) else x for x in a.reshape(-1).tolist()]
        return repr(flat)
    return f"sha256 {hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]}"


# ---------------------------------------------------------------- parsing

_TOKEN = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\w.%]+)"
_TYPED = re.compile(rf"({_TOKEN}): (\w+)\[([\d, ]*)\]")


def parse(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph of `text`; `IRError` names the line that cannot be read."""
    graph = Graph("", [], [])
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _line(graph, line, constants or {})
        except (ValueError, SyntaxError, KeyError, AttributeError, TypeError) as err:
            raise IRError(f"line {number}: cannot read `{line}` ({err})") from None
    return graph


def _unquote(token: str) -> str:
    token = token.strip()
    return str(ast.literal_eval(token)) if token[:1] in "'\"" else token


def _line(graph: Graph, line: str, constants: Mapping[str, Array]) -> None:
    if not line.strip():
        return
    if line.startswith("graph "):
        graph.name = _unquote(line[6:])
    elif line.startswith("input "):
        graph.inputs.append(_declare(graph, line[6:]))
    elif line.startswith("output "):
        graph.outputs.append(_unquote(line[7:]))
    elif line.startswith("const "):
        head, value = re.match(rf"(const {_TYPED.pattern}) = (.*)", line).group(1, 5)  # type: ignore[union-attr]
        name = _declare(graph, head[6:])
        t = graph.types[name]
        if value.startswith("sha256 "):
            array = constants[name]
            if _array(array) != value:
                raise ValueError(f"the given array for {name} has other content")
            graph.constants[name] = array
        else:
            flat = [float.fromhex(v) if isinstance(v, str) else v for v in ast.literal_eval(value)]
            graph.constants[name] = np.array(flat, t.dtype.numpy).reshape(t.shape)
    else:
        _node_line(graph, line)


def _declare(graph: Graph, text: str) -> str:
    m = _TYPED.fullmatch(text.strip())
    if m is None:
        raise ValueError("expected `name: dtype[shape]`")
    name = _unquote(m.group(1))
    shape = tuple(int(n) for n in m.group(3).split(",") if n.strip())
    graph.types[name] = TensorType(ALL[m.group(2)], shape)
    return name


def _node_line(graph: Graph, line: str) -> None:
    m = re.fullmatch(r"(.*?) = (\w+)\((.*?)\) \{(.*)\} # (.*)", line)
    if m is None:
        raise ValueError("expected a node")
    outs = [_declare(graph, part.group(0)) for part in _TYPED.finditer(m.group(1))]
    ins = [_unquote(t) for t in re.findall(_TOKEN, m.group(3))]
    attrs: dict[str, Any] = {}
    for key, value in re.findall(r"(\w+)=((?:\([^()]*\)|'[^']*'|[^,()])+)(?:, |$)", m.group(4)):
        attrs[key] = _literal(value)
    graph.nodes.append(
        Node(
            str(ast.literal_eval(m.group(5))), m.group(2), tuple("" if i == "_" else i for i in ins),
            tuple(outs), attrs,
        )
    )  # fmt: skip


def _literal(text: str) -> Any:
    if text in ("inf", "-inf", "nan"):
        return float(text)
    return ast.literal_eval(text)
