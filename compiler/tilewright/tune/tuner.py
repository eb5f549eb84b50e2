"""Tune a model: the loop that decides what to try, has it measured, and logs what came of it.

In: a graph, a target, a time budget, an executor. Out: records in a log folder and a `Result`.
Invariants: everything that was measured is in the log before anything is concluded from it; whatever ends
the process loses the trials in flight and nothing else; the same call goes on where the log ends.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilewright.codegen.llvm import runs_here
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Graph
from tilewright.loop.ir import Kernel
from tilewright.pipeline import build
from tilewright.registry import Operator
from tilewright.schedule.space import Choice
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace
from tilewright.tune import board, records
from tilewright.tune.allocate import Progress, pick
from tilewright.tune.identity import extents, kernel_hash, sum_length, target_hash
from tilewright.tune.library import Decision, Library, default_trace, load_library, space_of
from tilewright.tune.measure import Job, measure
from tilewright.tune.model import CostModel, available, relative_cost
from tilewright.tune.records import Record
from tilewright.tune.search import Search
from tilewright.tune.state import Result, State, Task
from tilewright.tune.verdicts import Outcome
from tilewright.tune.ways import unmeasured, way_records
from tilewright.tune.whole import TOLERANCE, Comparison, WayTimes, compare, time_ways
from tilewright.tune.workers import LocalExecutor, WorkerLost, WorkerTimeout, isolated

#: Candidates per job, rounds of a trial and of a confirmation.
BATCH = 8
ROUNDS = 12
CONFIRM_ROUNDS = 40
#: Seconds a job may take; seconds a whole-model comparison may take.
JOB_SECONDS = 60.0
WHOLE_SECONDS = 600.0
#: Share of the budget that is kept for comparing whole models at the end, time to compile a kernel.
LAST_SHARE = 0.1
KERNEL_SECONDS = 0.1
#: A kernel that was tried this often without success is settled: its default stays.
ENOUGH = 18
#: How often a job whose worker was lost from outside is handed in again.
RETRIES = 2


@dataclass(slots=True)
class _Flight:
    """A job under way."""

    task: Task
    candidates: list[tuple[Choice, Trace]]
    confirm: bool
    attempt: int = 0


class Tuner:
    """Tunes one graph for one target; see `run`."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        folder: Path,
        executor: Executor | None = None,
        slots: int = 1,
        device: str = "",
        seed: int | None = None,
        report: Callable[[State], None] = lambda state: None,
        label: str = "",
        floor: Callable[[int, int], float] = lambda flops, size: 0.0,
    ) -> None:
        if target.gpu is not None and device:
            raise TilewrightError(
                f"schedules for {target.name} are ranked by a model of it: leave out the device `{device}`"
            )
        self.graph, self.target, self.folder = graph, target, folder
        self.here = runs_here(target) and not device
        self.emulated = target.gpu is not None or (
            bool(target.emulator) and shutil.which(target.emulator[0]) is not None
        )
        if not device and board.emulated(target):
            device = "emulator"  # its instructions are exact and cheap to count
        self.local = LocalExecutor(1, WHOLE_SECONDS)
        self.own = executor is None
        self.executor = executor or LocalExecutor(slots, JOB_SECONDS)
        self.slots, self.device, self.label = max(1, slots), device, label or device
        self.rng = random.Random(seed)
        self.report, self.floor = report, floor
        self.source: records.Source = "measured"  # of the last trial
        self.identity = target_hash(target)
        self.library = load_library(target)
        for record in records.read(folder, target.name, self.library.problems):
            self.library.add(record)
        self.models: dict[tuple[str, str], CostModel] = {}
        self.state = State("start", [], time.monotonic(), time.monotonic())
        self.flights: dict[Future[Any], _Flight] = {}

    def run(self, seconds: float) -> Result:
        """Tune for `seconds`, or less if `report` sets an earlier `state.deadline`; Ctrl-C ends it at once and keeps
        everything found so far."""
        start = time.monotonic()
        self.state.started, self.state.deadline = start, start + seconds
        self._notes()
        ways: list[WayTimes] = []
        comparison: Comparison | None = None
        interrupted = False
        try:
            if self.here:
                ways = self._choose_ways(seconds)
            self._collect()
            self._search(self._reserve(seconds))
            self._settle()
            if self.here:
                comparison = self._compare(max(2.0, self.state.deadline - time.monotonic()))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.local.shutdown(wait=False, cancel_futures=True)
            if self.own:
                self.executor.shutdown(wait=False, cancel_futures=True)
        self.state.stage = "interrupted" if interrupted else "done"
        self.report(self.state)
        return Result(self.state, tuple(ways), comparison, interrupted, self.folder)

    def _reserve(self, seconds: float) -> float:
        """Time that comparing whole models will take: mostly compiling them."""
        if not self.here:
            return 0.0
        compiling = 2 * KERNEL_SECONDS * len(self.state.tasks)
        return max(LAST_SHARE * seconds, min(compiling, 0.4 * seconds))

    def _notes(self) -> None:
        notes = self.state.notes
        if not available():
            notes.append(
                "scikit-learn is not installed (pip install 'tilewright[tune]'): candidates are ranked by "
                "the analytic model alone"
            )
        if self.device == "emulator" or not (self.here or self.device):
            self.state.source = "estimate"
            how = "instructions counted in an emulator" if self.device else "estimates"
            notes.append(
                f"code for {self.target.name} cannot run here: schedules are ranked by {how}, "
                "nothing is timed"
            )
        if self.library.problems:
            notes.append(
                f"{len(self.library.problems)} lines of the logs were skipped, the first is "
                f"{self.library.problems[0]}"
            )

    def _log(self, record: Record) -> None:
        records.append(self.folder, self.target.name, record)
        self.library.add(record)

    # ---- ways to compute a node

    def _choose_ways(self, seconds: float) -> list[WayTimes]:
        """Measure variants of nodes that no record covers; one log entry per kind of node."""
        self.state.stage = "ways to compute a node"
        self.report(self.state)
        if not unmeasured(self.graph, self.target, self.library):
            return []
        rounds = 5 if seconds >= 30 else 2
        job = (time_ways, self.graph, self.target, Library(self.identity), rounds)
        try:
            found: list[WayTimes] = self._await(self.local.submit(*job))
        except (WorkerLost, TilewrightError) as err:
            self.state.notes.append(f"other ways to compute nodes were not measured: {err}")
            return []
        for record in way_records(found, self.identity, self.label):
            self._log(record)
        return found

    # ---- kernels

    def _collect(self) -> None:
        """The model's kernels, each with its space and what the log knows about it."""
        self.state.stage = "collect kernels"
        self.report(self.state)
        asked = _Recorder(self.library)
        program = build(self.graph, self.target, library=asked)
        steps: dict[str, list[Any]] = {}
        for s in program.steps:
            steps.setdefault(s.kernel, []).append(s)
        trials = self._trials()
        for kernel, (op, raw) in zip(program.kernels, asked.asked, strict=True):
            space = space_of(op, raw, self.target)
            if op is None or space is None or space.size < 2:
                continue
            calls = steps[kernel.name]
            floor = self.floor(calls[0].flops, calls[0].bytes)
            guess = max(floor, calls[0].flops / 2e10, calls[0].bytes / 1e10, 1e-6)
            digest = kernel_hash(raw)
            task = Task(
                raw, digest, op.name, space, default_trace(op, raw, self.target),
                Search(space, random.Random(self.rng.random())),
                Progress(len(calls), floor, guess=guess), extents(raw),
                winner=self.library.winners.get(digest),
            )  # fmt: skip
            for record in trials.get(digest, ()):
                self._learn(task, record)
            if task.winner is not None and task.winner.verdict in ("faster", "retracted"):
                task.best = None  # it was confirmed, or lost inside the model
            self.state.tasks.append(task)
        if not self.state.tasks:
            self.state.notes.append(
                f"no kernel of this model has a schedule space for {self.target.name}: nothing to tune"
            )

    def _trials(self) -> dict[str, list[Record]]:
        """Trials of the log by kernel; all of them teach the cost models."""
        out: dict[str, list[Record]] = {}
        for record in records.read(self.folder, self.target.name):
            if record.kind != "trial" or record.target != self.identity:
                continue
            out.setdefault(record.kernel, []).append(record)
            if record.ratio is not None and record.modelled is not None:
                self._model(record.operator, record.family).add(
                    record.extents, record.choice, record.modelled, record.ratio
                )
        return out

    def _model(self, operator: str, family: str) -> CostModel:
        return self.models.setdefault((operator, family), CostModel())

    def _learn(self, task: Task, record: Record) -> None:
        """Take a trial into a task's search."""
        task.trials += 1
        failed = record.verdict in ("wrong", "illegal", "crash", "timeout")
        task.failed += failed
        task.search.learn(record.choice, record.trace, None if failed else record.ratio)
        if failed or record.ratio is None or record.default is None or record.seconds is None:
            return
        if task.progress.default is None:
            task.progress.note(record.default, min(record.default, record.seconds))
        if record.verdict == "faster" and (task.best is None or record.ratio < task.best[0]):
            task.best = (record.ratio, record.choice, record.trace)

    # ---- the loop

    def _search(self, reserve: float) -> None:
        """Make and measure candidates until `reserve` seconds before the deadline."""
        self.state.stage = "search"
        while True:
            left = self.state.deadline - reserve - time.monotonic()
            # one job more than can run, so that no worker waits for the next proposal
            while len(self.flights) < self.slots + 1 and left > 0:
                if not self._launch():
                    break
            self.report(self.state)
            if not self.flights:
                return
            done, _ = wait(self.flights, timeout=0.25, return_when=FIRST_COMPLETED)
            for future in done:
                self._land(future, self.flights.pop(future))

    def _launch(self) -> bool:
        """Start the most promising job; False if there is none."""
        tasks = self.state.tasks
        for task in tasks:
            if task.best is not None and not task.busy:
                self._submit(_Flight(task, [(task.best[1], task.best[2])], confirm=True))
                return True
        i = pick([t.progress for t in tasks], [t.busy or t.search.exhausted for t in tasks])
        if i is None:
            return False
        task = tasks[i]
        model = self._model(task.operator, task.space.family)

        def rank(choices: Sequence[Choice]) -> list[float]:
            return model.predict(task.space, task.shape, choices)

        found = task.search.propose(BATCH, rank)
        if found:
            self._submit(_Flight(task, [(c, t) for c, t in found], confirm=False))
        return True

    def _submit(self, flight: _Flight) -> None:
        task = flight.task
        task.busy = True
        mode = self._mode()
        job = Job(
            task.kernel, self.target, task.default, tuple(t for _, t in flight.candidates),
            sum_length(task.kernel), CONFIRM_ROUNDS if flight.confirm else ROUNDS,
            mode, self.device or None, flight.confirm and mode == "estimate" and self.emulated,
        )  # fmt: skip
        if isinstance(self.executor, LocalExecutor):
            future = self.executor.submit(measure, job)
        else:
            future = self.executor.submit(isolated, JOB_SECONDS, measure, job)
        self.flights[future] = flight

    def _mode(self) -> Literal["measure", "estimate", "device"]:
        if self.device:
            return "device"
        return "measure" if self.here else "estimate"

    def _land(self, future: Future[Any], flight: _Flight) -> None:
        """Log what a job found, or find out which of its candidates is to blame."""
        task = flight.task
        task.busy = False
        try:
            outcomes: list[Outcome] = future.result()
        except TilewrightError as err:
            self.state.notes.append(f"{task.name}: {err}")
            task.search.exhausted, task.best = True, None
            return
        except WorkerLost as err:
            if len(flight.candidates) > 1:
                for c in flight.candidates:
                    self._submit(_Flight(task, [c], confirm=False))
                return
            verdict: records.Verdict = "timeout" if isinstance(err, WorkerTimeout) else "crash"
            outcomes = [Outcome(verdict, note=str(err))]
        except (Exception, CancelledError) as err:  # a foreign executor lost its worker
            if flight.attempt < RETRIES:
                flight.attempt += 1
                self._submit(flight)
                return
            self.state.notes.append(f"{task.name}: a job was lost ({type(err).__name__})")
            if flight.confirm:
                task.best = None
            return
        if flight.confirm:
            self._confirm(task, flight.candidates[0], outcomes[0])
        else:
            self._take(task, flight.candidates, outcomes)

    def _take(
        self, task: Task, candidates: Sequence[tuple[Choice, Trace]], outcomes: Sequence[Outcome]
    ) -> None:
        """Log trials and learn from them."""
        model = self._model(task.operator, task.space.family)
        best = 1.0 if task.winner is None or task.winner.ratio is None else task.winner.ratio
        default: float | None = None
        for (choice, trace), outcome in zip(candidates, outcomes, strict=True):
            if outcome.ratio is not None:
                self.source = outcome.source
            record = self._record(task, "trial", choice, trace, outcome)
            self._log(record)
            self.state.trials += 1
            self.state.failures += outcome.verdict in ("wrong", "illegal", "crash", "timeout")
            task.trials += 1
            task.search.learn(choice, trace, outcome.ratio)
            if outcome.ratio is None:
                continue
            default = outcome.default
            assert record.modelled is not None
            model.add(task.shape, choice, record.modelled, outcome.ratio)
            if outcome.verdict == "faster" and outcome.ratio < best * 0.99:
                best = outcome.ratio
                task.best = (best, choice, trace)
        if default is not None:
            task.progress.note(default, default * min(best, 1.0))
        else:
            task.progress.history.append(task.progress.history[-1] if task.progress.history else 1)

    def _confirm(self, task: Task, candidate: tuple[Choice, Trace], outcome: Outcome) -> None:
        """A candidate that looked faster, measured again for longer."""
        task.best = None
        choice, trace = candidate
        old = task.winner.ratio if task.winner is not None else None
        if outcome.verdict == "faster" and (
            old is None or outcome.ratio is None or outcome.ratio < old
        ):
            task.winner = self._record(task, "winner", choice, trace, outcome)
            self._log(task.winner)
        elif outcome.ratio is not None:
            task.search.learn(choice, trace, outcome.ratio)
        if outcome.default is not None:
            gained = task.winner.ratio if task.winner and task.winner.ratio else 1.0
            task.progress.best = outcome.default * gained
            if task.progress.history:
                task.progress.history[-1] = gained

    def _record(
        self, task: Task, kind: records.Kind, choice: Choice, trace: Trace, outcome: Outcome
    ) -> Record:
        return Record(
            kind=kind, kernel=task.digest, target=self.identity, operator=task.operator,
            verdict=outcome.verdict, source=outcome.source, family=task.space.family,
            extents=task.shape, choice=choice, trace=trace, seconds=outcome.seconds,
            default=outcome.default, ratio=outcome.ratio, error=outcome.error,
            rounds=outcome.rounds, modelled=relative_cost(task.space, choice),
            note=outcome.note, device=self.label,
        )  # fmt: skip

    def _settle(self) -> None:
        """Kernels for which nothing better was found after enough trials keep their default for good."""
        for task in self.state.tasks:
            enough = task.trials >= ENOUGH or task.search.exhausted
            if task.winner is None and enough:
                outcome = Outcome("default", default=task.progress.default, source=self.source)
                task.winner = self._record(
                    task, "winner", task.space.default, task.default, outcome
                )
                self._log(task.winner)

    # ---- the whole model

    def _compare(self, seconds: float) -> Comparison | None:
        """Default against tuned; winners that lose in place are taken back."""
        self.state.stage = "compare whole models"
        self.report(self.state)
        asked = _Recorder(self.library)
        build(self.graph, self.target, library=asked)
        kernels = [(kernel_hash(raw), op.name if op else "") for op, raw in asked.asked]
        before = Library(self.identity)
        after = Library(self.identity, self.library.kin, self.library.winners, self.library.ways)
        job = (compare, self.graph, self.target, before, after, kernels, seconds)
        try:
            found: Comparison = self._await(self.local.submit(*job))
        except (WorkerLost, TilewrightError) as err:
            self.state.notes.append(f"whole models were not compared: {err}")
            return None
        if found.error > TOLERANCE:
            self.state.notes.append(
                f"the tuned model's outputs differ by {found.error:.1e} of the largest magnitude: "
                "run `tilewright verify`"
            )
        for task in self.state.tasks:
            if task.digest in found.losers:
                self._retract(task, *found.steps[task.digest])
        return found

    def _retract(self, task: Task, default: float, tuned: float) -> None:
        """Log that a schedule was slower inside the model."""
        outcome = Outcome(
            "retracted", tuned, default, tuned / default, note="slower inside the model"
        )
        task.winner = self._record(task, "winner", task.space.default, task.default, outcome)
        self._log(task.winner)

    def _await(self, future: Future[Any]) -> Any:
        """The result of a long task; the display goes on."""
        while not wait([future], timeout=0.25).done:
            self.report(self.state)
        return future.result()


class _Recorder(Library):
    """A library that remembers which kernels it was asked about, in order."""

    def __init__(self, library: Library) -> None:
        super().__init__(library.target, library.kin, library.winners, library.ways)
        self.asked: list[tuple[Operator | None, Kernel]] = []

    def decide(self, op: Operator | None, kernel: Kernel, target: Target) -> Decision:
        self.asked.append((op, kernel))
        return super().decide(op, kernel, target)
