"""Time whole models in a worker process: what tuning changed, and where it did harm.

In: a graph, a target, two libraries. Out: times of both, interleaved, of every step in place.
Invariant: results are compared as well as times; a step is timed where it runs in the model, with
the caches as its predecessors left them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tilewright.graph.ir import Array, Graph, Node
from tilewright.graph.passes.choose_variants import Chooser
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.registry import variants
from tilewright.schedule.space import Value
from tilewright.schedule.target import Target
from tilewright.session import Session
from tilewright.tune.identity import node_extents, node_hash
from tilewright.tune.library import Library, node_choice
from tilewright.tune.records import Record
from tilewright.tune.verdicts import paired_ratio

#: Another way to compute may differ from the operator's own by this share of the largest magnitude.
TOLERANCE = 1e-3
#: A schedule loses in place if its steps take longer than the default's by this share and this time.
SLACK = 0.02
SLACK_SECONDS = 3e-7
#: Rounds of whole models at least; how long to wait for as many again that nothing disturbed.
ROUNDS = 25
LAST_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class WayTimes:
    """One node (`name`, `operator`, identity as in the log): seconds of each way to compute it in place
    (empty name: the operator's own), and the largest difference of its result from the own way's,
    relative to the largest magnitude."""

    name: str
    operator: str
    kernel: str
    extents: Mapping[str, int]
    choice: Mapping[str, Value]
    seconds: Mapping[str, float]
    errors: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Least and median seconds of a run with default schedules and with tuned ones, interleaved;
    `steps`: kernel hash -> (default, tuned) seconds of its steps in place; `losers`: kernels whose
    schedule was slower there and is not part of `tuned`."""

    default: float
    tuned: float
    default_median: float
    tuned_median: float
    ratio: float
    steps: Mapping[str, tuple[float, float]]
    losers: tuple[str, ...]
    error: float


def make_inputs(program: Program, seed: int = 0) -> list[Array]:
    """Random inputs; whole numbers below the shortest table they may index for integer types."""
    rng = np.random.default_rng(seed)
    out: list[Array] = []
    for t in program.inputs:
        dtype = t.type.dtype.numpy
        data = rng.standard_normal(t.type.shape) if dtype.kind == "f" else np.zeros(t.type.shape)
        out.append(data.astype(dtype))
    return out


def time_ways(graph: Graph, target: Target, library: Library, rounds: int) -> list[WayTimes]:
    """Time every variant of every node that has some, inside the whole model."""
    names = sorted({name for ways in variants().values() for name in ways})
    nodes: dict[str, WayTimes] = {}
    built: dict[str, Session] = {}
    for name in ["", *names]:
        program = build(graph, target, variants=_always(name, nodes), library=library)
        if not name or any(f"{n}/" in m.name for m in program.graph.nodes for n in nodes):
            built[name] = Session(program)
            built[name].set_inputs(make_inputs(program))
    if len(built) == 1:
        return []
    values: dict[tuple[str, str], Array] = {}
    for name, session in built.items():
        values.update({(name, v): a for v, a in _values(session).items()})
    turns = _steps_in_place(list(built.values()), rounds)
    times = {w: np.median(t, axis=0).tolist() for w, t in zip(built, turns, strict=True)}
    found: list[WayTimes] = []
    for node in nodes.values():
        seconds = {w: _node_seconds(built[w].program, t, node.name) for w, t in times.items()}
        errors = _way_errors(built, values, node.name)
        used = {w: s for w, s in seconds.items() if w in errors and s > 0}
        if len(used) > 1 and "" in used:
            found.append(replace(node, seconds=used, errors={w: errors[w] for w in used}))
    return found


def _always(name: str, seen: dict[str, WayTimes]) -> Chooser:
    """Choose way `name` wherever it exists; note the nodes that were asked about."""

    def choose(graph: Graph, node: Node) -> str | None:
        if node.name not in seen:
            here = node_extents(graph, node)
            seen[node.name] = WayTimes(
                node.name, node.op, node_hash(graph, node), here, node_choice(graph, node), {}, {}
            )
        return name if name in variants().get(node.op, {}) else None

    return choose


def _node_seconds(program: Program, times: Sequence[float], node: str) -> float:
    """Time of all steps that work for a node; variants name their nodes `NODE/...`."""
    return sum(
        t
        for s, t in zip(program.steps, times, strict=True)
        if any(n == node or n.startswith(node + "/") for n in s.nodes)
    )


def _way_errors(
    built: Mapping[str, Session], values: Mapping[tuple[str, str], Array], node: str
) -> dict[str, float]:
    """Difference of a node's group from the own way's, per way that really computes it otherwise."""
    out: dict[str, float] = {}
    want: Array | None = None
    for name, session in built.items():
        steps = session.program.steps
        last = next((s for s in steps if node in s.nodes and s.outputs), None)
        if last is None or (
            name and not any(n.startswith(f"{node}/") for s in steps for n in s.nodes)
        ):
            continue
        value = values[(name, last.outputs[0])]
        if not name:
            want = value
            out[name] = 0.0
        elif want is not None and want.shape == value.shape:
            out[name] = _outputs_differ([want], [value])
    return out


def _values(session: Session) -> dict[str, Array]:
    """What each step leaves in memory, read right after it."""
    out: dict[str, Array] = {}
    for i, s in enumerate(session.program.steps):
        session.run_step(i)
        out.update({v: session.read(v) for v in s.outputs})
    return out


def _steps_in_place(sessions: Sequence[Session], rounds: int) -> list[Array]:
    """Seconds of every step of every model, rounds x steps, over whole runs that take turns."""
    times = [np.zeros((rounds, len(s.program.steps))) for s in sessions]
    for s in sessions:
        s.run()
    for r in range(rounds):
        for session, table in zip(sessions, times, strict=True):
            for i in range(table.shape[1]):
                start = time.perf_counter()
                session.run_step(i)
                table[r, i] = time.perf_counter() - start
    return times


def compare(
    graph: Graph,
    target: Target,
    before: Library,
    after: Library,
    kernels: Sequence[tuple[str, str]],
    seconds: float,
) -> Comparison:
    """Time the model as compiled with `before` and with `after`, less the schedules that lose in place.

    `kernels`: hash and operator of the kernels of `after`, in the order in which the pipeline asks.
    """
    a = _session(graph, target, before)
    b = _session(graph, target, after)
    plain = Library(after.target, ways=after.ways)
    c = _session(graph, target, plain) if any(w.variant for w in after.ways.values()) else a
    once = _timed(a)
    rounds = max(ROUNDS, min(100, int(0.25 * seconds / (2 * once))))
    steps, losers = _judge_steps(b, c, kernels, rounds)
    if losers:
        back = {
            h: Record(kind="winner", kernel=h, target=after.target, operator=o, verdict="retracted")
            for h, o in losers.items()
        }
        b = _session(
            graph, target, Library(after.target, after.kin, {**after.winners, **back}, after.ways)
        )
    error = _outputs_differ(a.run(), b.run())
    turns_a: list[float] = []
    turns_b: list[float] = []
    repeat = max(1, int(2e-3 / once))
    end = time.monotonic() + max(0.3 * seconds, LAST_SECONDS)
    while len(turns_a) < ROUNDS or (len(turns_a) < 8 * ROUNDS and time.monotonic() < end):
        turns_a.append(_timed(a, repeat))
        turns_b.append(_timed(b, repeat))
    ratio, _ = paired_ratio(turns_a, turns_b)
    return Comparison(
        min(turns_a), min(turns_b), float(np.median(turns_a)), float(np.median(turns_b)),
        ratio, steps, tuple(losers), error,
    )  # fmt: skip


def _judge_steps(
    tuned: Session, default: Session, kernels: Sequence[tuple[str, str]], rounds: int
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Per kernel hash (default, tuned) seconds in place, and operators of those that are slower."""
    times = _steps_in_place((tuned, default), rounds)
    program = tuned.program
    found: dict[str, tuple[float, float]] = {}
    losers: dict[str, str] = {}
    for kernel, (digest, operator) in zip(program.kernels, kernels, strict=True):
        mine = [i for i, s in enumerate(program.steps) if s.kernel == kernel.name]
        t, d = (x[:, mine].sum(axis=1) for x in times)
        ratio, error = paired_ratio(t, d)
        base = float(np.median(d))
        found[digest] = (base, base * ratio)
        searched = program.reasons[kernel.name].startswith(("log", "transferred"))
        lost = (ratio - error - 1) * base > SLACK * base + SLACK_SECONDS * len(mine)
        if searched and lost:
            losers[digest] = operator
    return found, losers


def _session(graph: Graph, target: Target, library: Library) -> Session:
    """The model compiled with a library, ready to run on the same inputs as any other."""
    session = Session(build(graph, target, library=library))
    session.set_inputs(make_inputs(session.program))
    return session


def _timed(session: Session, repeat: int = 1) -> float:
    """Seconds per run after one that is not timed."""
    session.run()
    start = time.perf_counter()
    for _ in range(repeat):
        session.run()
    return (time.perf_counter() - start) / repeat


def _outputs_differ(want: Sequence[Array], got: Sequence[Array]) -> float:
    worst = 0.0
    for a, b in zip(want, got, strict=True):
        if a.size == 0:
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        scale = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)), 1e-30)
        off = np.where(same, 0.0, np.abs(x - y))
        worst = max(worst, float(np.where(np.isnan(off), np.inf, off).max()) / scale)
    return worst
