"""What a caller must know about a compiled model: tensors, sizes that stay open, states, memory.

In: the compiler, or a manifest. Out: a `Spec`, read by headers, loaders and models.
Invariant: plain data. Standard library and NumPy only: a device loads an artifact without the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import AccessError

Array = npt.NDArray[Any]

#: What the compiled code asks of the arena's address.
ARENA_ALIGN = 64
#: Checked code returns this plus the number of what is wrong; the last bytes of its arena are the index.
FIRST_FAULT = 16


@dataclass(frozen=True, slots=True)
class SizeSpec:
    """A size that every run may choose: a multiple of `step` from `low` to `high`."""

    name: str
    low: int
    high: int
    step: int = 1

    def __str__(self) -> str:
        return f"{self.name}={self.low}..{self.high}" + (f":{self.step}" if self.step > 1 else "")


@dataclass(frozen=True, slots=True)
class OpenDim:
    """A dim that follows the sizes: constant + sum of factor * ((size / step + shift) // divisor), where each
    term is (factor, number of the size, shift, divisor)."""

    constant: int
    terms: tuple[tuple[int, int, int, int], ...] = ()

    def at(self, units: Sequence[int]) -> int:
        """The dim where the sizes are these multiples of their steps."""
        return self.constant + sum(c * ((units[i] + a) // d) for c, i, a, d in self.terms)

    def solve(self, n: int) -> tuple[int, int] | None:
        """(number of the size, its multiple) that a dim of `n` means; None if it does not say."""
        if len(self.terms) != 1 or self.terms[0][3] != 1:
            return None
        factor, i, shift, _ = self.terms[0]
        whole, rest = divmod(n - self.constant, factor)
        return None if rest else (i, whole - shift)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and NumPy dtype name of a model input or output.

    In a model with open sizes `dims` are the dims, and `shape` is that at the largest sizes, with which the
    tensor lies in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[OpenDim, ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.elements * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What a model keeps: output number `output` of a run is input number `input` of the next. The first one
    gets the bytes `initial`; empty for zeros."""

    input: int
    output: int
    initial: bytes = b""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caller must know about a compiled model; `features` are required CPU features.

    `stack_bytes` is what a run takes at most (0: not known), without `threads` there is no run_parallel.
    """

    name: str
    target: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    weights_bytes: int
    features: tuple[str, ...]
    arena_align: int = ARENA_ALIGN
    stack_bytes: int = 0
    threads: bool = True
    sizes: tuple[SizeSpec, ...] = ()
    states: tuple[StateSpec, ...] = ()
    faults: tuple[str, ...] = ()
    """What the checks in the code can find (`tilewright compile --checked`); none where it has no checks."""

    def failed(self, code: int, arena: Array | None = None) -> RuntimeError:
        """The exception for a run that returned `code`; the `arena` it used holds the index that was wrong."""
        if not 0 <= code - FIRST_FAULT < len(self.faults):
            return RuntimeError(f"{self.name} returned error {code}")
        index = ""
        if arena is not None:
            last = np.frombuffer(arena[self.arena_bytes - 8 : self.arena_bytes].tobytes(), np.int64)
            index = f": it is {last[0]}"
        return AccessError(f"{self.faults[code - FIRST_FAULT]}{index}")

    @property
    def free_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that are no states."""
        kept = {s.input for s in self.states}
        return tuple(t for i, t in enumerate(self.inputs) if i not in kept)

    @property
    def free_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that are no states."""
        kept = {s.output for s in self.states}
        return tuple(t for i, t in enumerate(self.outputs) if i not in kept)

    def initial(self) -> list[Array]:
        """What the first run gets as states."""
        out: list[Array] = []
        for s in self.states:
            t = self.inputs[s.input]
            kind = np.dtype(t.dtype)
            flat = np.frombuffer(s.initial, kind) if s.initial else np.zeros(t.elements, kind)
            out.append(flat.reshape(t.shape).copy())
        return out

    @property
    def given(self) -> tuple[TensorSpec, ...]:
        """What the code gets as inputs: with open sizes their values come last."""
        sizes = TensorSpec("sizes", (len(self.sizes),), "int64")
        return (*self.inputs, sizes) if self.sizes else self.inputs

    def inputs_at(self, sizes: Sequence[int]) -> tuple[TensorSpec, ...]:
        """The inputs as they are at some sizes."""
        units = [n // s.step for n, s in zip(sizes, self.sizes, strict=True)]
        return tuple(
            TensorSpec(t.name, tuple(d.at(units) for d in t.dims), t.dtype) for t in self.inputs
        )

    @property
    def arena_size(self) -> int:
        """Bytes to reserve for the arena: never none, so that its address means something."""
        return max(self.arena_bytes, self.arena_align)


def open_dim_text(spec: Spec, dim: OpenDim) -> str:
    """A dim as people write it: `2*tokens + 1`, `(height/32 + 1)//2`."""
    parts: list[str] = []
    for factor, i, shift, divisor in dim.terms:
        s = spec.sizes[i]
        one = s.name if s.step == 1 else f"{s.name}/{s.step}"
        if divisor > 1:
            one = f"({one} + {shift})//{divisor}" if shift else f"({one})//{divisor}"
        if divisor == 1 and factor % s.step == 0:
            one, factor = s.name, factor // s.step
        parts.append(one if factor == 1 else f"{factor}*{one}")
    if dim.constant or not parts:
        parts.append(str(dim.constant))
    return " + ".join(parts)
