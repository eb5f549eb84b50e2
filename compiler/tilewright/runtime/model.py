"""What users call: a compiled model as a Python function over NumPy arrays.

In: a `Spec` and the address of native code. Out: `Model`.
Invariant: arrays that are contiguous and of the right type are read in place; a call that cannot be
right raises `ValueError` before any native code runs. Standard library and NumPy only.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: int32_t main(inputs, outputs, arena): bound to weights and threads by whoever made it.
Entry = Callable[[int, int, int], int]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and NumPy dtype name of a model input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caller must know about a compiled model; `features` are required CPU features."""

    name: str
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    weights_bytes: int
    features: tuple[str, ...]


def aligned_bytes(size: int, align: int = 64) -> Array:
    """Zeroed bytes whose address is a multiple of `align`."""
    raw = np.zeros(size + align, np.uint8)
    shift = -raw.ctypes.data % align
    return raw[shift : shift + size]


class Model:
    """A compiled model. Call it with arrays in input order, or with one dict by input name.

    Returns a list of new arrays in the model's output order. Calls from several threads are
    serialised (the arena is shared).
    """

    def __init__(self, spec: Spec, entry: Entry, keep: object = None) -> None:
        self.spec = spec
        self.inputs = spec.inputs
        self.outputs = spec.outputs
        self._entry = entry
        self._keep = keep
        self._lock = threading.Lock()
        self._arena = aligned_bytes(max(spec.arena_bytes, 64))
        self._arena_at = self._arena.ctypes.data
        self._dtypes_in = [np.dtype(t.dtype) for t in spec.inputs]
        self._dtypes_out = [np.dtype(t.dtype) for t in spec.outputs]
        self._in = (ctypes.c_void_p * max(len(spec.inputs), 1))()
        self._out = (ctypes.c_void_p * max(len(spec.outputs), 1))()
        self._in_at, self._out_at = ctypes.addressof(self._in), ctypes.addressof(self._out)

    @property
    def name(self) -> str:
        """The model's name, prefix of its C symbols."""
        return self.spec.name

    @property
    def arena_bytes(self) -> int:
        """Scratch memory of one run."""
        return self.spec.arena_bytes

    @property
    def weights_bytes(self) -> int:
        """Constant data of the model."""
        return self.spec.weights_bytes

    def __call__(self, *args: Any) -> list[Array]:
        """Run the model. Raises `ValueError` on a wrong number, name, shape or dtype of inputs."""
        arrays = self._arrange(args)
        outputs = [
            np.empty(t.shape, d) for t, d in zip(self.outputs, self._dtypes_out, strict=True)
        ]
        self._run(arrays, outputs)
        return outputs

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run into given arrays: no allocation. Outputs must be contiguous and of the exact type."""
        arrays = self._arrange(tuple(inputs))
        if len(outputs) != len(self.outputs):
            raise ValueError(f"{self.name} has {len(self.outputs)} outputs, got {len(outputs)} arrays")
        for t, d, a in zip(self.outputs, self._dtypes_out, outputs, strict=True):
            if a.shape != t.shape or a.dtype != d or not a.flags.c_contiguous or not a.flags.writeable:
                raise ValueError(f"output {t} wants a writable contiguous array, got {_kind(a)}")
        self._run(arrays, outputs)

    def _run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        with self._lock:
            for i, a in enumerate(inputs):
                self._in[i] = a.__array_interface__["data"][0]
            for i, a in enumerate(outputs):
                self._out[i] = a.__array_interface__["data"][0]
            code = self._entry(self._in_at, self._out_at, self._arena_at)
        if code:
            raise RuntimeError(f"{self.name} returned error {code}")

    def _arrange(self, args: tuple[Any, ...]) -> list[Array]:
        """Inputs in order, contiguous, checked."""
        if len(args) == 1 and isinstance(args[0], Mapping):
            args = self._by_name(args[0])
        if len(args) != len(self.inputs):
            wanted = ", ".join(map(str, self.inputs))
            raise ValueError(f"{self.name} takes {len(self.inputs)} inputs ({wanted}), got {len(args)}")
        out: list[Array] = []
        for t, d, a in zip(self.inputs, self._dtypes_in, args, strict=True):
            array = np.asarray(a)
            if array.dtype != d or array.shape != t.shape:
                raise ValueError(f"input {t}: got {_kind(array)}")
            out.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        return out

    def _by_name(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        names = [t.name for t in self.inputs]
        unknown = [n for n in given if n not in names]
        missing = [n for n in names if n not in given]
        if unknown or missing:
            problem = f"no input called `{unknown[0]}`" if unknown else f"input `{missing[0]}` is missing"
            raise ValueError(f"{self.name}: {problem}; the inputs are {', '.join(names)}")
        return tuple(given[n] for n in names)

    def __repr__(self) -> str:
        ins, outs = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"<tilewright model {self.name} for {self.spec.target}: ({ins}) -> ({outs})>"


def _kind(a: Array) -> str:
    return f"{a.dtype}[{', '.join(map(str, a.shape))}]"
