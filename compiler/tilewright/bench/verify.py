"""Compare a compiled model with a reference: outputs, and every layer on its own.

In: a model file, the compiled model, inputs. Out: a `Report`.
ONNX Runtime is the reference where it is installed, with the model's inner values made visible; for TFLite
models it is LiteRT's reference kernels. Our
interpreter, which accumulates in float64, explains a difference by saying who is off; it never
excuses one, because it shares importer and operator definitions with what it would excuse. What is excused is
noise: an output between 0 and 1 (-1 and 1) that a sigmoid, softmax, ... makes may be a few roundings of 1 off,
however small it is, because libraries compute it from larger numbers.
Every step that leaves a value in memory is judged twice, right after it ran:
- locally: its nodes are recomputed in float64 from the values it really read, so an error in
  generated code shows in the step that makes it and nowhere else;
- against the reference's value of the same name, so an error of importer or graph passes shows where
  it enters.
Bytes of quantised tensors may be one step away where the exact value lies between two steps, and later
layers make more of it; so with such tensors every node, also inside a step, is judged by what it makes of
the reference's own values, and outputs by their mean distance.
A value that departs from the reference's must do so from the reference's own operands as well; what comes from
further up is blamed there, or by the outputs.
A step that amplifies roundings (a sum that cancels to nothing, a state rounded to bytes at every step) is allowed a
few times what it moves in float64 when its operands move by roundings (`bench.sensitivity`).
A model with open sizes is judged layer by layer at the largest, by its outputs at others.
Invariant: the first step that departs in either way is named; nothing is judged by the outputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from tilewright.api import Compiled
from tilewright.bench.references import reference_of
from tilewright.bench.sensitivity import SLACK, unrest
from tilewright.core.dtypes import I8, U8
from tilewright.device.cuda_device import CudaModel
from tilewright.device.linux_model import LinuxModel
from tilewright.frontend.models import is_tflite, load_model
from tilewright.graph import interp
from tilewright.graph.ir import Array, Graph
from tilewright.program import Step
from tilewright.registry import operator

#: Outputs of quantised models: largest distance, relative to the reference, both as Euclidean norms.
QUANTISED_TOLERANCE = 0.05
#: Outputs of quantised TFLite models: the share of elements within one step, and the most of all steps.
STEP_SHARE, MOST_STEPS = 0.999, 2
#: Operators whose results lie within [-1, 1], and how far apart two implementations may be in absolute terms.
_BOUNDED = frozenset(
    {"sigmoid", "softmax", "tanh", "erf", "hard_sigmoid", "softsign", "sin", "cos"}
)
NOISE = 4 * float(np.finfo(np.float32).eps)
#: Operators that only move what they are given.
_MOVES = frozenset({"reshape", "transpose", "slice", "concat", "copy", "gather", "expand", "where"})
#: What a reference shows of its inside in float16 is rounded, and it goes on from that: two steps.
HALF_STEPS = 2.0**-9
#: Of a model with states, so many runs are judged layer by layer, and this many are verified at least.
JUDGED_RUNS, STATEFUL_RUNS = 3, 100


@dataclass(frozen=True, slots=True)
class OutputReport:
    """Error of one output, relative to its largest magnitude; float64's view of both explains it."""

    name: str
    magnitude: float
    error: float
    ours_vs_exact: float
    theirs_vs_exact: float
    ok: bool


@dataclass(slots=True)
class Report:
    """What a verification found. `layers` were recomputed, `shared` compared with the reference."""

    reference: str
    outputs: list[OutputReport] = field(default_factory=list[OutputReport])
    layers: int = 0
    worst_layer: float = 0.0
    shared: int = 0
    worst_shared: float = 0.0
    first_departure: str = ""
    restless: tuple[float, str] = (0.0, "")
    """The step that amplifies roundings most, of those where that explains a difference: by how much it moves by
    itself, and the value."""

    @property
    def passed(self) -> bool:
        return all(o.ok for o in self.outputs) and not self.first_departure


class Turn:
    """One run: inputs by name, outputs of ours and of the reference, and the reference's inner values."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Array], ours: Sequence[Array]) -> None:
        self.graph, self.inputs, self.ours = graph, inputs, ours
        self.theirs: Sequence[Array] = ()
        self.inner: Mapping[str, Array] = {}

    @cached_property
    def exact(self) -> list[Array]:
        """What our interpreter gives for the same inputs."""
        values = interp.run(self.graph, self.inputs)
        return [values[n] for n in self.graph.outputs]


class Verifier:
    """Verifies one compiled model on any number of inputs; the reference is prepared once, to show inner values
    unless only outputs count (`inside`)."""

    def __init__(
        self, source: Path | bytes, compiled: Compiled, tolerance: float, inside: bool = True
    ) -> None:
        self.source = source
        self.compiled = compiled
        self.program = compiled.program
        self.tolerance = tolerance
        graph = self.program.graph
        inner = {o for s in self.program.steps for o in s.outputs}
        self.quantised = any(graph.types[o].dtype in (I8, U8) for o in inner)
        if self.quantised:
            inner = {o for n in graph.nodes for o in n.outputs}
        self.states = list(graph.states)
        self.held = [s.initial for s in self.states]
        self.theirs = list(self.held)
        self.turns = 0
        self.stepwise = is_tflite(source)
        self.reference, self.reference_name = reference_of(source, inner if inside else set())

    def turn(self, inputs: Sequence[Array]) -> Turn:
        """Run everything.

        A model with states goes on from where the last call left it, in the reference as here, each from its
        own states; the values that `inputs` has for states are not used.
        """
        program = self.program
        inputs = list(inputs)
        for state, value in zip(self.states, self.held, strict=True):
            inputs[state.input] = value
        ours = self.compiled.explicit(*inputs)
        self.held = [ours[s.output] for s in self.states]
        named = dict(zip((t.name for t in program.inputs), inputs, strict=True))
        largest = [a.shape for a in inputs] == [t.type.shape for t in program.inputs]
        turn = Turn(program.graph if largest else self._graph_at(named), named, ours)
        if self.reference is not None:
            own = {
                program.inputs[s.input].name: a
                for s, a in zip(self.states, self.theirs, strict=True)
            }
            turn.theirs, turn.inner = self.reference({**named, **own})
        if len(turn.theirs) < len(
            ours
        ):  # no reference, or LiteRT, which keeps its states to itself
            turn.theirs = [*turn.theirs, *turn.exact[len(turn.theirs) :]]
        self.theirs = [turn.theirs[s.output] for s in self.states]
        return turn

    def verify(self, inputs: Sequence[Array]) -> Report:
        """Run everything and compare; outputs must agree within tolerance x largest magnitude. See `turn`."""
        turn = self.turn(inputs)
        graph = turn.graph
        report = Report(self.reference_name)
        outputs = zip(self.program.outputs, turn.ours, turn.theirs, turn.exact, strict=True)
        for t, a, b, e in outputs:
            error = relative_error(a, b)
            quiet = is_noise(graph, t.name, a, b)
            report.outputs.append(
                OutputReport(
                    t.name, float(np.abs(b).max(initial=0)), error, relative_error(a, e),
                    relative_error(b, e), error <= self.tolerance or quiet or self._near(a, b),
                )
            )  # fmt: skip
        if graph is self.program.graph and self.turns < JUDGED_RUNS:
            self._layers(list(turn.inputs.values()), turn.inner, report)
        self.turns += bool(self.states)
        return report

    def amplification(self, inputs: Sequence[Array]) -> float:
        """How far the reference's own outputs move, of their largest magnitudes, when the inputs move by roundings.

        A model with states has no answer (0): every run would start elsewhere.
        """
        reference = self.reference
        if reference is None or self.states:
            return 0.0
        named = dict(zip((t.name for t in self.program.inputs), inputs, strict=True))

        def output(i: int) -> Callable[[Mapping[str, Array]], Array]:
            return lambda x: reference(x)[0][i]

        count = len(reference(named)[0])
        return max((unrest(output(i), named, relative_error) for i in range(count)), default=0.0)

    def _graph_at(self, inputs: Mapping[str, Array]) -> Graph:
        """The model, imported anew for other sizes than the largest."""
        return load_model(self.source, {name: a.shape for name, a in inputs.items()})

    def _near(self, a: Array, b: Array) -> bool:
        """Whether outputs of a quantised model agree as a whole."""
        if self.stepwise and a.dtype.kind in "iu" and a.shape == b.shape:
            steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
            return bool((steps <= 1).mean() >= STEP_SHARE and steps.max(initial=0) <= MOST_STEPS)
        x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
        size = float(np.linalg.norm(y))
        return self.quantised and float(np.linalg.norm(x - y)) <= QUANTISED_TOLERANCE * size

    def _layers(self, inputs: Sequence[Array], inner: Mapping[str, Array], report: Report) -> None:
        """Run step by step and judge each value right after its step, before memory is reused."""
        # whole runs only: memory stays over there
        if isinstance(self.compiled, LinuxModel | CudaModel):
            return
        session = self.compiled.session()
        session.set_inputs(inputs)
        graph = self.program.graph
        stored = {o for s in self.program.steps for o in s.outputs}
        theirs = {**_as_stored(inner, graph), **dict(zip(graph.inputs, inputs, strict=True))}

        def memory(name: str) -> Array | None:
            if name not in stored and name not in graph.inputs:
                return None
            return operands.setdefault(name, np.array(session.read(name)))

        operands: dict[str, Array] = {}
        for i, step in enumerate(self.program.steps):
            operands.clear()
            expected = {o: recompute(graph, memory, o) for o in step.outputs}
            session.run_step(i)
            for name in step.outputs:
                got = session.read(name)
                report.layers += 1
                error = layer_error(got, expected[name])
                if error > self.tolerance:
                    error = self._excused(error, operands, name, report)
                report.worst_layer = max(report.worst_layer, error)
                if error > self.tolerance and not report.first_departure:
                    what = "what its nodes give in float64"
                    report.first_departure = _where(i, step, error, what)
                if name in inner and not self.quantised:
                    self._compare(i, step, name, got, theirs, report)
            if self.quantised:
                for node in graph.nodes:
                    for name in node.outputs if node.name in step.nodes else ():
                        if name in inner:
                            got = recompute(graph, theirs.get, name)
                            self._compare(i, step, name, got, theirs, report)

    def _excused(
        self, error: float, operands: Mapping[str, Array], name: str, report: Report
    ) -> float:
        """The error of a value, or 0 where roundings of its operands explain it."""
        graph = self.program.graph
        moves = unrest(lambda known: recompute(graph, known.get, name), operands, layer_error)
        if error > SLACK * moves:
            return error
        report.restless = max(report.restless, (moves, name))
        return 0.0

    def _compare(
        self,
        i: int,
        step: Step,
        name: str,
        ours: Array,
        theirs: Mapping[str, Array],
        report: Report,
    ) -> None:
        """Judge one value against the reference's of the same name.

        One that departs must do so from the reference's own operands too: else the difference is from before.
        """
        graph, wanted = self.program.graph, theirs[name]
        if ours.shape != wanted.shape:
            return
        limit = HALF_STEPS if wanted.dtype == np.float16 else self.tolerance
        error = layer_error(ours, wanted)
        if error > limit and is_noise(graph, name, ours, wanted):
            error = 0.0
        if error > limit:
            known: dict[str, Array] = {}
            error = layer_error(recompute(graph, _recorded(theirs.get, known), name), wanted)
            if error > limit:
                error = self._excused(error, known, name, report)
        report.shared += 1
        report.worst_shared = max(report.worst_shared, error)
        if error > limit and not report.first_departure:
            what = f"`{name}` in {self.reference_name}"
            report.first_departure = _where(i, step, error, what)


def _where(i: int, step: Step, error: float, against: str) -> str:
    nodes = ", ".join(f"`{n}`" for n in step.nodes)
    return f"step {i}, {step.label} (nodes {nodes}): {error:.1e} off {against}"


def relative_error(a: Array, b: Array) -> float:
    """Largest difference over largest magnitude; infinity for different shapes or misplaced NaN."""
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    special = ~np.isfinite(y)
    if special.any():
        if not np.array_equal(x[special], y[special], equal_nan=True):
            return float("inf")
        x, y = np.where(special, 0, x), np.where(special, 0, y)
    if not np.isfinite(x).all():
        return float("inf")
    scale = np.abs(y).max()
    return float(np.abs(x - y).max() / scale) if scale else float(np.abs(x).max() > 0)


def is_noise(graph: Graph, output: str, a: Array, b: Array) -> bool:
    """Whether an output of a bounded operator is as close as two libraries can be expected to be."""
    if a.shape != b.shape or a.dtype.kind != "f":
        return False
    producers = graph.producers()
    todo = [output]
    while todo:
        node = producers.get(todo.pop())
        if node is None or node.op not in _BOUNDED | _MOVES:
            return False
        if node.op in _MOVES:
            from_where = {"concat": node.inputs, "where": node.inputs[1:]}
            todo += [
                v for v in from_where.get(node.op, node.inputs[:1]) if v not in graph.constants
            ]
    with np.errstate(invalid="ignore"):
        return bool((np.abs(a.astype(np.float64) - b.astype(np.float64)) <= NOISE).all())


def layer_error(a: Array, b: Array) -> float:
    """`relative_error` of one layer; 0 for bytes of which none is more than one step away, and the same for
    float16, in which either may have been rounded."""
    error = relative_error(a, b)
    if np.isfinite(error) and np.float16 in (a.dtype, b.dtype):
        x, y = a.astype(np.float64), b.astype(np.float64)
        step = np.maximum(np.abs(y) * 2.0**-10, 2.0**-24)
        return 0.0 if (np.abs(x - y) <= step).all() else error
    if np.isfinite(error) and a.dtype == b.dtype and a.dtype in (np.int8, np.uint8):
        near = np.abs(a.astype(int) - b.astype(int)).max(initial=0) <= 1
        return 0.0 if near else error
    return error


def _recorded(
    known: Callable[[str], Array | None], seen: dict[str, Array]
) -> Callable[[str], Array | None]:
    """`known`, noting in `seen` what it was asked for and had."""

    def look(name: str) -> Array | None:
        value = known(name)
        if value is not None:
            seen[name] = value
        return value

    return look


def _as_stored(inner: Mapping[str, Array], graph: Graph) -> dict[str, Array]:
    """The reference's values; signed bytes that `graph.passes.unsigned_bytes` made unsigned are so here, too."""

    def raised(name: str, a: Array) -> bool:
        return a.dtype == np.int8 and name in graph.types and graph.types[name].dtype is U8

    return {n: a.view(np.uint8) ^ np.uint8(128) if raised(n, a) else a for n, a in inner.items()}


def recompute(graph: Graph, known: Callable[[str], Array | None], name: str) -> Array:
    """Value `name` by reference functions, from the nearest values that are `known`."""
    memo: dict[str, Array] = dict(graph.constants)
    producers = graph.producers()
    todo, needed = [name], set[str]()
    while todo:
        v = todo.pop()
        have = known(v) if v not in memo and v != name else None
        if have is not None:
            memo[v] = have
        elif v not in memo and v not in needed:
            needed.add(v)
            todo += [x for x in producers[v].inputs if x]
    for node in graph.nodes:
        if needed.isdisjoint(node.outputs):
            continue
        operands = [memo[x] if x else None for x in node.inputs]
        with np.errstate(all="ignore"):
            results = operator(node.op).reference(operands, node.attrs)
        for output, result in zip(node.outputs, results, strict=True):
            memo.setdefault(output, result)
    return memo[name]
