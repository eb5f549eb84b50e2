"""A model for a GPU that is not there, run in the interpreter of threads.

In: a `Program` for a CUDA target. Out: a `Model` to call, and a session for verification.
Invariant: the kernels are those that an artifact holds, before code generation: results say that
schedules, memory plan and barriers are right, nothing about speed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.device.entry import entry_of
from tilewright.emulate import Emulator
from tilewright.graph.ir import Array
from tilewright.program import Program, spec_of
from tilewright.runtime.model import Model


class GpuModel(Model):
    """A compiled model whose kernels run in `loop.simt`."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._emulator = Emulator(program)
        spec = spec_of(program)
        super().__init__(spec, entry_of(spec, self._execute))

    def _execute(self, inputs: Sequence[Array]) -> list[Array]:
        self._emulator.set_inputs(inputs)
        return self._emulator.run()

    def session(self) -> Emulator:
        """Step-by-step access for verification."""
        return self._emulator
