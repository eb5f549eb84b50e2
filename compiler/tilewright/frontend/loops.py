"""Loop, Scan and SequenceMap: their bodies once per iteration, in one straight graph.

In: the node and the importer. Out: value names. Invariant: the number of iterations is known at compile
time, or bounded by it: then what an iteration computes is kept only while the run-time condition holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx

from tilewright.core.attributes import axis_of
from tilewright.errors import ModelError
from tilewright.frontend import limits, nested
from tilewright.frontend.mapped import mapped
from tilewright.frontend.node import ForeignNode
from tilewright.frontend.sequences import element, make, members, stacked
from tilewright.frontend.tensors import element_type

if TYPE_CHECKING:
    from tilewright.frontend.importer import Importer


class _Body:
    """A nested graph that is imported once per iteration; its tensors are read once."""

    def __init__(self, importer: Importer, node: ForeignNode, inputs: int) -> None:
        self.importer, self.node = importer, node
        self.graph: onnx.GraphProto = node.attr("body")
        if len(self.graph.input) != inputs:
            raise ModelError(
                f"the body has {len(self.graph.input)} inputs, {inputs} are given to it: the file is "
                "damaged"
            )
        self.stored: Mapping[str, str] = importer.initializers(self.graph, f"{node.name}/body/")
        self.count = 0

    def run(self, given: Sequence[str]) -> list[str]:
        """The results of one iteration; none if a problem in it was reported."""
        limits.check_nodes(self.count)
        self.importer.builder.iterations += 1  # of all loops, as they nest
        limits.check_iterations(self.importer.builder.iterations)
        names = {str(i.name): v for i, v in zip(self.graph.input, given, strict=True)}
        self.count += 1
        which = f"{self.count - 1}"
        return nested.inline(self.importer, self.node, self.graph, which, {**self.stored, **names})


def loop(importer: Importer, node: ForeignNode) -> Sequence[str]:
    """`Loop`: trip count and condition in, then carried values; out: those, then stacked results."""
    carried = list(node.inputs[2:])
    body = _Body(importer, node, 2 + len(carried))
    most = _trip_count(node)
    running = ""  # the run-time condition, if there is one
    if node.has(1):
        start = node.const(1)
        if start is None:
            running = _flag(node, node.inputs[1])
        elif not start.reshape(-1)[0]:
            most = 0
    if most is None and running:
        raise node.fail(_UNBOUNDED)
    rows: list[list[str]] = []
    flags: list[str] = []  # per iteration the condition under which it counts; empty: it does
    while most is None or body.count < most:
        count = node.constant(np.asarray(body.count, np.int64), "iteration")
        flag = running or node.constant(np.asarray(True), "condition")
        results = body.run([count, flag, *carried])
        if not results:
            return ()
        after, values = results[0], results[1 : 1 + len(carried)]
        rows.append(results[1 + len(carried) :])
        flags.append(running)
        if running:
            values = [
                nested.select(node, running, a, b) for a, b in zip(values, carried, strict=True)
            ]
        carried = values
        known = node.builder.graph.constants.get(after)
        if known is None:
            node.builder.asked.append(after)
            if most is None:
                raise node.fail(_UNBOUNDED)
            after = _flag(node, after)
            running = node.add("and", [running, after])[0] if running else after
        elif not known.reshape(-1)[0]:
            break
    wanted = len(body.graph.output) - 1 - len(carried)
    stacks = [_stack(node, body.graph.output[1 + len(carried) + i], rows, i) for i in range(wanted)]
    if any(flags):
        count = _total(node, flags)
        stacks = [node.counted(s, count, 0) for s in stacks]
    return [*carried, *stacks]


_UNBOUNDED = (
    "how often it runs is not bounded at compile time: give it a constant trip count, whose iterations "
    "may still depend on a run-time condition"
)


def _trip_count(node: ForeignNode) -> int | None:
    if not node.has(0):
        return None
    given = node.need_const(0, "the trip count")
    if given.size != 1:
        raise node.fail(f"the trip count has {given.size} elements: it must be one number")
    return int(given.reshape(-1)[0])


def _flag(node: ForeignNode, value: str) -> str:
    """A condition as a scalar."""
    t = node.type_of(value)
    if t.size != 1:
        raise node.fail(f"the condition is {t}: it must be one bool")
    return node.add("reshape", [value], {"shape": ()})[0] if t.rank else value


def _total(node: ForeignNode, flags: Sequence[str]) -> str:
    """How many iterations count."""
    total = node.constant(np.asarray(flags.count(""), np.int64), "certain")
    for flag in flags:
        if flag:
            (one,) = node.add("cast", [flag], {"to": "i64"})
            (total,) = node.add("add", [total, one])
    return total


def _stack(
    node: ForeignNode, info: onnx.ValueInfoProto, rows: Sequence[Sequence[str]], i: int
) -> str:
    """Result `i` of all iterations, one beside the other along a new first axis."""
    if rows:
        return stacked(node, [row[i] for row in rows], 0, True)
    t = info.type.tensor_type
    if not t.HasField("shape") or any(not d.HasField("dim_value") for d in t.shape.dim):
        raise node.fail(
            f"it runs 0 times, and the body does not say which shape `{info.name}` has: state it there"
        )
    shape = (0, *limits.check_shape([d.dim_value for d in t.shape.dim], f"`{info.name}`"))
    dtype = element_type(t.elem_type, f"output `{info.name}` of the body")
    return node.constant(np.zeros(shape, dtype.numpy), "nothing")


def scan(importer: Importer, node: ForeignNode) -> Sequence[str]:
    """`Scan`: states and tensors that are walked along an axis in; out: last states, then stacked results."""
    count = int(node.attr("num_scan_inputs"))
    if node.opset < 9:
        return _scan_batches(importer, node, count)
    inputs = list(node.inputs)
    states, walked = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes, directions = node.attr("scan_input_axes", ()), node.attr("scan_input_directions", ())
    if not any((*directions, *node.attr("scan_output_directions", ()))):
        stacks = _mapped(importer, node, states, walked, axes)
        if stacks is not None:
            places = node.attr("scan_output_axes", ()) or [0] * len(stacks)
            return [*states, *(_moved(node, v, a) for v, a in zip(stacks, places, strict=True))]
    results = _scan(importer, node, states, walked, axes, directions)
    if not results:
        return ()
    finals, rows = results
    return [*finals, *_scanned(node, rows, node.attr("scan_output_axes", ()))]


def _mapped(
    importer: Importer,
    node: ForeignNode,
    states: Sequence[str],
    walked: Sequence[str],
    axes: Sequence[int],
) -> list[str] | None:
    """Results of a Scan whose iterations have nothing to do with each other, stacked along their first axis; None
    for any other."""
    body = _Body(importer, node, len(states) + len(walked))
    at = [axis_of(axes[i] if axes else 0, node.type_of(v).rank) for i, v in enumerate(walked)]
    lengths = {node.type_of(v).shape[a] for v, a in zip(walked, at, strict=True)}
    before, undecided = len(importer.problems), set(importer.undecided)
    if len(lengths) != 1 or lengths <= {0, 1}:
        return None
    try:
        rows = [_moved(node, v, 0, a) for v, a in zip(walked, at, strict=True)]
        return mapped(node, states, rows, body.run)
    finally:
        del importer.problems[before:]  # unrolling finds those that are ones
        importer.undecided = undecided


def _moved(node: ForeignNode, value: str, to: int, start: int = 0) -> str:
    """A value with the dim `start` at `to`."""
    rank = node.type_of(value).rank
    to = axis_of(to, rank)
    if to == start:
        return value
    order = [d for d in range(rank) if d != start]
    order.insert(to, start)
    return node.add("transpose", [value], {"perm": tuple(order)})[0]


def _scan(
    importer: Importer, node: ForeignNode, states: list[str], walked: Sequence[str],
    axes: Sequence[int], directions: Sequence[int],
) -> tuple[list[str], list[list[str]]] | None:  # fmt: skip
    """The last states, and the results of every iteration; None if a problem was reported."""
    body = _Body(importer, node, len(states) + len(walked))
    at = [axis_of(axes[i] if axes else 0, node.type_of(v).rank) for i, v in enumerate(walked)]
    lengths = {node.type_of(v).shape[a] for v, a in zip(walked, at, strict=True)}
    if len(lengths) != 1:
        raise node.fail(f"what it scans has different lengths {sorted(lengths)}: repair the model")
    (steps,) = lengths
    if not steps:
        raise node.fail("what it scans has no elements: remove the node")
    rows: list[list[str]] = []
    for t in range(steps):
        taken = [
            element(node, v, a, steps - 1 - t if directions and directions[i] else t)
            for i, (v, a) in enumerate(zip(walked, at, strict=True))
        ]
        results = body.run([*states, *taken])
        if not results:
            return None
        states = results[: len(states)]
        rows.append(results[len(states) :])
    return states, rows


def _scanned(node: ForeignNode, rows: Sequence[Sequence[str]], axes: Sequence[int]) -> list[str]:
    """Results of all iterations, stacked along their axes, in the directions wanted."""
    directions = node.attr("scan_output_directions", ())
    out: list[str] = []
    for i in range(len(rows[0])):
        values = [row[i] for row in rows]
        if directions and directions[i]:
            values.reverse()
        out.append(stacked(node, values, axes[i] if axes else 0, True))
    return out


def _scan_batches(importer: Importer, node: ForeignNode, count: int) -> Sequence[str]:
    """Opset 8: sequence lengths come first, and everything has a batch dim in front."""
    if node.has(0):
        raise node.fail("sequence lengths are not supported: export the model for opset 9 or newer")
    inputs = list(node.inputs[1:])
    directions = node.attr("directions", ())
    batches: list[list[str]] = []
    for b in range(node.type_of(inputs[0]).shape[0]):
        own = [element(node, v, 0, b) for v in inputs]
        results = _scan(
            importer, node, own[: len(own) - count], own[len(own) - count :], (), directions
        )
        if not results:
            return ()
        batches.append([*results[0], *_scanned(node, results[1], ())])
    return [stacked(node, values, 0, True) for values in zip(*batches, strict=True)]


def sequence_map(importer: Importer, node: ForeignNode) -> Sequence[str]:
    """`SequenceMap`: the body for every member of the first sequence, and of others beside it."""
    first = members(node, 0)
    body = _Body(importer, node, len(node.inputs))
    columns: list[list[str]] = [[] for _ in body.graph.output]
    for i in range(len(first)):
        given = [
            members(node, k)[i] if v in node.builder.sequences else v
            for k, v in enumerate(node.inputs)
        ]
        results = body.run(given)
        if not results:
            return ()
        for column, value in zip(columns, results, strict=True):
            column.append(value)
    return [make(node, column) for column in columns]
