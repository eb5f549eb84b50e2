"""Random small graphs, drawn node by node from values that fit.

In: a target. Out: a Hypothesis strategy of `GraphCase`; a search for failures.
Invariant: every graph is valid, and no value in it can exceed 2**22, so f32 arithmetic is exact. Fewer nodes and
earlier operators are simpler, so failures shrink towards one elementwise node.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tilewright.core.dtypes import F32
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Attrs, Graph, Node, TensorType
from tilewright.registry import operator
from tilewright.testing.graphs import GraphCase, blame, judge, minimise

#: Nodes of a graph, elements of a value, the largest magnitude.
MOST_NODES, MOST_ELEMENTS, EXACT = 8, 4096, 1 << 22
_DIMS = (1, 2, 3, 4, 5, 8, 16, 17, 33)

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(slots=True)
class _Maker:
    """A graph being drawn, and how large its values can be."""

    draw: Draw
    graph: Graph
    most: dict[str, int] = field(default_factory=dict[str, int])

    def pick(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def value(self) -> str:
        return str(self.pick(list(self.most)))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.types[name].shape

    def constant(self, shape: tuple[int, ...], low: int = -2, high: int = 2) -> str:
        rng = np.random.default_rng(self.draw(st.integers(0, 1000)))
        return self.graph.add_constant("c", rng.integers(low, high + 1, shape).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str], most: int, **attrs: Any) -> None:
        """Add a node unless the operator refuses it or values would be too large."""
        types = [self.graph.types[i] for i in inputs]
        made: Attrs = dict(attrs)
        try:
            (out,) = operator(op).infer(types, made)
        except (TilewrightError, ValueError):
            return
        if most > EXACT or not 0 < out.size <= MOST_ELEMENTS:
            return
        name = self.graph.fresh("v")
        self.graph.types[name] = out
        self.graph.nodes.append(Node(f"n{len(self.graph.nodes)}", op, tuple(inputs), (name,), made))
        self.most[name] = most


def _unary(m: _Maker) -> None:
    a = m.value()
    m.add(m.pick(("relu", "neg", "abs")), [a], m.most[a])


def _binary(m: _Maker) -> None:
    a = m.value()
    same = [v for v in m.most if m.shape(v) == m.shape(a)]
    ways = [*same, "constant", "row"]
    b = m.pick(ways)
    if b in ("constant", "row"):
        shape = m.shape(a)
        b = m.constant(shape if b == "constant" else shape[-1:])
        most = 2
    else:
        most = m.most[b]
    op = m.pick(("add", "sub", "mul", "max", "min"))
    total = m.most[a] * most if op == "mul" else m.most[a] + most
    m.add(op, [a, b] if m.draw(st.booleans()) else [b, a], total)


def _transpose(m: _Maker) -> None:
    a = m.value()
    m.add("transpose", [a], m.most[a], perm=tuple(m.draw(st.permutations(range(len(m.shape(a)))))))


def _reshape(m: _Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    size, last = int(np.prod(shape)), shape[-1] if shape else 1
    m.add("reshape", [a], m.most[a], shape=m.pick(((size,), (size // last, last), (1, *shape))))


def _slice(m: _Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    starts = tuple(m.draw(st.integers(0, n - 1)) for n in shape)
    ends = tuple(m.draw(st.integers(s + 1, n)) for s, n in zip(starts, shape, strict=True))
    m.add("slice", [a], m.most[a], starts=starts, ends=ends, steps=(1,) * len(shape))


def _pad(m: _Maker) -> None:
    a = m.value()
    before, after = (tuple(m.draw(st.integers(0, 2)) for _ in m.shape(a)) for _ in range(2))
    m.add("pad", [a], m.most[a], before=before, after=after, mode="constant", value=0.0)


def _concat(m: _Maker) -> None:
    a = m.value()
    rank = len(m.shape(a))
    if not rank:
        return
    axis = m.draw(st.integers(0, rank - 1))

    def rest(v: str) -> tuple[int, ...]:
        return (*m.shape(v)[:axis], *m.shape(v)[axis + 1 :])

    b = m.pick([v for v in m.most if len(m.shape(v)) == rank and rest(v) == rest(a)])
    m.add("concat", [a, b], max(m.most[a], m.most[b]), axis=axis)


def _matmul(m: _Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if len(shape) < 2:
        return
    k = shape[-1]
    w = m.constant((k, m.pick(_DIMS)))
    m.add("matmul", [a, w], m.most[a] * 2 * k)


def _conv2d(m: _Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if len(shape) != 4:
        return
    size, stride = m.pick((1, 3)), m.pick((1, 2))
    w = m.constant((m.pick(_DIMS), shape[1], size, size))
    bound = m.most[a] * 2 * shape[1] * size * size
    pads = (m.pick((0, 1)),) * 4
    m.add(
        "conv2d", [a, w], bound,
        strides=(stride, stride), pads=pads, dilations=(1, 1), group=1,
    )  # fmt: skip


def _reduce(m: _Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if not shape:
        return
    axis = m.draw(st.integers(0, len(shape) - 1))
    op = m.pick(("reduce_sum", "reduce_max"))
    most = m.most[a] * (shape[axis] if op == "reduce_sum" else 1)
    m.add(op, [a], most, axes=(axis,), keepdims=m.draw(st.booleans()))


_KINDS = (
    _unary, _binary, _transpose, _reshape, _slice, _concat, _reduce, _pad, _matmul, _conv2d,
)  # fmt: skip


@st.composite
def graph_cases(draw: Draw, target: str) -> GraphCase:
    """Graphs of up to `MOST_NODES` nodes for `target`; every value that nobody reads is an output."""
    m = _Maker(draw, Graph("drawn", [], []))
    for i in range(draw(st.integers(1, 2))):
        shape = tuple(draw(st.lists(st.sampled_from(_DIMS), min_size=1, max_size=4)))
        if int(np.prod(shape)) > MOST_ELEMENTS:
            shape = shape[:2]
        m.graph.inputs.append(f"x{i}")
        m.graph.types[f"x{i}"] = TensorType(F32, shape)
        m.most[f"x{i}"] = 2
    for _ in range(draw(st.integers(1, MOST_NODES))):
        draw(st.sampled_from(_KINDS))(m)
    if not m.graph.nodes:
        m.add("relu", ["x0"], 2)
    read = {i for n in m.graph.nodes for i in n.inputs}
    made = [o for n in m.graph.nodes for o in n.outputs]
    also = draw(st.sampled_from([[], made[:1]]))
    m.graph.outputs = list(dict.fromkeys([*(o for o in made if o not in read), *also]))
    m.graph.inputs = [n for n in m.graph.inputs if n in read]
    m.graph.types = {n: t for n, t in m.graph.types.items() if n in {*made, *read}}
    m.graph.constants = {n: a for n, a in m.graph.constants.items() if n in read}
    return GraphCase(m.graph, target, draw(st.integers(0, 3)))


# ---------------------------------------------------------------- the search


@dataclass(slots=True)
class GraphReport:
    """What came of a search: graphs tried, how often each operator was in one, failures made small."""

    examples: int = 0
    seconds: float = 0.0
    operators: Counter[str] = field(default_factory=Counter[str])
    failures: list[GraphCase] = field(default_factory=list[GraphCase])


class _Found(Exception):
    """A graph failed; Hypothesis makes it smaller."""


def fuzz_graphs(
    target: str,
    seconds: float,
    start: int = 0,
    report: Callable[[GraphReport], None] = lambda r: None,
    most: int | None = None,
    enough: int = 3,
) -> GraphReport:
    """Try graphs for `seconds`, at most `most` of them, until `enough` have failed; `start` is the first seed."""
    out, begin, turn = GraphReport(), time.monotonic(), start
    while len(out.failures) < enough:
        out.seconds = time.monotonic() - begin
        if out.seconds >= seconds or (most is not None and out.examples >= most):
            break
        failed = _round(target, turn, out, begin + seconds, report, most)
        turn += 1
        if failed is not None:
            small = minimise(failed)
            out.failures.append(replace(small, guilty=blame(small)))
    out.seconds = time.monotonic() - begin
    return out


def _round(
    target: str, turn: int, out: GraphReport, end: float,
    report: Callable[[GraphReport], None], most: int | None,
) -> GraphCase | None:  # fmt: skip
    """Some graphs; the smallest failing one, if one failed."""
    last: list[GraphCase] = []

    @seed(turn)
    @settings(
        max_examples=40, deadline=None, database=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(graph_cases(target))
    def check(case: GraphCase) -> None:
        if not last:
            if time.monotonic() > end or (most is not None and out.examples >= most):
                return
            out.examples += 1
            out.operators.update({n.op for n in case.graph.nodes})
            report(out)
        failure = judge(case)
        if failure is not None:
            last.append(replace(case, failure=failure))
            raise _Found(str(failure))

    try:
        check()
    except _Found:
        return last[-1]
    return None
