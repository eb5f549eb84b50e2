"""Worker processes: tasks fail alone, whatever they do."""

from __future__ import annotations

import math
import os
import signal
import time

import pytest

from tilewright.tune.workers import LocalExecutor, WorkerLost, WorkerTimeout, isolated


def test_answers_and_failures() -> None:
    with LocalExecutor(2, 20) as pool:
        futures = [pool.submit(divmod, 7, n) for n in (2, 0, 3)]
        assert futures[0].result() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
        assert futures[2].result() == (2, 1)


def test_crash_fails_alone() -> None:
    with LocalExecutor(1, 20) as pool:
        bad = pool.submit(os.kill, 0, signal.SIGKILL)  # its own process group
        good = pool.submit(divmod, 7, 2)
        with pytest.raises(WorkerLost, match="SIGKILL"):
            bad.result()
        assert good.result() == (3, 1)


def test_timeout_and_memory() -> None:
    with LocalExecutor(1, 1.5) as pool:
        late = pool.submit(time.sleep, 60)
        with pytest.raises(WorkerTimeout):
            late.result()
        with pytest.raises(MemoryError):
            pool.submit(bytearray, 100 << 30).result()


def test_output_does_not_reach_the_answers() -> None:
    with LocalExecutor(1, 20) as pool:
        assert pool.submit(print, "noise").result() is None
        assert pool.submit(os.write, 1, b"noise").result() == 5


def test_shutdown_ends_running_tasks() -> None:
    pool = LocalExecutor(1, 60)
    future = pool.submit(time.sleep, 60)
    while not future.running():
        time.sleep(0.01)
    time.sleep(0.2)
    start = time.monotonic()
    pool.shutdown(cancel_futures=True)
    assert time.monotonic() - start < 10
    with pytest.raises(WorkerLost):
        future.result()


def test_isolated() -> None:
    assert isolated(20, divmod, 7, 2) == (3, 1)
    with pytest.raises(WorkerLost):
        isolated(20, os._exit, 3)
    assert isolated(20, divmod, 7, 2) == (3, 1)


def test_a_patient_executor_counts_the_processor() -> None:
    """A task that is kept from a processor is waited for; one that uses its time up is ended."""
    with LocalExecutor(1, 1.0, patience=30.0) as pool:
        assert pool.submit(time.sleep, 1.6).result() is None
        with pytest.raises(WorkerTimeout):
            pool.submit(math.factorial, 3_000_000).result()
