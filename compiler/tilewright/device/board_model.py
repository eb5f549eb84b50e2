"""A model on an emulated board, used like one in this process.

In: a `Program` for a microcontroller. Out: a `BoardModel` to call, and a `BoardSession` that shows every
value in the board's memory after every step, as verification wants it.
Invariant: every result comes from the board; this process only copies bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.api import spec_of
from tilewright.device.qemu_system import BoardImage, BoardRun, snapshot_outputs
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array
from tilewright.program import Program
from tilewright.runtime.model import Model
from tilewright.session import read_value


class BoardModel(Model):
    """A compiled model that runs in QEMU. Call it like any `Model`; `profile` also counts instructions.

    Raises `TargetError` if the target is no board that QEMU emulates, `ToolchainError` without emulator
    or linker.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.image = BoardImage(program)
        super().__init__(spec_of(program), self._run, keep=self.image)

    def profile(self, inputs: Sequence[Array]) -> BoardRun:
        """Run once; outputs, and instructions of the whole and of every step."""
        return self.image.run(inputs)

    def session(self) -> BoardSession:
        """Step-by-step access for verification."""
        return BoardSession(self.image)

    def _run(self, inputs: int, outputs: int, arena: int) -> int:
        """The entry point `Model` calls: addresses of the tables of pointers."""
        given = _tables(inputs, [(t.shape, t.dtype) for t in self.inputs])
        wanted = _tables(outputs, [(t.shape, t.dtype) for t in self.outputs])
        for mine, theirs in zip(wanted, self.image.run(given).outputs, strict=True):
            mine[...] = theirs
        return 0


class BoardSession:
    """What `session.Session` offers of a program in this process, for one on a board.

    The board runs all steps at once and leaves a picture of its memory after each; `run_step` then turns
    to the next picture. Steps must be run in order.
    """

    def __init__(self, image: BoardImage) -> None:
        self.program = image.program
        self._image = image
        self._run: BoardRun | None = None
        self._step = -1
        self.inputs = [np.zeros(t.type.shape, t.type.dtype.numpy) for t in self.program.inputs]

    def set_inputs(self, arrays: Sequence[Array] | Mapping[str, Array]) -> None:
        """Copy input values in (in order, or by name)."""
        names = [t.name for t in self.program.inputs]
        given = [arrays[n] for n in names] if isinstance(arrays, Mapping) else arrays
        for mine, new in zip(self.inputs, given, strict=True):
            mine[...] = new
        self._run, self._step = None, -1

    def run(self) -> list[Array]:
        """Run the whole model; returns the outputs."""
        self._run = self._image.run(self.inputs, snapshots=True)
        self._step = len(self.program.steps) - 1
        return self._run.outputs

    def run_step(self, i: int) -> None:
        """Turn to the memory after step `i`, which must follow the last one (or be the first)."""
        if self._run is None:
            self._run = self._image.run(self.inputs, snapshots=True)
        if i not in (0, self._step + 1):
            raise TilewrightError(
                f"steps on a board run in order: {i} does not follow {self._step}"
            )
        self._step = i

    def read(self, name: str) -> Array:
        """The value `name` as it lies in memory now; `KeyError` if no step materialises it."""
        arena, outputs = np.zeros(0, np.uint8), list[Array]()
        if self._run is not None and self._step >= 0:
            picture = self._run.snapshots[self._step]
            arena = np.frombuffer(picture[0], np.uint8)
            outputs = snapshot_outputs(self.program, picture[1])
        return read_value(self.program, name, arena, self.inputs, outputs)


def _tables(address: int, tensors: Sequence[tuple[tuple[int, ...], str]]) -> list[Array]:
    """Arrays over the memory that a table of pointers points to."""
    pointers = (ctypes.c_void_p * max(len(tensors), 1)).from_address(address)
    arrays: list[Array] = []
    for pointer, (shape, dtype) in zip(pointers, tensors, strict=False):
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        raw = (ctypes.c_char * size).from_address(pointer or 0) if size else b""
        arrays.append(np.frombuffer(raw, kind).reshape(shape))
    return arrays
