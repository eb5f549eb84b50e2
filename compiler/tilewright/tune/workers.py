"""An executor whose tasks may crash, hang or eat memory without taking anything else down.

In: functions of this package with picklable arguments. Out: futures, as of any `concurrent.futures`
executor. Each worker is a process of its own (`python -m tilewright.tune.workers`) that reads pickled
tasks from its parent only. Invariant: a task that ends its process or outlives its time fails alone, with
`WorkerLost` or `WorkerTimeout`, and the next one gets a fresh process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, Any

#: Data segment of a worker: a schedule that needs more is not worth having.
MEMORY_LIMIT = 6 << 30
_HEADER = struct.Struct("<Q")


class WorkerLost(Exception):
    """The worker process ended in the middle of a task."""


class WorkerTimeout(WorkerLost):
    """The task took longer than it may; its process was ended."""


class LocalExecutor(Executor):
    """`workers` processes on this machine; a task may take `seconds`.

    With `patience` above 1 those are seconds of a processor, as far as others leave it one: of a clock, it may take
    that many times as long.
    """

    def __init__(self, workers: int = 1, seconds: float = 60.0, patience: float = 1.0) -> None:
        self.workers = workers
        self.seconds = seconds
        self.patience = patience
        self._queue: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, **kwargs)` in a worker."""
        if self._closed:
            raise RuntimeError("the executor was shut down")
        future: Future[Any] = Future()
        self._queue.put((future, pickle.dumps((fn, args, kwargs))))
        if len(self._threads) < self.workers:
            thread = threading.Thread(target=self._serve, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers; running tasks are cut off if `cancel_futures`."""
        self._closed = True
        if cancel_futures:
            with contextlib.suppress(queue.Empty):
                while True:
                    item = self._queue.get_nowait()
                    if item is not None:
                        item[0].cancel()
            with self._lock:
                for process in self._alive:
                    process.kill()
        for _ in self._threads:
            self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self) -> None:
        """One worker: tasks in, results out, a new process whenever the old one is gone."""
        process: subprocess.Popen[bytes] | None = None
        while (item := self._queue.get()) is not None:
            future, task = item
            if not future.set_running_or_notify_cancel():
                continue
            if process is None or process.poll() is not None:
                process = self._start()
            try:
                good, value = _exchange(process, task, self.seconds, self.patience)
            except WorkerLost as err:
                self._end(process)
                process = None
                future.set_exception(err)
                continue
            except Exception as err:
                self._end(process)
                process = None
                future.set_exception(err)
                continue
            if good:
                future.set_result(value)
            else:
                future.set_exception(value)
        if process is not None:
            self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tilewright.tune.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        with self._lock:
            self._alive.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        process.wait()
        with self._lock:
            self._alive.discard(process)


class _Allowance:
    """What is left of a task's time."""

    def __init__(self, pid: int, seconds: float, patience: float) -> None:
        self.pid, self.seconds, self.most = pid, seconds, seconds * patience
        self.begin, self.before = time.monotonic(), _processor_seconds(pid)

    def left(self) -> float:
        """Seconds to wait before asking again; not positive when the time is over."""
        passed = time.monotonic() - self.begin
        if passed < self.seconds or passed >= self.most or self.before is None:
            return self.seconds - passed
        now = _processor_seconds(self.pid)
        return self.seconds - passed if now is None else self.seconds - (now - self.before)


def _processor_seconds(pid: int) -> float | None:
    """Time that a process spent on processors; None where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def _exchange(
    process: subprocess.Popen[bytes], task: bytes, seconds: float, patience: float = 1.0
) -> tuple[bool, Any]:
    """Send a task, wait for its answer."""
    assert process.stdin is not None and process.stdout is not None
    deadline = _Allowance(process.pid, seconds, patience)
    try:
        _write(process.stdin, task)
        answer = _read(process.stdout, deadline)
    except (OSError, EOFError):
        code = process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise WorkerLost(f"the worker process ended with {how}") from None
    good, value = pickle.loads(answer)
    return bool(good), value


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_HEADER.pack(len(data)))
    stream.write(data)
    stream.flush()


def _read(stream: IO[bytes], deadline: _Allowance | None) -> bytes:
    (size,) = _HEADER.unpack(_exactly(stream, _HEADER.size, deadline))
    return _exactly(stream, size, deadline)


def _exactly(stream: IO[bytes], size: int, deadline: _Allowance | None) -> bytes:
    fd, parts, left = stream.fileno(), list[bytes](), size
    while left:
        if deadline is not None:
            ready = False
            while not ready and (wait := deadline.left()) > 0:
                ready = bool(select.select([fd], [], [], wait)[0])
            if not ready:
                raise WorkerTimeout("the task took longer than it may")
        part = os.read(fd, min(left, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


# ---------------------------------------------------------------- the worker process


def _limit() -> None:
    """Bound this process's memory and let it end with its parent (Linux)."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def serve() -> None:
    """Answer tasks until the parent closes the pipe."""
    _limit()
    tasks = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not reach the answers
    while True:
        try:
            fn, args, kwargs = pickle.loads(_read(tasks, None))
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, fn(*args, **kwargs)))
        except Exception as err:  # any failure of the task is its answer
            answer = _failure(err)
        _write(answers, answer)


def _failure(err: Exception) -> bytes:
    try:
        data = pickle.dumps((False, err))
        pickle.loads(data)
    except Exception:  # not every exception survives pickling
        data = pickle.dumps((False, RuntimeError(f"{type(err).__name__}: {err}")))
    return data


_nested: list[LocalExecutor] = []


def isolated(seconds: float, fn: Callable[..., Any], *args: Any) -> Any:
    """Run a task in a worker process of this process: what other executors are given, so that a
    candidate that crashes cannot end *their* workers."""
    if not _nested:
        _nested.append(LocalExecutor(1, seconds))
    _nested[0].seconds = seconds
    return _nested[0].submit(fn, *args).result()


if __name__ == "__main__":
    serve()
