"""A model on this machine's NVIDIA GPU, used like one in this process.

In: a `Program` for a CUDA target. Out: a `Model` to call.
Invariant: it is loaded from an artifact in a temporary folder, so what runs is what users ship.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tilewright.errors import TargetError
from tilewright.program import Program
from tilewright.runtime.cuda import has_driver
from tilewright.runtime.loader import load
from tilewright.runtime.model import Model
from tilewright.schedule.target import Target


def require_driver(target: Target) -> None:
    """Raise `TargetError` where there is no GPU to run code for `target`."""
    if not has_driver():
        raise TargetError(
            f"code for {target.name} cannot run here: there is no GPU (no CUDA driver, libcuda.so.1, was "
            "found); `--device emulator` runs its kernels in the interpreter, `tilewright compile` makes "
            "an artifact for a machine that has one"
        )


class CudaModel(Model):
    """A compiled model on CUDA device 0.

    Raises `TargetError` without a driver, `ArtifactError` if the model does not start there.
    """

    def __init__(self, program: Program, save: Callable[[Path], object]) -> None:
        require_driver(program.target)
        self.program = program
        with tempfile.TemporaryDirectory(prefix="tilewright-cuda-") as name:
            folder = Path(name) / "model"
            save(folder)
            loaded = load(folder)
        super().__init__(loaded.spec, loaded.entry, keep=loaded, save=save)
