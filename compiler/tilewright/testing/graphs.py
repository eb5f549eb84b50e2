"""Small graphs of operators, compiled with and without each stage of the pipeline.

In: a `GraphCase`. Out: a `Failure`, or None; a smaller case; the stage to blame.
Invariant: values are whole numbers small enough that every sum is exact, so whatever passes, layouts, fusion, the
memory plan and threads do, results are those of the operators' references bit for bit. The arena is poisoned
before a run: what is read before it is written shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from tilewright.codegen.llvm import runs_here
from tilewright.errors import AccessError, TargetError, TilewrightError
from tilewright.graph import interp
from tilewright.graph.bands import ROWS, cut, in_bands
from tilewright.graph.ir import Array, Graph, TensorType
from tilewright.graph.passes.cut_bands import chains
from tilewright.graph.passes.eliminate_dead import eliminate_dead
from tilewright.graph.text import parse, to_text
from tilewright.graph.verify import verify
from tilewright.pipeline import build, rewritten, stages
from tilewright.schedule.target import load_target
from tilewright.session import Session
from tilewright.testing.case import SCHEMA, Failure
from tilewright.testing.watch import Over, Slow, Watch
from tilewright.testing.worker import PATIENCE, Unjudged
from tilewright.tune.library import load_library
from tilewright.tune.workers import LocalExecutor, WorkerLost, WorkerTimeout

#: Smallest and largest input, by type.
_INPUTS = {"i8": (-128, 127), "u8": (0, 255), "i32": (-99_999, 99_999)}
#: Bytes the arena is filled with before a run.
POISONS = (0xFF, 0x00)


@dataclass(frozen=True, slots=True, repr=False)
class GraphCase:
    """A graph whose constants are whole numbers, the target it is compiled for, the seed of its inputs."""

    graph: Graph
    target: str
    seed: int = 0
    guilty: str = ""
    failure: Failure | None = None

    def __repr__(self) -> str:
        ops = ", ".join(n.op for n in self.graph.nodes)
        return f"<graph case on {self.target}: {ops}>"

    def inputs(self) -> dict[str, Array]:
        """Whole numbers from -2 to 2, any bytes, i32 as sums of products of bytes are."""
        rng = np.random.default_rng(self.seed)

        def values(t: TensorType) -> Array:
            low, high = _INPUTS.get(t.dtype.name, (-2, 2))
            return rng.integers(low, high + 1, t.shape).astype(t.dtype.numpy)

        return {n: values(self.graph.types[n]) for n in self.graph.inputs}


# ---------------------------------------------------------------- judging


class Stopped(Exception):
    """Checked code met an index outside its buffer."""


def compiled_results(case: GraphCase, without: Set[str], poison: int, checked: bool) -> list[Array]:
    """Outputs of the compiled graph, its chains of layers in bands where the code is checked. Runs in a worker process."""
    graph = all_in_bands(case.graph) if checked and "cut_bands" not in without else case.graph
    # Winograd's transforms divide by 6 and 24, which is not exact
    program = build(graph, case.target, without=without, winograd=False)
    session = Session(program.with_checks() if checked else program)
    session.arena[...] = poison
    for out in session.outputs:
        out.reshape(-1).view(np.uint8)[...] = poison
    session.set_inputs(case.inputs())
    try:
        return session.run()
    except AccessError as err:
        raise Stopped(str(err)) from None


def all_in_bands(graph: Graph) -> Graph:
    """The graph with every chain of layers in two bands or three, whether that gains anything or not."""
    for run in chains(graph):
        nodes = [n for group in run for n in group.nodes]
        height = graph.types[nodes[-1].outputs[0]].shape[ROWS]
        rows = max(1, height // 2)
        if in_bands(graph, nodes, rows) is not None:
            graph = cut(graph, nodes, rows)
    return graph


_workers: list[LocalExecutor] = []
#: Statements that plant bugs in each process that compiles graphs (`graph_mutants`).
BUGS: list[str] = []


def worker() -> LocalExecutor:
    """The process that compiles and runs graphs."""
    if not _workers:
        _workers.append(LocalExecutor(1, 60.0, PATIENCE))
        for statements in BUGS:
            _workers[0].submit(exec, statements, {}).result()
    return _workers[0]


def forget_worker() -> None:
    """End that process; the next graph gets another one."""
    while _workers:
        _workers.pop().shutdown(wait=False, cancel_futures=True)


def _ask(fn: Callable[..., Any], *args: Any) -> Any:
    """What a function gives or raises in that process."""
    future = worker().submit(fn, *args)
    try:
        return future.result()
    except WorkerTimeout:
        forget_worker()
        raise Unjudged("compiling the graph takes too long") from None
    except WorkerLost:
        forget_worker()
        raise
    finally:
        if not future.done():  # who waited was interrupted: so is the job
            forget_worker()


def judge(case: GraphCase, without: Set[str] = frozenset()) -> Failure | None:
    """What is wrong with the compiled graph, if anything. Raises `TargetError` if its code does not run here."""
    if not runs_here(load_target(case.target)):
        raise TargetError(f"graphs are run here, and code for {case.target} does not run here")
    want = interp.run(case.graph, case.inputs())
    for poison, checked in ((POISONS[0], False), (POISONS[1], True)):
        how = "checked code" if checked else "compiled"
        try:
            got = _ask(compiled_results, case, without, poison, checked)
        except Unjudged:
            raise
        except WorkerLost as err:
            return Failure("graph", f"{how}: {err}")
        except (Stopped, TilewrightError) as err:
            return Failure("graph", f"{how}: {err}")
        for (name, expected), mine in zip(want.items(), got, strict=True):
            wrong = mine != expected
            if wrong.any():
                at = tuple(int(i[0]) for i in np.nonzero(wrong))
                text = f"{int(wrong.sum())} of {wrong.size} elements differ: {mine[at]} instead of {expected[at]}"
                return Failure("graph", f"{how}: {text}", name, at)
    return None


def blame(case: GraphCase) -> str:
    """The stage to blame: the first graph pass whose result means something else, as the operators' references say.
    Else one without which the case passes: of several one that makes it fail with all others off, or the last one,
    for what stands before it only made what it did wrong."""
    every = stages()
    if judge(case, frozenset(every)) is not None:
        return "lowering, schedule or code generation: it fails without any graph stage"
    first = _ask(changes_meaning, case)
    if first:
        return f"stage {first}"
    needed = [name for name in every if judge(case, {name}) is None]
    alone = [n for n in needed if len(needed) > 1 and judge(case, frozenset(every) - {n})]
    if needed:
        return f"stage {(alone or needed[-1:])[0]}"
    return "stages together: it passes without any of them, and fails without any single one"


def changes_meaning(case: GraphCase) -> str:
    """The first pass that, after all before it, makes another graph of it, or nothing. Runs in a worker process."""
    machine = load_target(case.target)
    choose = load_library(machine).chooser(machine, winograd=False)
    inputs, want = case.inputs(), interp.run(case.graph, case.inputs())
    every = stages()
    for i, name in enumerate(every):
        try:
            made = rewritten(case.graph, machine, choose, frozenset(every[i + 1 :]))
            got = interp.run(made, inputs)
        except Exception:  # whatever its nodes are: they were right before
            return name
        if any((got[n] != a).any() for n, a in want.items()):
            return name
    return ""


# ---------------------------------------------------------------- making smaller


def minimise(
    case: GraphCase,
    test: Callable[[GraphCase], Failure | None] = judge,
    seconds: float = 60.0,
) -> GraphCase:
    """A case with fewer nodes that still fails. Graphs are few enough to try all ways of making one smaller."""
    best, shrunk = case, True
    with suppress(Over), Watch(time.monotonic() + seconds) as watch:
        while shrunk:
            shrunk = False
            for candidate in _smaller(best):
                watch.check()
                watch.begin()
                try:
                    failure = test(candidate)
                except (TilewrightError, Slow):
                    continue
                if failure is not None:
                    best, shrunk = replace(candidate, failure=failure), True
                    break
    return best


def _smaller(case: GraphCase) -> Iterator[GraphCase]:
    """Fewer outputs; nodes left out, their results being outputs' ends or inputs instead."""
    g = case.graph
    for i in range(len(g.outputs)) if len(g.outputs) > 1 else ():
        yield from _whole(case, g, outputs=[g.outputs[i]])
    for node in reversed(g.nodes):
        if g.outputs != [node.outputs[0]]:
            yield from _whole(case, g, outputs=[node.outputs[0]])
    for k in range(len(g.nodes)):
        made = g.clone()
        node = made.nodes.pop(k)
        made.inputs = [*made.inputs, *node.outputs]
        yield from _whole(case, made, outputs=made.outputs)


def _whole(case: GraphCase, graph: Graph, outputs: list[str]) -> Iterator[GraphCase]:
    made = graph.clone()
    made.outputs = list(outputs)
    made = eliminate_dead(made)
    read = {i for n in made.nodes for i in n.inputs}
    made.inputs = [n for n in made.inputs if n in read]
    try:
        verify(made)
    except TilewrightError:
        return
    if made.nodes and made.inputs and not set(made.inputs) & set(made.outputs):
        yield replace(case, graph=made)


# ---------------------------------------------------------------- JSON


def to_json(case: GraphCase) -> str:
    """The case as JSON, complete in itself."""
    f = case.failure
    table = {
        "schema": SCHEMA,
        "kind": "graph",
        "tilewright": metadata.version("tilewright"),
        "target": case.target,
        "seed": case.seed,
        "graph": to_text(case.graph, "inline").splitlines(),
        "guilty": case.guilty,
        "failure": f and {"message": f.message, "buffer": f.buffer, "index": list(f.index)},
    }
    return json.dumps(table, indent=1) + "\n"


def from_json(text: str | bytes) -> GraphCase:
    """The case of a JSON text; `TilewrightError` says what is wrong with it."""
    try:
        table: Any = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise TilewrightError(f"the case is not JSON: {err}") from None
    if not is_graph_case(table):
        raise TilewrightError("the file is not a graph case of `tilewright fuzz --graphs`")
    lines, target, seed = table.get("graph"), table.get("target"), table.get("seed")
    good = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    if not good or not isinstance(target, str) or not isinstance(seed, int) or seed < 0:
        raise TilewrightError("the graph case lacks lines of `graph`, a `target` or a `seed`")
    graph = parse("\n".join(lines))
    verify(graph)
    return GraphCase(graph, target, seed, str(table.get("guilty", "")))


def is_graph_case(table: object) -> bool:
    """Whether JSON holds a graph case rather than one of a kernel."""
    return (
        isinstance(table, dict) and table.get("schema") == SCHEMA and table.get("kind") == "graph"
    )
