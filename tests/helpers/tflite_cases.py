"""Cases of single TFLite operators, and how they are judged against LiteRT's reference kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tflite_models import Reference, T, samples

import tilewright
from tilewright.frontend.tflite.load import load_tflite
from tilewright.graph import interp
from tilewright.graph.passes import optimize

RNG = np.random.default_rng(7)


@dataclass
class Case:
    """A model with its inputs (random if there are none); integers may be `steps` apart, floats
    `tolerance` of the largest magnitude."""

    name: str
    model: bytes
    inputs: list[np.ndarray] | None = None
    steps: int = 0
    tolerance: float = 1e-5


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


X = T("float32", (1, 6, 7, 4))
Q = T("int8", (1, 6, 7, 4), scale=0.05, zero=-3)
U = T("uint8", (1, 6, 7, 4), scale=0.05, zero=121)
H = T("int16", (1, 6, 7, 4), scale=0.0003)


def out(t: T, *shape: int, **more: Any) -> T:
    return T(t.dtype, shape or t.shape, **{"scale": t.scale, "zero": t.zero, **more})


def check(case: Case, compiled: bool = False) -> None:
    """The optimised graph, or the code compiled from it, gives what LiteRT gives."""
    inputs = case.inputs or samples(case.model)
    wanted = Reference(case.model)(*inputs)
    if compiled:
        found: list[np.ndarray] = tilewright.compile(case.model)(*inputs)
    else:
        graph = optimize(load_tflite(case.model))
        values = interp.run(graph, dict(zip(graph.inputs, inputs, strict=True)))
        found = [values[name] for name in graph.outputs]
    for a, b in zip(found, wanted, strict=True):
        same(a, b, case.steps, 2 * case.tolerance if compiled else case.tolerance)


def same(a: np.ndarray, b: np.ndarray, steps: int = 0, tolerance: float = 1e-5) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    off = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
    if b.dtype.kind == "f":
        assert off <= tolerance * np.abs(b).max(initial=0)
    else:
        assert off <= steps, f"{off} steps, {(a != b).mean():.2%} of the elements"


def ids(cases: list[Case]) -> list[str]:
    return [f"{i}-{c.name}" for i, c in enumerate(cases)]
