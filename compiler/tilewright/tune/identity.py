"""What tells kernels and targets apart in logs.

In: unscheduled kernels, targets. Out: short hashes and the extents by which shapes are compared.
Invariant: nothing here depends on the name of a model, a node or a buffer.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace

from tilewright.core.index import variables
from tilewright.graph.ir import Graph, Node
from tilewright.loop.ir import Alloc, For, Kernel, Let
from tilewright.loop.rewrite import accesses, loops, walk
from tilewright.loop.text import to_text
from tilewright.schedule.target import Target

_WORD = re.compile(r"[A-Za-z_][\w.]*")


def canonical_text(kernel: Kernel) -> str:
    """The kernel's text with all its names replaced by numbers in order of appearance."""
    own = {p.buffer.name for p in kernel.params}
    for s in walk(kernel.body):
        match s:
            case For(var, _, _, _):
                own.add(var)
            case Let(name, _, _):
                own.add(name)
            case Alloc(buffer):
                own.add(buffer.name)
            case _:
                pass
    numbers: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        word = found.group()
        return numbers.setdefault(word, f"%{len(numbers)}") if word in own else word

    return _WORD.sub(rename, to_text(replace(kernel, name="k"), sharing=False))


def kernel_hash(kernel: Kernel) -> str:
    """Hash of structure and shapes."""
    return _digest(canonical_text(kernel))


def target_hash(target: Target) -> str:
    """Hash of what a target file says about the device; fields at their defaults do not count, so that
    new ones leave old logs valid."""
    facts: dict[str, object] = {}
    for f in fields(target):
        value = getattr(target, f.name)
        if f.name not in ("name", "description", "emulator", "logs") and value != f.default:
            facts[f.name] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
    return _digest(json.dumps(facts, sort_keys=True))


def extents(kernel: Kernel) -> dict[str, int]:
    """Constant extents of the loops, by name."""
    found = loops(kernel.body).items()
    return {v: f.extent.const for v, f in found if f.extent.is_const}


def sum_length(kernel: Kernel) -> int:
    """Upper bound on the terms of one output element: the loops that no stored index moves with."""
    outputs = {p.buffer.name for p in kernel.params if p.role == "out"}
    moving: set[str] = set()
    for buffer, index, store in accesses(kernel.body):
        if store and buffer in outputs:
            moving = moving.union(*(variables(i) for i in index))
    return max(1, math.prod(n for v, n in extents(kernel).items() if v not in moving))


def volume(shape: Mapping[str, int]) -> int:
    """Iterations of the whole nest."""
    return math.prod(shape.values())


def distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Doublings between two shapes, summed over all loops; a missing loop has extent 1."""
    names = a.keys() | b.keys()
    return sum(abs(math.log2(a.get(v, 1) / b.get(v, 1))) for v in names)


def node_extents(graph: Graph, node: Node) -> dict[str, int]:
    """Extents of a node's output and of its constants, by position."""
    out: dict[str, int] = {}
    for name, value in (("y", node.outputs[0]), *((f"w{i}", v) for i, v in enumerate(node.inputs))):
        if name == "y" or value in graph.constants:
            out.update({f"{name}.{d}": n for d, n in enumerate(graph.types[value].shape)})
    return out


def node_hash(graph: Graph, node: Node) -> str:
    """Hash of what a node computes: operator, types, attributes, which inputs are constant."""
    inputs = [f"{graph.types[i]}{i in graph.constants}" if i else "" for i in node.inputs]
    attrs = sorted((k, repr(v)) for k, v in node.attrs.items())
    return _digest(repr((node.op, inputs, attrs)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
