"""LLVM in several processes: parts of a model are optimised side by side.

In: parts of a module as text, one after the other, and how many processes may work. Out: their bitcode in
the same order. Invariant: the result is the same for any number of processes; a process that cannot be
started or dies only costs time, what it had is done here.

This process is one of those that work: while it still makes parts, the others take them. LLVM's Python
binding lets one thread at a time in, so threads would not do. A child is started once enough text waits to
be worth the tenth of a second that a start takes; it is this file run as a program, and talks through its
standard input and output: a job is a line of JSON with the number of bytes that follow, so is the answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO, Any, Literal

from tilewright.codegen.optimise import Cpu, assembly_of, bitcode, machine_of
from tilewright.errors import ToolchainError

#: How many processes may work (default: as many as there are CPUs for this one).
VARIABLE = "TILEWRIGHT_JOBS"
#: Characters of text that take LLVM several times as long as a process takes to start.
WORTH = 500_000

Kind = Literal["bitcode", "assembly"]


def default_jobs() -> int:
    """Processes that may work: `$TILEWRIGHT_JOBS`, or the CPUs that this process may use."""
    given = os.environ.get(VARIABLE, "").strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do(kind: Kind, data: bytes, cpu: Cpu) -> bytes:
    """One job, here."""
    machine = machine_of(cpu)
    if kind == "assembly":
        return assembly_of(data, machine).encode()
    return bitcode(data.decode(), machine)


class Pool:
    """Up to `jobs` processes, this one among them; a context that ends the others."""

    def __init__(self, cpu: Cpu, jobs: int | None = None) -> None:
        self.cpu = cpu
        self.jobs = default_jobs() if jobs is None else jobs
        self._children: list[_Child] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._children:
            child.end()

    def optimise(self, parts: Iterable[str]) -> list[bytes]:
        """Bitcode of `parts`, which are taken one by one; raises `ToolchainError` for one that LLVM refuses."""
        results: dict[int, bytes] = {}
        failures: list[ToolchainError] = []
        waiting: deque[tuple[int, bytes]] = deque()

        def work(run: Callable[[bytes], bytes]) -> None:
            """Do jobs until none waits."""
            while True:
                with self._lock:
                    if failures or not waiting:
                        return
                    i, data = waiting.popleft()
                try:
                    results[i] = run(data)
                except _Dead:
                    with self._lock:
                        waiting.append((i, data))
                    return
                except ToolchainError as err:
                    failures.append(err)

        def lend(child: _Child) -> None:
            work(lambda data: child.run("bitcode", data))
            child.busy = False

        threads: list[threading.Thread] = []
        count = 0
        for i, text in enumerate(parts):
            count = i + 1
            with self._lock:
                waiting.append((i, text.encode()))
                backlog = sum(len(data) for _, data in waiting)
            child = self._child(start=backlog >= WORTH)
            if child is not None:
                threads.append(threading.Thread(target=lend, args=(child,), daemon=True))
                threads[-1].start()
        for _ in range(2):  # the second time what a child that died left
            work(lambda data: do("bitcode", data, self.cpu))
            for t in threads:
                t.join()
        if failures:
            raise failures[0]
        return [results[i] for i in range(count)]

    def assembly(self, module: bytes) -> Callable[[], str]:
        """Starts to make the assembly of a module in a child, if there is one; the result waits for it."""
        child = self._child(start=False)
        if child is None:
            return lambda: do("assembly", module, self.cpu).decode()
        made: list[bytes] = []

        def work() -> None:
            try:
                made.append(child.run("assembly", module))
            except (_Dead, ToolchainError):
                return  # done here then, with the message if there is one

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def wait() -> str:
            thread.join()
            return (made[0] if made else do("assembly", module, self.cpu)).decode()

        return wait

    def _child(self, start: bool) -> _Child | None:
        """A child with nothing to do, now the caller's; a new one if it may `start`; None if there is none."""
        for child in self._children:
            if not (child.busy or child.dead):
                child.busy = True
                return child
        if not start or len(self._children) >= self.jobs - 1 or not sys.executable:
            return None
        try:
            self._children.append(_Child(self.cpu))
        except OSError:
            self.jobs = 1
            return None
        return self._children[-1]


class _Dead(Exception):
    """A child does not answer."""


class _Child:
    """A process that does one job after the other."""

    def __init__(self, cpu: Cpu) -> None:
        self.cpu = cpu
        self.busy = True
        """Somebody has it."""
        self.dead = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tilewright.codegen.workers"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, kind: Kind, data: bytes) -> bytes:
        """The answer to a job; `_Dead` if there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            _send(self.process.stdin, {"kind": kind, "cpu": self.cpu}, data)
            head, answer = _receive(self.process.stdout)
        except (OSError, ValueError):
            self.dead = True
            raise _Dead from None
        if head.get("error"):
            raise ToolchainError(answer.decode())
        return answer

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue
        self.process.wait()


def _send(pipe: IO[bytes], head: dict[str, object], data: bytes) -> None:
    pipe.write(json.dumps({**head, "bytes": len(data)}).encode() + b"\n")
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    line = pipe.readline()
    head = json.loads(line or b"null")
    if not isinstance(head, dict):
        raise ValueError("the pipe has ended")
    data = pipe.read(int(head["bytes"]))
    if len(data) != int(head["bytes"]):
        raise ValueError("the pipe has ended")
    return head, data


def _serve() -> None:
    """Do the jobs that come in until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what LLVM prints is no answer
    while True:
        try:
            head, data = _receive(sys.stdin.buffer)
        except ValueError:
            return
        try:
            _send(answers, {}, do(head["kind"], data, Cpu(*head["cpu"])))
        except ToolchainError as err:
            _send(answers, {"error": True}, str(err).encode())


if __name__ == "__main__":
    _serve()
