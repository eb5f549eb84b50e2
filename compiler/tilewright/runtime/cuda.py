"""Call a model on an NVIDIA GPU through the library of its artifact.

In: the path of a NAME.so made for a CUDA target and its `Spec`. Out: a `Model`.
Invariant: the model lives on the device as long as the `Model`; calls from several threads take turns.
Standard library only.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from dataclasses import replace

from tilewright.errors import ArtifactError
from tilewright.runtime.model import Model, Save, Spec


def has_driver() -> bool:
    """Whether a CUDA driver is installed; whether there is a device shows when a model is created."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cuda_model(code: ctypes.CDLL, spec: Spec, save: Save | None = None, device: int = 0) -> Model:
    """The model in an open library, set up on CUDA device number `device`.

    Raises `ArtifactError` with the library's own words: no driver, no such device, no memory.
    """
    name = spec.name
    pointer, status = ctypes.c_void_p, ctypes.c_int32
    try:
        create, run = getattr(code, f"{name}_create"), getattr(code, f"{name}_run")
        destroy, error = getattr(code, f"{name}_destroy"), getattr(code, f"{name}_error")
    except AttributeError as err:
        raise ArtifactError(f"the library of {name} lacks an entry point: {err}") from None
    create.argtypes, create.restype = [pointer, ctypes.c_int32], status
    run.argtypes, run.restype = [pointer] * 3, status
    destroy.argtypes, destroy.restype = [pointer], None
    error.argtypes, error.restype = [], ctypes.c_char_p

    def why() -> str:
        return str((error() or b"").decode("utf-8", "replace"))

    handle = pointer()
    if create(ctypes.byref(handle), device):
        raise ArtifactError(f"{name} was compiled for a GPU ({spec.target}), but {why()}")
    address = handle.value
    turn = threading.Lock()

    def entry(inputs: int, outputs: int, arena: int) -> int:
        del arena  # which is the device's
        with turn:
            if run(address, inputs, outputs):
                raise RuntimeError(f"{name} failed on the GPU: {why()}")
        return 0

    model = Model(replace(spec, arena_bytes=0), entry, keep=code, save=save)
    weakref.finalize(model, destroy, address)
    return model
