"""Planted faults: whatever native code does is an outcome that names the buffer and the place."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tilewright.loop.ir import Kernel
from tilewright.loop.parse import parse
from tilewright.pipeline import resolve_target
from tilewright.testing.native import Native
from tilewright.testing.worker import Outcome, Unjudged, Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are Linux's here")

COPY = """kernel copy(x: f32[8], out y: f32[8])
  for i in 8:
    y[i] = x[i]:f32
"""
VECTOR = """kernel wide(x: f32[10], out y: f32[10])
  for i in 2:
    vector j in 8:
      y[i*8 + j] = x[i*8 + j]:f32
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(seconds=20) as made:
        yield made


def run(worker: Worker, text: str | Kernel, **how: object) -> Outcome:
    kernel = parse(text) if isinstance(text, str) else text
    arrays = {
        p.buffer.name: np.arange(1, np.prod(p.buffer.shape) + 1)
        .reshape(p.buffer.shape)
        .astype(p.buffer.dtype.numpy)
        for p in kernel.params
        if p.role != "out"
    }
    return worker.run(Native(kernel, resolve_target("host"), arrays, **how))  # type: ignore[arg-type]


def processor_seconds(worker: Worker) -> float:
    """Of the worker and those of its children that have ended."""
    pid = worker.call(os.getpid)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, fields)) / os.sysconf("SC_CLK_TCK")


def test_a_good_kernel_is_a_good_outcome_and_quick(worker: Worker) -> None:
    found = run(worker, COPY)
    assert not found.problem
    assert np.array_equal(found.outputs["y"], np.arange(1, 9, dtype=np.float32))
    start = processor_seconds(worker)
    for _ in range(50):
        run(worker, COPY)
    assert processor_seconds(worker) - start < 5, "fewer than ten runs a second"


def test_read_past_the_end(worker: Worker) -> None:
    found = run(worker, COPY.replace("x[i]", "x[i + 1]"))
    assert (found.problem, found.buffer) == ("crash", "x")
    assert found.message == "SIGSEGV: element 8, 0 bytes after the end"


def test_read_before_the_beginning(worker: Worker) -> None:
    kernel = COPY.replace("x[i]", "x[i - 1]")
    found = run(worker, kernel, side="left")
    assert (found.problem, found.buffer) == ("crash", "x")
    assert found.message == "SIGSEGV: 4 bytes before the beginning"


def test_write_past_the_end(worker: Worker) -> None:
    found = run(worker, COPY.replace("y[i] =", "y[i + 1] ="))
    assert (found.problem, found.buffer) == ("crash", "y")
    assert "after the end" in found.message


def test_write_between_rows(worker: Worker) -> None:
    kernel = """kernel rows(x: f32[2, 3], out y: f32[2, 3]{5, 1})
  for i in 2:
    for j in 3:
      y[i, j + 1] = x[i, j]:f32
"""
    found = run(worker, kernel, side="left")
    assert (found.problem, found.buffer) == ("spill", "y"), found
    assert "between rows" in found.message


def test_vectors_past_the_end(worker: Worker) -> None:
    found = run(worker, VECTOR)
    assert found.problem == "crash" and found.buffer in ("x", "y")


def test_endless_loop() -> None:
    kernel = """kernel long(x: i32[1], out y: i32[1])
  alloc acc: i32[] in register
  acc[] = x[0]:i32
  for i in 1099511627776:
    acc[] = ((acc[]:i32 * acc[]:i32) + 1:i32)
  y[0] = acc[]:i32
"""
    with Worker(seconds=30) as short:
        assert not run(short, COPY).problem  # what starting takes is no part of the limit
        found = run(short, kernel)
        assert found.problem == "hang", found
        assert not run(short, COPY).problem, "the next run finds a working worker"


#: Bugs planted in the code generator of the worker's process: (statements, signal).
TRAPS = {
    "division": (
        "from tilewright.codegen.values import Builder, Value\n"
        "Builder._int_division = lambda s, op, a, b: "
        "Value(s.op(f'sdiv {a.type} {a.ssa}, {b.ssa}'), a.dtype, a.lanes)",
        "SIGFPE",
    ),
    "illegal instruction": (
        "from tilewright.codegen.kernel import Emitter\n"
        "def store(self, buffer, index, value):\n"
        "  self.declare('declare void @llvm.trap()')\n"
        "  self.emit('call void @llvm.trap()')\n"
        "Emitter.store = store",
        "SIGILL",
    ),
    "abort": ("import ctypes, tilewright.testing.native as n\nn._watch = lambda *a: ctypes.CDLL(None).abort()", "SIGABRT"),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_are_outcomes(trap: str) -> None:
    if trap == "division" and not resolve_target("host").triple.startswith("x86"):
        pytest.skip("only x86 traps on division")
    statements, signal = TRAPS[trap]
    kernel = """kernel quotient(x: i32[4], out y: i32[4])
  for i in 4:
    y[i] = (x[i]:i32 / (x[i]:i32 - 1:i32))
"""
    with Worker(seconds=20) as own:
        own._executor.submit(exec, statements, {}).result()
        found = run(own, kernel)
        assert found.problem == "crash" and signal in found.message, found
        assert own.call(max, 3, 4) == 4, "the worker lives on"


def test_crashes_are_cheap(worker: Worker) -> None:
    """Making a case small that crashes takes hundreds of them: no new worker for each."""
    run(worker, COPY)
    start = processor_seconds(worker)
    for _ in range(20):
        assert run(worker, COPY.replace("x[i]", "x[i + 1]")).problem == "crash"
    assert processor_seconds(worker) - start < 5


def test_code_that_is_not_optimised_computes_the_same() -> None:
    """What blames LLVM's optimiser compares with this."""
    with Worker(seconds=20, optimised=False) as plain:
        found = run(plain, COPY)
        assert np.array_equal(found.outputs["y"], np.arange(1, 9, dtype=np.float32))


def test_what_does_not_compile_in_time_is_not_judged() -> None:
    """No hang of the kernel: nothing ran yet."""
    with Worker(seconds=0.005) as short, pytest.raises(Unjudged):
        run(short, VECTOR)
