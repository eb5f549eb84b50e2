"""A model on an emulated board, used like one in this process.

In: a `Program` for a microcontroller. Out: a `BoardModel` to call, and a `BoardSession` that shows every
value in the board's memory after every step, as verification wants it.
Invariant: every result comes from the board; this process only copies bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tilewright.device.entry import entry_of
from tilewright.device.qemu_system import BoardImage, BoardRun, snapshot_outputs
from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array
from tilewright.program import Program, spec_of
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
        spec = spec_of(program)
        super().__init__(spec, entry_of(spec, lambda inputs: self.image.run(inputs).outputs))

    def profile(self, inputs: Sequence[Array]) -> BoardRun:
        """Run once; outputs, and instructions of the whole and of every step."""
        return self.image.run(inputs)

    def session(self) -> BoardSession:
        """Step-by-step access for verification."""
        return BoardSession(self.image)


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
