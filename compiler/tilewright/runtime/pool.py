"""The C thread pool of a loaded library, owned from Python.

In: a library that exports `tilewright_pool_*`, a number of threads. Out: `Pool.parallel`, the address
to hand to NAME_run_parallel.
Invariant: the address stays valid as long as the object lives, in a forked child as well (threads do not
survive a fork: the child gets workers of its own behind the same address). Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import weakref

from tilewright.errors import ArtifactError, TilewrightError


class _Parallel(ctypes.Structure):
    """`tilewright_parallel` of tilewright.h."""

    _fields_ = (("parallel_for", ctypes.c_void_p), ("self", ctypes.c_void_p))


class Pool:
    """`threads` - 1 workers and the calling thread; the workers end with this object.

    Raises `ValueError` for a bad number of threads, `ArtifactError` if the library has no pool and
    `TilewrightError` if the system refuses the threads.
    """

    def __init__(self, code: ctypes.CDLL, threads: int) -> None:
        self._pool: int | None = None
        if not 1 <= threads <= 1024:
            raise ValueError(f"threads must be between 1 and 1024, got {threads}")
        try:
            self._create = code.tilewright_pool_create
            self._view = code.tilewright_pool_parallel
            self._destroy = code.tilewright_pool_destroy
        except AttributeError:
            raise ArtifactError(
                f"{code._name} has no thread pool: compile the model again, or use threads=1"
            ) from None
        self._create.argtypes, self._create.restype = [ctypes.c_int32], ctypes.c_void_p
        self._view.argtypes = [ctypes.c_void_p]
        self._view.restype = ctypes.POINTER(_Parallel)
        self._destroy.argtypes, self._destroy.restype = [ctypes.c_void_p], None
        self._code = code  # the functions above die with the library
        self.threads = threads
        # A copy of the C structure: a child process exchanges what it says, not where it lies.
        self._parallel = _Parallel()
        self.parallel: int = ctypes.addressof(self._parallel)
        self._start(threads)
        _POOLS.add(self)

    def _start(self, threads: int) -> None:
        self._pool = self._create(threads)
        if not self._pool:
            raise TilewrightError(f"the system refused to start {threads} threads: use fewer")
        view = self._view(self._pool).contents
        self._parallel.parallel_for, self._parallel.self = view.parallel_for, view.self

    def _restart_in_child(self) -> None:
        """The old workers are gone and their memory may be in any state: leave it, start anew."""
        try:
            self._start(self.threads)
        except TilewrightError:
            self._start(1)

    def __del__(self) -> None:
        if self._pool:
            self._destroy(self._pool)
            self._pool = None


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._restart_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
