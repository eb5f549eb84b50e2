"""Cases judged in worker processes: a crash or a case that hangs is a verdict, not the end.

In: cases. Out: their verdicts, in the order they come.
Invariant: every case gets exactly one verdict.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tilewright.backend_suite.cases import Case, Verdict, judge

#: Seconds of processor time a case may take, compilation included, and how many times as long by the clock: on a
#: machine that does other work, too, a case that waits for its turn is no hang.
LIMIT, PATIENCE = 60.0, 10.0


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    case: Case | None = None
    began: float = 0.0
    used: float = 0.0
    """Processor time before the case."""


def judge_all(cases: Sequence[Case], jobs: int = 2, limit: float = LIMIT) -> Iterator[Verdict]:
    """Verdicts on all cases; at most `jobs` at a time, each for at most `limit` seconds of processor
    time, and `PATIENCE` times that by the clock."""
    todo = deque(range(len(cases)))
    workers: list[_Worker] = []
    try:
        while todo or workers:
            while todo and len(workers) < jobs:
                workers.append(_start(cases))
                _give(workers[-1], cases, todo)
            ready = wait([w.pipe for w in workers], timeout=0.5)
            for w in list(workers):
                verdict = _verdict(w, w.pipe in ready, limit)
                if verdict is None:
                    continue
                yield verdict
                if verdict.outcome in ("crash", "timeout") or not todo:
                    _stop(w)
                    workers.remove(w)
                else:
                    _give(w, cases, todo)
    finally:
        for w in workers:
            _stop(w)


def _start(cases: Sequence[Case]) -> _Worker:
    """A worker that has the cases: forked, so that they need not be loaded again."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, cases), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, mine)


def _serve(pipe: Connection, cases: Sequence[Case]) -> None:
    faulthandler.disable()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # what a crashing library says would disturb the table
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        pipe.send(judge(cases[number]))


def _give(worker: _Worker, cases: Sequence[Case], todo: deque[int]) -> None:
    number = todo.popleft()
    worker.case = cases[number]
    worker.began, worker.used = time.monotonic(), _processor_seconds(worker.process.pid)
    worker.pipe.send(number)


def _verdict(worker: _Worker, ready: bool, limit: float) -> Verdict | None:
    """What became of the worker's case, if it is known by now."""
    assert worker.case is not None
    key = worker.case.key
    if ready:
        try:
            received: Verdict = worker.pipe.recv()
            return received
        except (EOFError, OSError):
            worker.process.join()
            return Verdict(key, "crash", f"the process ended with code {worker.process.exitcode}")
    waited = time.monotonic() - worker.began
    used = _processor_seconds(worker.process.pid) - worker.used
    if used > limit or waited > PATIENCE * limit:
        return Verdict(key, "timeout", "no result within the time limit")
    return None


def _processor_seconds(pid: int | None) -> float:
    """Processor time of a process so far; what the clock says where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
