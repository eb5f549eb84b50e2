"""Random small graphs, drawn node by node from values that fit.

In: a target. Out: a Hypothesis strategy of `GraphCase`; a search for failures.
Invariant: every graph is valid, and arithmetic in it is exact (`graph_maker`, `graph_bytes`). Fewer nodes and
earlier operators are simpler, so failures shrink towards one elementwise node.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st

from tilewright.core.dtypes import U8
from tilewright.graph.ir import Graph, TensorType
from tilewright.testing.graph_bytes import BYTE_KINDS
from tilewright.testing.graph_maker import LARGEST, MOST_ELEMENTS, Draw, Maker, is_byte, is_sum
from tilewright.testing.graphs import GraphCase, blame, judge, minimise
from tilewright.testing.rounds import one_round
from tilewright.testing.watch import Over, Slow, Watch

#: Drawn pieces of a graph: one node each, or a few between bytes and bytes.
MOST_PIECES = 8
#: Seconds for making a failure small: at most, and where the search's own time is over.
SHRINK, GRACE = 120.0, 15.0
DIMS = (1, 2, 3, 4, 5, 8, 16, 17, 33)


def _unary(m: Maker) -> None:
    a = m.value()
    ways = ("relu",) if is_byte(m.dtype(a)) else ("relu", "neg", "abs")  # -(-128) is no byte
    m.add(m.pick(ways), [a], m.most[a])


def _binary(m: Maker) -> None:
    a = m.value()
    same = [v for v in m.most if m.graph.types[v] == m.graph.types[a]]
    ways = [*same, "constant", "row"]
    b = m.pick(ways)
    if b in ("constant", "row"):
        shape = m.shape(a)
        low = 0 if m.dtype(a) is U8 else -2
        b = m.constant(shape if b == "constant" else shape[-1:], low, 2, m.dtype(a))
        most = 2
    else:
        most = m.most[b]
    op = m.pick(("max", "min") if is_byte(m.dtype(a)) else ("add", "sub", "mul", "max", "min"))
    total = m.most[a] * most if op == "mul" else m.most[a] + most
    m.add(op, [a, b] if m.draw(st.booleans()) else [b, a], total)


def _transpose(m: Maker) -> None:
    a = m.value()
    m.add("transpose", [a], m.most[a], perm=tuple(m.draw(st.permutations(range(len(m.shape(a)))))))


def _reshape(m: Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    size, last = int(np.prod(shape)), shape[-1] if shape else 1
    m.add("reshape", [a], m.most[a], shape=m.pick(((size,), (size // last, last), (1, *shape))))


def _slice(m: Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    starts = tuple(m.draw(st.integers(0, n - 1)) for n in shape)
    ends = tuple(m.draw(st.integers(s + 1, n)) for s, n in zip(starts, shape, strict=True))
    m.add("slice", [a], m.most[a], starts=starts, ends=ends, steps=(1,) * len(shape))


def _pad(m: Maker) -> None:
    a = m.value()
    before, after = (tuple(m.draw(st.integers(0, 2)) for _ in m.shape(a)) for _ in range(2))
    m.add("pad", [a], m.most[a], before=before, after=after, mode="constant", value=0.0)


def _concat(m: Maker) -> None:
    a = m.value()
    rank = len(m.shape(a))
    if not rank:
        return
    axis = m.draw(st.integers(0, rank - 1))

    def rest(v: str) -> tuple[int, ...]:
        return (*m.shape(v)[:axis], *m.shape(v)[axis + 1 :])

    def fits(v: str) -> bool:
        return m.dtype(v) is m.dtype(a) and len(m.shape(v)) == rank and rest(v) == rest(a)

    b = m.pick([v for v in m.most if fits(v)])
    m.add("concat", [a, b], max(m.most[a], m.most[b]), axis=axis)


def _matmul(m: Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if len(shape) < 2:
        return
    k = shape[-1]
    w, most = m.weights(m.dtype(a), (k, m.pick(DIMS)))
    m.add("matmul", [a, w], m.most[a] * most * k)


def _conv2d(m: Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if len(shape) != 4:
        return
    size, stride = m.pick((1, 3)), m.pick((1, 2))
    w, most = m.weights(m.dtype(a), (m.pick(DIMS), shape[1], size, size))
    bound = m.most[a] * most * shape[1] * size * size
    pads = (m.pick((0, 1)),) * 4
    m.add(
        "conv2d", [a, w], bound,
        strides=(stride, stride), pads=pads, dilations=(1, 1), group=1,
    )  # fmt: skip


def _reduce(m: Maker) -> None:
    a = m.value()
    shape = m.shape(a)
    if not shape:
        return
    axis = m.draw(st.integers(0, len(shape) - 1))
    op = m.pick(("reduce_max",) if is_byte(m.dtype(a)) else ("reduce_sum", "reduce_max"))
    most = m.most[a] * (shape[axis] if op == "reduce_sum" else 1)
    m.add(op, [a], most, axes=(axis,), keepdims=m.draw(st.booleans()))


_KINDS = (
    _unary, _binary, _transpose, _reshape, _slice, _concat, _reduce, _pad, _matmul, _conv2d,
)  # fmt: skip


@st.composite
def graph_cases(draw: Draw, target: str) -> GraphCase:
    """Graphs of up to `MOST_PIECES` pieces for `target`; every value that nobody reads is an output."""
    m = Maker(draw, Graph("drawn", [], []))
    dim = st.sampled_from(DIMS)
    any_shape = st.lists(dim, min_size=1, max_size=4)
    image = st.tuples(st.sampled_from((1, 2)), dim, st.integers(1, 9), st.integers(1, 9))
    for i in range(draw(st.integers(1, 2))):
        shape = tuple(draw(st.one_of(any_shape, image)))
        if int(np.prod(shape)) > MOST_ELEMENTS:
            shape = shape[:2]
        m.graph.inputs.append(f"x{i}")
        dtype = draw(st.sampled_from(list(LARGEST)))
        m.graph.types[f"x{i}"] = TensorType(dtype, shape)
        m.most[f"x{i}"] = LARGEST[dtype]
    for _ in range(draw(st.integers(1, MOST_PIECES))):
        bytes_too = any(is_byte(m.dtype(v)) or is_sum(m.dtype(v)) for v in m.most)
        draw(st.sampled_from([*_KINDS, *(BYTE_KINDS if bytes_too else ())]))(m)
    if not m.graph.nodes:
        m.add("relu", ["x0"], m.most["x0"])
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
    unjudged: int = 0
    """Graphs that took too long: their code is not known to be right."""
    seconds: float = 0.0
    operators: Counter[str] = field(default_factory=Counter[str])
    failures: list[GraphCase] = field(default_factory=list[GraphCase])


def fuzz_graphs(
    target: str,
    seconds: float,
    start: int = 0,
    report: Callable[[GraphReport], None] = lambda r: None,
    most: int | None = None,
    enough: int = 3,
    shrink: float = SHRINK,
) -> GraphReport:
    """Try graphs for `seconds`, at most `most` of them, until `enough` have failed; `start` is the first seed,
    `shrink` the most seconds for each part of making one small."""
    out, begin, turn = GraphReport(), time.monotonic(), start
    while len(out.failures) < enough:
        out.seconds = time.monotonic() - begin
        if out.seconds >= seconds or (most is not None and out.examples >= most):
            break
        failed = _round(target, turn, out, begin + seconds, report, most, shrink)
        turn += 1
        if failed is not None:
            small = minimise(failed, seconds=_allowed(begin + seconds, shrink))
            out.failures.append(small)
            with suppress(Over, Slow), Watch(time.monotonic() + _allowed(begin + seconds, shrink)):
                out.failures[-1] = replace(small, guilty=blame(small))
    out.seconds = time.monotonic() - begin
    return out


def _allowed(end: float, shrink: float) -> float:
    """Seconds for making a failure small in a search that ends at `end`."""
    return min(shrink, max(GRACE, end - time.monotonic()))


def _round(
    target: str, turn: int, out: GraphReport, end: float,
    report: Callable[[GraphReport], None], most: int | None, shrink: float,
) -> GraphCase | None:  # fmt: skip
    """Some graphs; the smallest failing one, if one failed."""

    def note(case: GraphCase) -> None:
        if most is not None and out.examples >= most:
            raise Over
        out.examples += 1
        out.operators.update({n.op for n in case.graph.nodes})
        report(out)

    def unjudged() -> None:
        out.unjudged += 1

    found = one_round(
        graph_cases(target), turn, end, lambda: _allowed(end, shrink), note, lambda case, _: judge(case), unjudged
    )  # fmt: skip
    return replace(found[0], failure=found[1]) if found else None
