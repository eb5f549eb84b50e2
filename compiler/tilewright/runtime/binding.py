"""A model with fixed arrays, whose calls cost no more than the native code, and what any running call needs.

In: a `Spec`, an entry point, arrays of the caller. Out: `Binding`, `Context`.
Invariant: nothing is allocated or copied per call. States of a model lie twice: a run reads one place and
writes the other, and the next one goes back.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.runtime.spec import ARENA_ALIGN, Spec, TensorSpec

Array = npt.NDArray[Any]
#: int32_t entry(inputs, outputs, arena, *trailing), all of them addresses; 0 means success.
Entry = Callable[..., int]


def aligned_bytes(size: int, align: int = ARENA_ALIGN) -> Array:
    """Bytes of any content whose address is a multiple of `align`."""
    raw = np.empty(size + align, np.uint8)
    shift = -raw.ctypes.data % align
    return raw[shift : shift + size]


class Context:
    """What one running call needs for itself: arena, pointer arrays, the entry's arguments."""

    __slots__ = ("arena", "arguments", "inputs", "outputs")

    def __init__(
        self, spec: Spec, trailing: tuple[int | None, ...], arena: Array | None = None
    ) -> None:
        if arena is None:
            arena = aligned_bytes(max(spec.arena_bytes, ARENA_ALIGN))
        self.arena = arena
        self.inputs = (
            ctypes.c_void_p * (len(spec.inputs) + 1)
        )()  # sizes come last, where there are any
        self.outputs = (ctypes.c_void_p * max(len(spec.outputs), 1))()
        self.arguments = (
            ctypes.addressof(self.inputs),
            ctypes.addressof(self.outputs),
            self.arena.ctypes.data,
            *trailing,
        )

    def point(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Read and write these arrays."""
        for pointers, arrays in ((self.inputs, inputs), (self.outputs, outputs)):
            for i, a in enumerate(arrays):
                pointers[i] = a.ctypes.data


class Held:
    """The states of a model: what the last run left, and whose turn it is."""

    __slots__ = ("turn", "values")

    def __init__(self, spec: Spec) -> None:
        self.values: list[Array] = spec.initial()
        self.turn = threading.Lock()


class Binding:
    """A model with fixed arrays: call it to run. Made by `Model.bind`.

    It keeps the arrays alive; calls from several threads take turns.
    """

    def __init__(
        self,
        spec: Spec,
        entry: Entry,
        trailing: tuple[int | None, ...],
        held: Held,
        inputs: tuple[Array, ...],
        outputs: tuple[Array, ...],
    ) -> None:
        if spec.sizes:
            raise ValueError(
                f"{spec.name} has open sizes ({', '.join(map(str, spec.sizes))}): call it instead"
            )
        for kind, tensors, arrays in (
            ("input", spec.free_inputs, inputs),
            ("output", spec.free_outputs, outputs),
        ):
            if len(arrays) != len(tensors):
                raise ValueError(
                    f"{spec.name} has {len(tensors)} {kind}s, got {len(arrays)} arrays"
                )
            for t, a in zip(tensors, arrays, strict=True):
                _check_bindable(kind, t, a)
        _check_disjoint(spec, inputs, outputs)
        self.spec = spec
        self.inputs = inputs
        self.outputs = outputs
        self._entry = entry
        self._held = held
        self._lock = held.turn if spec.states else threading.Lock()
        kinds = [spec.inputs[s.input] for s in spec.states]
        self._places = [
            [np.empty(t.shape, np.dtype(t.dtype)) for t in kinds] for _ in range(1 + bool(kinds))
        ]
        first = Context(spec, trailing)
        self._contexts = [first]
        if kinds:
            self._contexts.append(Context(spec, trailing, first.arena))
        for i, context in enumerate(self._contexts):
            reads, writes = self._places[i], self._places[i - 1]
            context.point(
                woven(inputs, {s.input: a for s, a in zip(spec.states, reads, strict=True)}),
                woven(outputs, {s.output: a for s, a in zip(spec.states, writes, strict=True)}),
            )

    def __call__(self) -> None:
        """Run the model once."""
        with self._lock:
            if not self.spec.states:
                code = self._entry(*self._contexts[0].arguments)
            else:
                side = self._side()
                code = self._entry(*self._contexts[side].arguments)
                if not code:
                    self._held.values = self._places[1 - side]
        if code:
            raise self.spec.failed(code, self._contexts[0].arena)

    def _side(self) -> int:
        """Which place holds the states now; those that another call left are copied into the first."""
        held = self._held.values
        for i, place in enumerate(self._places):
            if held is place:
                return i
        for mine, theirs in zip(self._places[0], held, strict=True):
            mine[...] = theirs
        return 0

    def holds(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> bool:
        """Whether these very arrays are the bound ones."""
        mine, theirs = (*self.inputs, *self.outputs), (*inputs, *outputs)
        return len(mine) == len(theirs) and all(map(_is, mine, theirs))


def woven(free: Sequence[Array], states: dict[int, Array]) -> list[Array]:
    """All arrays in the order of the C interface: states at their numbers, the others between them."""
    rest = iter(free)
    return [states[i] if i in states else next(rest) for i in range(len(free) + len(states))]


def _is(a: object, b: object) -> bool:
    return a is b


def _check_bindable(kind: str, tensor: TensorSpec, array: Array) -> None:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{kind} {tensor}: got {type(array).__name__}, not an array")
    if array.dtype != np.dtype(tensor.dtype) or array.shape != tensor.shape:
        raise ValueError(f"{kind} {tensor}: got {kind_of(array)}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{kind} {tensor}: the array must be C-contiguous to be used in place")
    if kind == "output" and not array.flags.writeable:
        raise ValueError(f"{kind} {tensor}: the array is read-only")


def _check_disjoint(spec: Spec, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """The code reads inputs after it has begun to write outputs."""
    for i, out in enumerate(outputs):
        for other in (*inputs, *outputs[:i]):
            if np.may_share_memory(out, other):
                name = spec.free_outputs[i].name
                raise ValueError(
                    f"output `{name}` shares memory with another array: give it its own"
                )


def kind_of(a: Array) -> str:
    return f"{a.dtype}[{', '.join(map(str, a.shape))}]"
