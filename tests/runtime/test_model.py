"""`Model` without native code: what it passes on, what it refuses, what it never copies."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tilewright.runtime.model import Model, Spec, TensorSpec

SPEC = Spec(
    name="double",
    target="here",
    inputs=(TensorSpec("a.b", (2, 3), "float32"), TensorSpec("k", (), "int64")),
    outputs=(TensorSpec("y", (2, 3), "float32"),),
    arena_bytes=100,
    weights_bytes=0,
    features=(),
)
A = np.arange(6, dtype=np.float32).reshape(2, 3)
K = np.array(3, np.int64)


class Recorder:
    """An entry point in Python: y = k * a. Remembers the addresses it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.status = 0

    def __call__(self, inputs: int, outputs: int, arena: int, *trailing: int) -> int:
        pointers = ctypes.POINTER(ctypes.c_void_p)
        a, k = ctypes.cast(inputs, pointers)[0:2]
        (y,) = ctypes.cast(outputs, pointers)[0:1]
        self.calls.append((a, k, y, arena, *trailing))
        source = np.frombuffer((ctypes.c_char * 24).from_address(a), np.float32)
        target = np.frombuffer((ctypes.c_char * 24).from_address(y), np.float32)
        target[:] = source * ctypes.c_int64.from_address(k).value
        ctypes.memset(arena, 0xAA, 100)
        return self.status


@pytest.fixture
def entry() -> Recorder:
    return Recorder()


@pytest.fixture
def model(entry: Recorder) -> Model:
    return Model(SPEC, entry, trailing=(7, 8))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m(A, K), lambda m: m({"k": K, "a.b": A}), lambda m: m(**{"a.b": A, "k": K}),
        lambda m: m(A, np.int64(3)), lambda m: m(A, 3),
    ],
)  # fmt: skip
def test_ways_to_call(model: Model, call: Callable[[Model], Any]) -> None:
    (y,) = call(model)
    assert y.dtype == np.float32 and (y == 3 * A).all()


def test_good_arrays_are_read_in_place(model: Model, entry: Recorder) -> None:
    frozen = A.copy()
    frozen.flags.writeable = False
    for a in (A, frozen):
        (y,) = model(a, K)
        assert entry.calls[-1][:3] == (a.ctypes.data, K.ctypes.data, y.ctypes.data)
        assert entry.calls[-1][3] % 64 == 0
        assert entry.calls[-1][4:] == (7, 8)


def test_other_memory_orders_are_copied(model: Model) -> None:
    padded = np.zeros(25, np.uint8)
    misaligned = padded[1:].view(np.float32).reshape(2, 3)
    misaligned[:] = A
    assert not misaligned.flags.aligned
    for a in (np.asfortranarray(A), np.repeat(A, 2, axis=1)[:, ::2], A[::-1][::-1], misaligned):
        assert (model(a, K)[0] == 3 * A).all()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(A), "takes 2 inputs .* got 1"), (lambda m: m(), "got 0"),
        (lambda m: m(A, K, K), "got 3"),
        (lambda m: m(A.T, K), r"input a\.b: float32\[2, 3\]: got float32\[3, 2\]"),
        (lambda m: m(A.astype(np.float64), K), r"got float64\[2, 3\]"),
        (lambda m: m(A.astype(">f4"), K), r"got >f4\[2, 3\]"),
        (lambda m: m(A, np.ones(1, np.int64)), r"input k: int64\[\]: got int64\[1\]"),
        (lambda m: m({"a.b": A}), "input `k` is missing; the inputs are a.b, k"),
        (lambda m: m({"a.b": A, "k": K, "z": K}), "no input is called `z`"),
        (lambda m: m(A, k=K), "by position or by name"), (lambda m: m({}), "got 0"),
        (lambda m: m("text", K), "input a.b"),
    ],
)  # fmt: skip
def test_wrong_calls(
    model: Model, entry: Recorder, call: Callable[[Model], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(model)
    assert entry.calls == []
    assert (model(A, K)[0] == 3 * A).all()  # and the model still works


def test_run_into_and_bind(model: Model, entry: Recorder) -> None:
    a, y = A.copy(), np.empty((2, 3), np.float32)
    model.run_into([a, K], [y])
    assert (y == 3 * A).all()
    a += 1
    model.run_into((a, K), (y,))
    assert (y == 3 * (A + 1)).all()
    assert entry.calls[0] == entry.calls[1]  # the same context, arena and arrays
    other = np.empty_like(y)
    model.run_into((a, K), (other,))
    assert (other == y).all()
    bound = model.bind((a, K), (y,))
    a[:] = 1
    bound()
    assert (y == 3).all()


@pytest.mark.parametrize(
    "inputs, outputs, message",
    [
        ((A,), (A.copy(),), "has 2 inputs, got 1"), ((A, K), (), "has 1 outputs, got 0"),
        ((A.T.copy().T, K), (A.copy(),), "input a.b.* C-contiguous"), ((A, 3), (A.copy(),), "got int"),
        ((A, K), (A.astype(np.float64),), r"output y: float32\[2, 3\]: got float64"),
        ((A, K), (A,), "shares memory"),
        ((A, K), (np.broadcast_to(np.float32(1), (2, 3)),), "C-contiguous"),
        ((A, K), (np.frombuffer(bytes(24), np.float32).reshape(2, 3),), "read-only"),
    ],
)  # fmt: skip
def test_wrong_bindings(model: Model, inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.run_into(inputs, outputs)


def test_nested_calls_have_an_arena_each(entry: Recorder) -> None:
    arenas: list[int] = []

    def outer(inputs: int, outputs: int, arena: int) -> int:
        arenas.append(arena)
        if len(arenas) < 3:
            model(A, K)
        return entry(inputs, outputs, arena)

    model = Model(SPEC, outer)
    model(A, K)
    assert len(set(arenas)) == 3
    model(A, K)
    assert arenas[3] in arenas[:3]  # contexts are used again


def test_an_error_code_is_an_error(model: Model, entry: Recorder) -> None:
    entry.status = 1
    with pytest.raises(RuntimeError, match="double returned error 1"):
        model(A, K)
    with pytest.raises(RuntimeError, match="double returned error 1"):
        model.run_into((A, K), (A.copy(),))


def test_empty_tensors_and_no_inputs() -> None:
    def nothing(inputs: int, outputs: int, arena: int) -> int:
        return 0

    spec = Spec("none", "here", (), (TensorSpec("y", (0, 4), "bool"),), 0, 0, ())
    (y,) = Model(spec, nothing)()
    assert y.shape == (0, 4) and y.dtype == np.bool_


def test_arrays_are_not_kept_alive(model: Model) -> None:
    a = A.copy()
    alive = weakref.ref(a)
    (y,) = model(a, K)
    kept = weakref.ref(y)
    del a, y
    gc.collect()
    assert alive() is None and kept() is None


def test_save_needs_a_way(entry: Recorder) -> None:
    with pytest.raises(NotImplementedError, match="without a way to save"):
        Model(SPEC, entry).save("x")
    saved: list[Any] = []
    Model(SPEC, entry, save=saved.append).save("x")
    assert str(saved[0]) == "x"


def test_sizes_and_text(model: Model) -> None:
    assert (SPEC.inputs[0].elements, SPEC.inputs[0].nbytes, SPEC.inputs[1].nbytes) == (6, 24, 8)
    assert repr(model).endswith("for here: (a.b: float32[2, 3], k: int64[]) -> (y: float32[2, 3])>")
