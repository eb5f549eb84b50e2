"""Run kernels in a worker process that may crash, hang or be killed.

In: `Native` jobs. Out: an `Outcome` each.
Invariant: whatever the code does is an outcome; the next job finds a working worker. Workers are those of the
tuner (`tune.workers`): they end with their parent, and a job that outlives its time is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.errors import TilewrightError
from tilewright.testing.native import (
    COMPILED,
    Array,
    Crashed,
    Endless,
    Native,
    Outside,
    Spilled,
    execute,
)
from tilewright.tune.workers import LocalExecutor, WorkerLost, WorkerTimeout

_TOO_LONG = "the optimiser needs too long for what this schedule makes"

#: Times as long as its processor time a job may take by the clock.
PATIENCE = 8.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outputs by name, or the `problem`: `crash`, `hang`, `spill`, `outside` (checked code stopped), `refused`
    (by the compiler)."""

    outputs: dict[str, Array] = field(default_factory=dict[str, Array])
    problem: str = ""
    message: str = ""
    buffer: str = ""


class Unjudged(TilewrightError):
    """Nothing is known of a case: compiling it takes too long."""


class Worker:
    """One worker process; use it as a context, or `close` it. A job hangs if compiling and running it take a
    processor longer than `seconds`: more than kernels of tests ever need, however busy the machine is."""

    def __init__(self, seconds: float = 60.0, mutant: str = "", optimised: bool = True) -> None:
        self.mutant = mutant  # a bug to plant in every job (`testing.mutants`)
        self._optimised, self._seconds = optimised, seconds
        self._executor = LocalExecutor(1, seconds, PATIENCE)
        self._folder = tempfile.TemporaryDirectory(prefix="tilewright-worker-")
        self._faults = Path(self._folder.name) / "fault.json"
        self._compiled = self._faults.with_suffix(COMPILED)

    def run(self, job: Native) -> Outcome:
        """Run one job; never raises for what the code does. Raises `Unjudged` if there is no code in time."""
        self._faults.unlink(missing_ok=True)
        self._compiled.unlink(missing_ok=True)
        try:
            faults, fast = str(self._faults), job.optimised and self._optimised
            whole = replace(job, faults=faults, mutant=self.mutant, optimised=fast)
            return Outcome(self._answer(execute, whole))
        except WorkerTimeout:
            if not self._compiled.exists():
                raise Unjudged(_TOO_LONG) from None
            return Outcome(problem="hang", message="the kernel does not end")
        except Endless:
            return Outcome(problem="hang", message="the kernel does not end")
        except (Crashed, WorkerLost) as err:
            return self._crashed(str(err))
        except Spilled as err:
            name, _, text = str(err).partition(": ")
            return Outcome(problem="spill", message=text, buffer=name)
        except Outside as err:
            _, verb, rest = re.split(r" (reads|writes) |$", str(err), maxsplit=1)
            buffer = rest.split(" ")[0] if verb else ""
            return Outcome(problem="outside", message=str(err), buffer=buffer)
        except TilewrightError as err:
            return Outcome(problem="refused", message=str(err))

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """What a function gives or raises there; `Unjudged` if it takes too long."""
        try:
            return self._answer(fn, *args)
        except WorkerTimeout:
            raise Unjudged(_TOO_LONG) from None

    def _answer(self, fn: Callable[..., Any], *args: Any) -> Any:
        future = self._executor.submit(fn, *args)
        try:
            return future.result()
        finally:
            if not future.done():  # who waited was interrupted: so is the job
                self._executor.shutdown(wait=False, cancel_futures=True)
                self._executor = LocalExecutor(1, self._seconds, PATIENCE)

    def _crashed(self, message: str) -> Outcome:
        try:
            found = json.loads(self._faults.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Outcome(problem="crash", message=message)
        where = f": {found['where']}" if found["where"] else ""
        return Outcome(problem="crash", message=f"{found['signal']}{where}", buffer=found["buffer"])

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


_shared: dict[int, Worker] = {}


def shared() -> Worker:
    """The worker that this process uses unless it makes its own."""
    pid = os.getpid()
    if pid not in _shared:
        _shared[pid] = Worker()
    return _shared[pid]


@contextlib.contextmanager
def fresh(seconds: float) -> Iterator[Worker]:
    """A worker for a while."""
    worker = Worker(seconds)
    try:
        yield worker
    finally:
        worker.close()
