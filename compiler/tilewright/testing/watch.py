"""The clock of a search: it ends with its time whatever an example does.

In: when all is over, the processor time that one example may take. Out: `Over` or `Slow`, raised in the midst of
whatever runs: drawing, a proof, an interpreter, waiting for a worker.
Invariant: while a watch is open in the main thread, nothing written in Python outlives its time; what is not
(LLVM) runs in workers, whose jobs are interruptible. Where a system has no interval timers, and in other threads,
time is only looked at between examples (`check`).
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

#: Seconds of a processor that this process may spend on one example; seconds between two looks at the clock.
EXAMPLE, TICK = 20.0, 0.25


class Interrupted(BaseException):
    """No `Exception`: Hypothesis, or whoever catches what an example does, would take it for a failure."""


class Over(Interrupted):
    """The search's time is over."""


class Slow(Interrupted):
    """An example takes too long."""


class Watch:
    """Raises `Over` after `end` (of `time.monotonic`), `Slow` if `begin` was not called for `example` seconds of
    this process's processor time. Use it as a context; `end` may be moved."""

    def __init__(self, end: float, example: float = EXAMPLE) -> None:
        self.end, self.example = end, example
        self._before: tuple[Any, float, float, float] | None = None
        self._limit = time.process_time() + example

    def begin(self) -> None:
        """Another example begins."""
        self._limit = time.process_time() + self.example

    def check(self) -> None:
        """Raise `Over` if time is over."""
        if time.monotonic() > self.end:
            raise Over

    def __enter__(self) -> Self:
        here = threading.current_thread() is threading.main_thread()
        if here and hasattr(signal, "setitimer"):
            handler = signal.signal(signal.SIGALRM, self._tick)
            due, every = signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
            self._before = handler, due, every, time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        handler, due, every, begun = self._before
        self._before = None
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if due:  # somebody else's alarm, which comes late if it was due meanwhile
            left = due - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.001), every)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        """Raises again and again, should somebody swallow it."""
        if _deaf(frame):
            return
        self.check()
        if time.process_time() > self._limit:
            raise Slow


def _deaf(frame: FrameType | None) -> bool:
    """Whether a collector of garbage runs, from which nothing is raised (it would be printed)."""
    collectors = {getattr(f, "__code__", None) for f in gc.callbacks}
    while frame is not None:
        if frame.f_code in collectors or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
