"""Second opinions on a whole model: who computes something that nobody else computes?

In: a model file, inputs, our outputs. Out: per output, how far the parties are apart and who is alone.
Invariant: nobody is right by definition, ONNX Runtime included; a party is alone only if all others, at least
two of them, are nearer to each other than any of them is to it. One that is not installed, refuses the model or
crashes (other libraries run in a process of their own) has no say, and the reason is kept.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.bench.peers import PACKAGES, PEERS, Case
from tilewright.bench.verify import relative_error
from tilewright.frontend.expose import read_proto
from tilewright.frontend.models import is_tflite, load_model
from tilewright.graph import interp
from tilewright.graph.ir import Array

OURS, EXACT = "tilewright", "float64 interpreter"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One output: largest distance between any two parties, the party that is alone ("" if none is)."""

    output: str
    apart: float
    alone: str
    others_apart: float
    """Largest distance between the others, `apart` where nobody is alone."""


@dataclass(slots=True)
class Opinions:
    """What each party computed; why others have none."""

    outputs: dict[str, list[Array]] = field(default_factory=dict[str, list[Array]])
    silent: dict[str, str] = field(default_factory=dict[str, str])
    names: tuple[str, ...] = ()

    def verdicts(self, tolerance: float = 0.0) -> list[Verdict]:
        """A verdict per output; parties within `tolerance` of each other (relative to the largest magnitude)
        agree whatever their order."""
        return [
            verdict(name, {who: outs[i] for who, outs in self.outputs.items()}, tolerance)
            for i, name in enumerate(self.names)
        ]


def verdict(output: str, values: Mapping[str, Array], tolerance: float = 0.0) -> Verdict:
    """Who is alone about one output; arrays of different shapes are infinitely far apart."""
    pairs = {frozenset(p): _distance(values[p[0]], values[p[1]]) for p in combinations(values, 2)}
    apart = max(pairs.values(), default=0.0)
    if apart <= tolerance or len(values) < 3:
        return Verdict(output, apart, "", apart)
    for who in values:
        mine = min(d for pair, d in pairs.items() if who in pair)
        rest = max(d for pair, d in pairs.items() if who not in pair)
        if rest < mine and mine > tolerance:
            return Verdict(output, apart, who, rest)
    return Verdict(output, apart, "", apart)


def _distance(a: Array, b: Array) -> float:
    return max(relative_error(a, b), relative_error(b, a))


def opinions(
    source: Path,
    inputs: Mapping[str, Array],
    ours: Sequence[Array] | None = None,
    parties: Sequence[str] | None = None,
) -> Opinions:
    """What everybody who is installed computes from `inputs` (arrays by name).

    `ours` are the outputs of the compiled model, in its order. Raises `ModelError` where we cannot import the
    model; what a party raises becomes its reason to be silent.
    """
    graph = load_model(source, {name: a.shape for name, a in inputs.items()})
    found = Opinions(names=tuple(graph.outputs))
    if ours is not None:
        found.outputs[OURS] = list(ours)
    case = Case(source, inputs, tuple(graph.outputs), 1)
    asked: dict[str, Callable[[], list[Array]]] = {
        EXACT: lambda: _interpreted(graph, inputs),
        "onnx ReferenceEvaluator": lambda: _evaluated(case),
        # TVM says the same with any schedules
        **{who: partial(_elsewhere, who, case) for who in PEERS if who != "tvm-tuned"},
    }
    for who, ask in asked.items():
        if parties is not None and who not in parties:
            continue
        try:
            outs = [np.array(a) for a in ask()]
        except Exception as err:  # foreign code: whatever it raises, it has no opinion
            found.silent[who] = (str(err).strip().splitlines() or [type(err).__name__])[0][:160]
            continue
        if len(outs) == len(found.names):
            found.outputs[who] = outs
        else:
            found.silent[who] = f"it has {len(outs)} outputs, the model {len(found.names)}"
    return found


def _elsewhere(who: str, case: Case) -> list[Array]:
    """What a library computes, in a process of its own: native code that crashes takes nobody with it."""
    if find_spec(_MODULES.get(who, who)) is None:
        raise ValueError(f"{PACKAGES[who]} is not installed")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_ask, who, case).result()
        except BrokenProcessPool:
            raise ValueError("it crashed") from None


#: Import names of the packages that are not called like the party.
_MODULES = {"mnn": "MNN", "litert": "ai_edge_litert"}


def _ask(who: str, case: Case) -> list[Array]:
    return [np.array(a) for a in PEERS[who](case)()]


def _interpreted(graph: Any, inputs: Mapping[str, Array]) -> list[Array]:
    values = interp.run(graph, dict(inputs))
    return [values[n] for n in graph.outputs]


def _evaluated(case: Case) -> list[Array]:
    """The standard's own definitions in NumPy."""
    if is_tflite(case.path):
        raise ValueError("it runs ONNX files only")
    from onnx.reference import ReferenceEvaluator

    session: Any = ReferenceEvaluator(read_proto(case.path))
    return [np.asarray(a) for a in session.run(None, dict(case.inputs))]
