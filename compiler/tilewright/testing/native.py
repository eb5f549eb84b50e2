"""Run one kernel natively on memory that ends where its buffers end. Runs inside a worker process.

In: a finished kernel, its target, arrays. Out: the memory of its outputs, or what became of the process that ran it.
Invariant: every buffer touches an inaccessible page with its last byte (or with its first), inputs cannot be
written, and everything outside the windows of outputs holds a pattern before the run and after it. A bad access is
written to a file, with the buffer and the offset, before the process ends (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tilewright.codegen.checked import FIRST_SITE
from tilewright.codegen.kernel import parallel_extent
from tilewright.codegen.llvm import Jit
from tilewright.codegen.module import emit_module, fault_texts, one_call
from tilewright.loop.ir import Buffer, Kernel, dense_strides
from tilewright.loop.pack import pack_array
from tilewright.schedule.target import Target

with contextlib.suppress(ImportError):  # not on Windows
    import resource

Array = npt.NDArray[Any]
Side = Literal["right", "left"]

_PAGE = mmap.PAGESIZE

#: Seconds of a processor that code may run; exit code of a process that failed in Python.
RUN_SECONDS, FAILED = 4, 71

#: Suffix of the file next to `faults` that says that there is code, and it runs now.
COMPILED = ".compiled"


@dataclass(frozen=True, slots=True)
class Native:
    """One run. `poison`: the byte that fills outputs and gaps; `side`: which end of a buffer is guarded;
    `backwards`: the second half of a parallel loop first; `faults`: where a bad access is written."""

    kernel: Kernel
    target: Target
    arrays: Mapping[str, Array]
    poison: int = 0xA5
    side: Side = "right"
    backwards: bool = False
    faults: str = ""
    checked: bool = False
    """With a check before every access (`codegen.checked`)."""
    optimised: bool = True
    """Whether LLVM may optimise the code."""
    mutant: str = ""
    """A bug to plant while this is compiled (`testing.mutants`)."""


class Spilled(Exception):
    """The kernel wrote outside the window of a buffer, within its memory."""


class Crashed(Exception):
    """The code ended its process."""


class Endless(Exception):
    """The code took more of a processor than kernels of tests ever need."""


class Outside(Exception):
    """Checked code met an index outside its buffer."""


def execute(job: Native) -> dict[str, Array]:
    """Values of the outputs; raises `Spilled`, `Outside`, `Crashed` or `Endless`."""
    if not job.mutant:
        return _execute(job)
    from tilewright.testing.mutants import planted

    with planted(job.mutant):
        return _execute(job)


def _execute(job: Native) -> dict[str, Array]:
    kernel = replace(job.kernel, name="t_kernel")
    count = parallel_extent(kernel)
    regions: list[_Region] = []
    packs = {p.buffer: p for p in kernel.packs}
    for p in kernel.params:
        buffer, array = p.buffer, job.arrays.get(p.buffer.name)
        if array is not None and buffer.name in packs:
            array = pack_array(array, packs[buffer.name])
            buffer = replace(buffer, shape=array.shape, strides=dense_strides(array.shape))
        regions.append(_Region(buffer, array, p.role == "out", job))
    code, texts = _compiled(kernel, job)
    if job.faults:
        Path(job.faults).with_suffix(COMPILED).touch()
    step = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        code.address("t_step0")
    )
    tables = [
        (ctypes.c_void_p * max(1, len(regions)))(*[r.address for r in regions if r.out == written])
        for written in (False, True)
    ]
    record = np.frombuffer(mmap.mmap(-1, 16), np.int64)  # where checked code says what is wrong
    context = (ctypes.c_void_p * 4)(
        *[ctypes.addressof(t) for t in tables], record.ctypes.data, None
    )
    halves = [(0, count)]
    if job.backwards and count > 1:
        halves = [(count // 2, count), (0, count // 2)]

    def run() -> None:
        _watch(regions, job.faults)
        for begin, end in halves:
            step(ctypes.addressof(context), begin, end)
            if record[0]:
                return

    _apart(run)
    if record[0]:
        text = texts[int(record[0]) - FIRST_SITE].replace("t_kernel", job.kernel.name, 1)
        raise Outside(f"{text}: it is {record[1]}")
    return {r.buffer.name: r.read() for r in regions if r.out}


def _apart(run: Callable[[], None]) -> None:
    """Run code in a child of this process, where there is one to be had: all memory it writes is shared. Starting
    another worker takes seconds, which finding and making small what crashes would do hundreds of times."""
    if sys.platform != "linux":
        run()
        return
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _libc().prctl(
                1, signal.SIGKILL
            )  # PR_SET_PDEATHSIG: whoever ends this process ends the child
            resource.setrlimit(resource.RLIMIT_CPU, (RUN_SECONDS, RUN_SECONDS + 1))
            if os.getppid() == parent:
                run()
        except BaseException:
            os._exit(FAILED)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU:
        raise Endless
    if code:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise Crashed(f"the process that runs the kernel ended with {how}")


def _compiled(kernel: Kernel, job: Native) -> tuple[Jit, tuple[str, ...]]:
    """Native code and what its checks can find; those of the last few kernels are kept."""
    # pickled, expressions that are shared stay shared: written out, some are too long for any memory
    key = pickle.dumps((kernel, job.target, job.checked, job.optimised, job.mutant))
    if key not in _kept:
        if len(_kept) >= 8:
            _kept.pop(next(iter(_kept)))
        plan = one_call("t", job.target, kernel, fault_at=0 if job.checked else None)
        texts = fault_texts(plan) if job.checked else ()
        _kept[key] = Jit(emit_module(plan, with_weights=False), job.target, job.optimised), texts
    return _kept[key]


_kept: dict[bytes, tuple[Jit, tuple[str, ...]]] = {}


class _Region:
    """Memory of one buffer between inaccessible pages."""

    def __init__(self, buffer: Buffer, array: Array | None, out: bool, job: Native) -> None:
        self.buffer, self.out, self.poison = buffer, out, job.poison
        size = buffer.dtype.bytes
        ahead = [(n - 1) * s for n, s in zip(buffer.shape, buffer.strides, strict=True)]
        self.below = sum(-a for a in ahead if a < 0)  # elements before element 0
        self.bytes = 0 if 0 in buffer.shape else (1 + sum(map(abs, ahead))) * size
        inner = max(1, -(-self.bytes // _PAGE)) * _PAGE
        self.map = mmap.mmap(-1, inner + 2 * _PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        at = _PAGE + (inner - self.bytes if job.side == "right" else 0)
        self.start = self.base + at
        self.address = self.start + self.below * size
        self.memory: Array = np.frombuffer(self.map, np.uint8)[at : at + self.bytes]
        self.memory[...] = job.poison
        self.window = np.lib.stride_tricks.as_strided(
            self.memory.view(buffer.dtype.numpy)[self.below :] if self.bytes else np.empty(0, buffer.dtype.numpy),
            buffer.shape, tuple(s * size for s in buffer.strides),
        )  # fmt: skip
        if array is not None:
            self.window[...] = array
        protect = _libc().mprotect
        protect(ctypes.c_void_p(self.base), _PAGE, 0)
        protect(ctypes.c_void_p(self.base + _PAGE + inner), _PAGE, 0)
        if not out:
            protect(ctypes.c_void_p(self.base + _PAGE), inner, 1)

    def read(self) -> Array:
        """Values; raises `Spilled` if a byte between the windows' elements changed."""
        values = np.array(self.window)
        left = self.memory.copy()
        if self.bytes:
            marks = np.zeros(self.bytes, np.bool_)
            size = self.buffer.dtype.bytes
            flags = np.lib.stride_tricks.as_strided(
                marks[self.below * size :], (*self.buffer.shape, size),
                (*(s * size for s in self.buffer.strides), 1),
            )  # fmt: skip
            flags[...] = True
            spoiled = np.flatnonzero(~marks & (left != self.poison))
            if spoiled.size:
                at = (int(spoiled[0]) - self.below * size) // size
                raise Spilled(
                    f"{self.buffer.name}: element {at} in memory is between rows and was written"
                )
        return values

    def describe(self, address: int) -> str | None:
        """A faulting address in words, if it belongs here."""
        inner_end = self.start + self.bytes
        if not self.base <= address < self.base + len(self.map):
            return None
        size = self.buffer.dtype.bytes
        if address >= inner_end:
            return f"element {(address - self.address) // size}, {address - inner_end} bytes after the end"
        if address < self.start:
            return f"{self.start - address} bytes before the beginning"
        return f"element {(address - self.address) // size}, which may only be read"


# ---------------------------------------------------------------- faults

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of Linux with glibc."""

    _fields_ = [
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]  # fmt: skip


_SA_SIGINFO = 4
_SIGINFO_ADDRESS = 16
_watched: list[Any] = []
_state: dict[str, Any] = {}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _watch(regions: list[_Region], path: str) -> None:
    """Write bad accesses to `path`; the faulting instruction is in generated code, which holds no lock."""
    _state.update(regions=regions, path=path)
    if _watched or not path:
        return
    call = _HANDLER(_on_fault)
    action = _Action()
    action.handler = ctypes.cast(call, ctypes.c_void_p)
    action.flags = _SA_SIGINFO
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        if _libc().sigaction(int(number), ctypes.byref(action), None) != 0:
            return
    _watched.append(call)


def _on_fault(number: int, info: int, context: int) -> None:
    """In the signal handler: say what was touched, end the process."""
    found = {"signal": signal.Signals(number).name, "buffer": "", "where": ""}
    if number in (signal.SIGSEGV, signal.SIGBUS):
        address = ctypes.c_uint64.from_address(info + _SIGINFO_ADDRESS).value
        for r in _state["regions"]:
            where = r.describe(address)
            if where is not None:
                found.update(buffer=r.buffer.name, where=where)
    with open(_state["path"], "w", encoding="utf-8") as f:
        json.dump(found, f)
    os._exit(70)
