"""Kernels to test, from operators: one node, lowered as the compiler lowers it.

In: an operator, one of its samples, other dims. Out: the unscheduled kernel of the node.
Invariant: an operator needs nothing but its `samples`: dims of a sample are renamed consistently over all
operands (and whole-number attributes where they must follow), and what the operator's type rule refuses is not used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import TilewrightError
from tilewright.graph.fuse import fuse
from tilewright.graph.ir import Attrs, AttrValue, Graph, Node, TensorType, type_of
from tilewright.graph.layout import assign_layouts
from tilewright.loop.ir import Kernel
from tilewright.lower import lower_group
from tilewright.registry import Operator, Sample, operators, register

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, repr=False)
class Subject:
    """A kernel and where it came from: operator and number of the sample."""

    operator: str
    sample: int
    kernel: Kernel


@cache
def samples(name: str) -> tuple[Sample, ...]:
    """An operator's samples; none for an operator without them."""
    op = operators()[name]
    if op.samples is None:
        return ()
    return tuple(op.samples(np.random.default_rng(0)))


@cache
def testable(name: str) -> tuple[int, ...]:
    """Numbers of the samples that become a kernel."""
    found: list[int] = []
    for i, _ in enumerate(samples(name)):
        try:
            subject(name, i, {}, constants=True)
        except TilewrightError:
            continue
        found.append(i)
    return tuple(found)


def dims(sample: Sample) -> tuple[int, ...]:
    """The different extents of a sample's operands, which may be renamed."""
    return tuple(
        sorted({n for a in sample.inputs if a is not None for n in a.shape if n > 1}, reverse=True)
    )


def subject(name: str, number: int, renamed: Mapping[int, int], constants: bool) -> Subject:
    """The kernel of sample `number` with dims renamed; all operands but the first are constants if wanted.

    Raises `TilewrightError` if the operator refuses these dims, or needs no kernel.
    """
    operator = operators()[name]
    sample = samples(name)[number]
    for attrs in _attributes(sample.attrs, renamed):
        types = [
            None if a is None else _renamed(type_of(a), renamed if i == 0 or a.size > 1 else {})
            for i, a in enumerate(sample.inputs)
        ]
        try:
            outs = operator.infer(types, attrs)
        except (TilewrightError, ValueError, LookupError, AssertionError, ArithmeticError):
            continue
        if any(0 in t.shape or t.size > 1 << 20 for t in outs):
            continue
        graph = _graph(operator, sample, types, outs, attrs, constants)
        return Subject(name, number, _kernel(graph))
    raise TilewrightError(f"{name} does not take sample {number} with dims {dict(renamed)}")


def _attributes(attrs: Attrs, renamed: Mapping[int, int]) -> Iterator[Attrs]:
    """The attributes as they are, then with numbers that follow the dims."""
    yield attrs
    if not renamed:
        return

    def follow(v: AttrValue) -> AttrValue:
        if type(v) is int:
            return renamed.get(v, v)
        if isinstance(v, tuple):
            return tuple(renamed.get(x, x) if type(x) is int else x for x in v)
        return v

    yield {k: follow(v) for k, v in attrs.items()}


def _renamed(t: TensorType, renamed: Mapping[int, int]) -> TensorType:
    return TensorType(t.dtype, tuple(renamed.get(n, n) for n in t.shape))


def _graph(
    op: Operator, sample: Sample, types: Sequence[TensorType | None], outs: Sequence[TensorType],
    attrs: Attrs, constants: bool,
) -> Graph:  # fmt: skip
    g = Graph("one", [], [])
    names: list[str] = []
    for i, t in enumerate(types):
        if t is None:
            names.append("")
        elif i and constants:
            array = sample.inputs[i]
            assert array is not None
            fits = array.shape == t.shape
            names.append(g.add_constant(f"c{i}", array if fits else _grown(array, t.shape)))
        else:
            names.append(f"x{i}")
            g.inputs.append(names[-1])
            g.types[names[-1]] = t
    if not g.inputs:
        raise TilewrightError(f"{op.name} has no operand that is not constant")
    g.outputs = [f"y{i}" for i in range(len(outs))]
    g.types.update(zip(g.outputs, outs, strict=True))
    g.nodes = [Node(op.name, op.name, tuple(names), tuple(g.outputs), attrs)]
    return g


def _grown(array: Array, shape: Sequence[int]) -> Array:
    """The values repeated or cut to another shape."""
    index = np.ix_(*(np.arange(n) % m for n, m in zip(shape, array.shape, strict=True)))
    return np.ascontiguousarray(array[index])


def _kernel(graph: Graph) -> Kernel:
    """The kernel of the graph's node."""
    place = assign_layouts(graph)
    node = graph.nodes[0]
    for group in fuse(place):
        if group.anchor.op == node.op and group.anchor.name == node.name:
            return lower_group(place, group).kernel
    raise TilewrightError(f"{node.op} moves no data here: it needs no kernel")


# ---------------------------------------------------------------- operators of the user's own


def load_operators(path: Path) -> list[Operator]:
    """The operators of a file of the user's own; raises `TilewrightError` if it has none."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise TilewrightError(f"{path} is no operator file: name a Python file with OPERATORS")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:  # whatever the file does
        raise TilewrightError(f"{path} cannot be loaded: {type(err).__name__}: {err}") from None
    found = list(getattr(module, "OPERATORS", ()))
    if not found or not all(isinstance(o, Operator) for o in found):
        raise TilewrightError(f"{path} has no OPERATORS: list[Operator] (docs/operators.md)")
    register(found)
    samples.cache_clear()
    testable.cache_clear()
    return found
