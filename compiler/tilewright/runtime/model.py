"""What users call: a compiled model as a Python function over NumPy arrays.

In: a `Spec` and an entry point of native code. Out: `Model`.
Invariant: arrays that are contiguous and of the right type are read in place; a call that cannot be
right raises `ValueError` before any native code runs. Standard library and NumPy only.

A call costs about two microseconds of Python; `bind` takes that down to the foreign call itself.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.runtime.binding import Binding, Context, Entry, Held, aligned_bytes, kind_of
from tilewright.runtime.spec import (
    ARENA_ALIGN,
    OpenDim,
    SizeSpec,
    Spec,
    StateSpec,
    TensorSpec,
    open_dim_text,
)

__all__ = [
    "ARENA_ALIGN",
    "Array",
    "Binding",
    "Entry",
    "Model",
    "OpenDim",
    "Save",
    "SizeSpec",
    "Spec",
    "StateSpec",
    "TensorSpec",
    "aligned_bytes",
    "open_dim_text",
]

Array = npt.NDArray[Any]

#: Writes the model as an artifact into a directory.
Save = Callable[[Path], object]


_ndarray, _empty = np.ndarray, np.empty


class Model:
    """A compiled model. Call it with arrays in input order, with one dict, or with keywords.

    Returns a list of new arrays in the model's output order. Several threads may call it at once: each
    running call has an arena of its own, kept for the next one.

    A model with states keeps them from call to call, and its calls take turns; `reset` starts anew. States
    are neither among its `inputs` nor among its `outputs`; `explicit` takes and gives them as well.
    """

    def __init__(
        self,
        spec: Spec,
        entry: Entry,
        keep: object = None,
        *,
        trailing: tuple[int | None, ...] = (),
        save: Save | None = None,
    ) -> None:
        """`entry(inputs, outputs, arena, *trailing)` runs the model; `keep` is whatever its code needs
        alive; `save` writes the artifact."""
        self.spec = spec
        self.inputs = spec.free_inputs
        self.outputs = spec.free_outputs
        self._held = Held(spec)
        self._entry = entry
        self._keep = keep
        self._trailing = trailing
        self._save = save
        self._want = [(t.shape, np.dtype(t.dtype), t) for t in spec.inputs]
        self._make = [(t.shape, np.dtype(t.dtype)) for t in spec.outputs]
        self._index = {t.name: i for i, t in enumerate(self.inputs)}
        # list.pop and list.append are atomic: the idle contexts need no lock.
        self._idle = [Context(spec, trailing)]
        self._bound: Binding | None = None

    @property
    def entry(self) -> Entry:
        """The function that runs the model."""
        return self._entry

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

    def __call__(self, /, *args: Any, **named: Any) -> list[Array]:
        """Run the model. Raises `ValueError` on a wrong number, name, shape or dtype of inputs."""
        if self.spec.states:
            return self._stateful(self._arrange(args, named))
        if named or len(args) != len(self._want) or (args and type(args[0]) is not _ndarray):
            args = self._arrange(args, named)
        return self.explicit(*args)

    def reset(self) -> None:
        """Start anew: the next call is the first one. Does nothing to a model without states."""
        with self._held.turn:
            self._held.values = self.spec.initial()

    def _stateful(self, args: Sequence[Any]) -> list[Array]:
        """Run with the states that the last call left, and keep those of this one."""
        states = self.spec.states
        with self._held.turn:
            arrays = list(args)
            for s, value in sorted(
                zip(states, self._held.values, strict=True), key=lambda p: p[0].input
            ):
                arrays.insert(s.input, value)
            results = self.explicit(*arrays)
            self._held.values = [results[s.output] for s in states]
        kept = {s.output for s in states}
        return [r for i, r in enumerate(results) if i not in kept]

    def explicit(self, /, *args: Any) -> list[Array]:
        """Run on all inputs in order, states among them; returns all outputs, as the C interface does."""
        if len(args) != len(self._want):
            raise ValueError(f"{self.name} takes {len(self._want)} inputs, states included")
        if self.spec.sizes:
            return self._open(args)
        try:
            context = self._idle.pop()
        except IndexError:  # as many calls are running as never before
            context = Context(self.spec, self._trailing)
        try:
            alive: list[Array] = []  # copies made here must outlive the call
            pointers = context.inputs
            for i, (shape, dtype, tensor) in enumerate(self._want):
                array = args[i]
                if not (
                    type(array) is _ndarray
                    and (array.dtype is dtype or array.dtype == dtype)
                    and array.shape == shape
                    and array.flags.carray
                ):
                    array = _usable(array, dtype, tensor)
                    alive.append(array)
                pointers[i] = _address(array)
            results: list[Array] = []
            pointers = context.outputs
            for i, (shape, dtype) in enumerate(self._make):
                result = _empty(shape, dtype)
                pointers[i] = _address(result)
                results.append(result)
            code = self._entry(*context.arguments)
        finally:
            self._idle.append(context)
        if code:
            raise self.spec.failed(code, context.arena)
        return results

    def _open(self, args: Sequence[Any]) -> list[Array]:
        """Run a model with open sizes at those that the inputs have."""
        spec = self.spec
        arrays = [np.asarray(a) for a in args]
        units = _units(spec, arrays)
        sizes = np.array([u * s.step for u, s in zip(units, spec.sizes, strict=True)], np.int64)
        laid = [*(_laid_out(a, t) for a, t in zip(arrays, spec.inputs, strict=True)), sizes]
        results = [_empty(t.shape, np.dtype(t.dtype)) for t in spec.outputs]
        try:
            context = self._idle.pop()
        except IndexError:
            context = Context(spec, self._trailing)
        try:
            for i, a in enumerate(laid):
                context.inputs[i] = a.ctypes.data
            for i, a in enumerate(results):
                context.outputs[i] = a.ctypes.data
            code = self._entry(*context.arguments)
        finally:
            self._idle.append(context)
        if code:
            raise spec.failed(code, context.arena)
        return [
            np.ascontiguousarray(r[tuple(slice(0, d.at(units)) for d in t.dims)])
            for r, t in zip(results, spec.outputs, strict=True)
        ]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Binding:
        """Fix the arrays once; calling the result runs the model on what they hold then.

        Raises `ValueError` unless all arrays have the exact shape and dtype and are C-contiguous,
        outputs are writable, and no output shares memory with another array. States are not among them:
        they go on from the model's, and stay with it.
        """
        return Binding(
            self.spec, self._entry, self._trailing, self._held, tuple(inputs), tuple(outputs)
        )

    def run_into(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run from and into given arrays (as `bind` wants them): nothing is allocated or copied.

        The arrays are checked when they differ from the last call's. Raises `ValueError`.
        """
        bound = self._bound
        if bound is None or not bound.holds(inputs, outputs):
            bound = self._bound = self.bind(inputs, outputs)
        bound()

    def save(self, directory: str | Path) -> object:
        """Write the model as an artifact directory."""
        if self._save is None:
            raise NotImplementedError(f"{self.name} was made without a way to save it")
        return self._save(Path(directory))

    def _arrange(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        """Inputs in order, from positions, one mapping or keywords."""
        if len(args) == 1 and isinstance(args[0], Mapping) and not named:
            named, args = args[0], ()
        if named and not args:
            unknown = [n for n in named if n not in self._index]
            missing = [n for n in self._index if n not in named]
            if unknown or missing:
                problem = (
                    f"no input is called `{unknown[0]}`"
                    if unknown
                    else f"input `{missing[0]}` is missing"
                )
                raise ValueError(f"{self.name}: {problem}; the inputs are {', '.join(self._index)}")
            return tuple(named[n] for n in self._index)
        if named:
            raise ValueError(f"{self.name} takes its inputs by position or by name, not both")
        if len(args) != len(self.inputs):
            wanted = ", ".join(map(str, self.inputs)) or "none"
            raise ValueError(
                f"{self.name} takes {len(self.inputs)} inputs ({wanted}), got {len(args)}"
            )
        return args

    def __repr__(self) -> str:
        ins, outs = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        return f"<tilewright model {self.name} for {self.spec.target}: ({ins}) -> ({outs})>"


def _address(
    array: Any,
    # Looked up once: this runs for every tensor of every call.
    addressof: Any = ctypes.addressof,
    from_buffer: Any = ctypes.c_char.from_buffer,
) -> int:
    """Address of a C-contiguous array's data."""
    try:  # three times as fast as array.ctypes.data
        return addressof(from_buffer(array))  # type: ignore[no-any-return]
    except (TypeError, ValueError):  # read-only or empty
        return int(array.ctypes.data)


def _usable(value: Any, dtype: np.dtype[Any], tensor: TensorSpec) -> Array:
    """`value` as an array that native code can read; `ValueError` if it is not what `tensor` says."""
    array = np.asarray(value)
    if array.dtype.isbuiltin == 2 and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)  # a type of `ml_dtypes`: models take its bits
    if array.dtype != dtype or array.shape != tensor.shape:
        raise ValueError(f"input {tensor}: got {kind_of(array)}")
    return np.require(array, requirements=("C", "A"))


# ---------------------------------------------------------------- open sizes


def _units(spec: Spec, arrays: Sequence[Array]) -> list[int]:
    """The sizes that shapes of inputs mean, in multiples of their steps; `ValueError` if they are none."""
    found: list[int | None] = [None] * len(spec.sizes)
    for t, a in zip(spec.inputs, arrays, strict=True):
        if a.dtype != np.dtype(t.dtype) or a.ndim != len(t.dims):
            raise ValueError(f"input {_open_text(spec, t)}: got {kind_of(a)}")
        for n, d in zip(a.shape, t.dims, strict=True):
            solved = d.solve(n)
            if solved is not None and found[solved[0]] is None:
                found[solved[0]] = solved[1]
    units: list[int] = []
    for s, u in zip(spec.sizes, found, strict=True):
        if u is None:
            shapes = "; ".join(_open_text(spec, t) for t in spec.inputs)
            raise ValueError(f"{spec.name}: no input says what `{s.name}` is ({shapes})")
        if not s.low <= u * s.step <= s.high:
            raise ValueError(f"{spec.name}: {s.name} is {u * s.step}, compiled for {s}")
        units.append(u)
    for t, a in zip(spec.inputs, arrays, strict=True):
        if a.shape != tuple(d.at(units) for d in t.dims):
            raise ValueError(f"input {_open_text(spec, t)}: got {kind_of(a)}")
    return units


def _laid_out(array: Array, tensor: TensorSpec) -> Array:
    """The values where the code looks for them: with the strides of the largest sizes."""
    if array.shape[1:] == tensor.shape[1:] or array.size == 0:
        return np.require(array, requirements=("C", "A"))
    lead = next(i for i, n in enumerate(tensor.shape) if n > 1)
    if array.shape[lead + 1 :] == tensor.shape[lead + 1 :]:
        return np.require(array, requirements=("C", "A"))
    out = _empty(tensor.shape, array.dtype)
    out[tuple(slice(0, n) for n in array.shape)] = array
    return out


def _open_text(spec: Spec, t: TensorSpec) -> str:
    """An input with its dims by the names of the sizes."""
    return f"{t.name}: {t.dtype}[{', '.join(open_dim_text(spec, d) for d in t.dims)}]"
