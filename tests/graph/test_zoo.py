"""Real models through the frontend, the verifier, the interpreter and the passes, against ONNX Runtime.

In: every model of the zoo that is on this machine (`$TILEWRIGHT_ZOO`, default ~/.cache/tilewright/models).
Out: agreement within 1e-4 of the largest magnitude of each output, before and after the passes.
Quantised models are left to `tests/test_zoo.py`, which judges every layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilewright.bench.inputs import make_inputs
from tilewright.bench.zoo import cache_dir, zoo
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.interp import run
from tilewright.graph.ir import Array, Graph
from tilewright.graph.passes import optimize
from tilewright.graph.text import parse, same_graph, to_text
from tilewright.graph.verify import verify
from tilewright.runtime.model import TensorSpec

ort = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-4
QUANTISED = {m.name for m in zoo().values() if "int8" in m.suites}
MODELS = [p for p in sorted(cache_dir().glob("*.onnx")) if p.stem not in QUANTISED]


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    known = zoo().get(path.stem)
    return dict(known.shapes) if known else {}


def inputs_for(graph: Graph, name: str) -> dict[str, Array]:
    specs = [
        TensorSpec(n, graph.types[n].shape, graph.types[n].dtype.numpy.name) for n in graph.inputs
    ]
    given = zoo()[name].given if name in zoo() else {}
    return dict(zip(graph.inputs, make_inputs(specs, graph, 0, given), strict=True))


def expected(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_close(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert got.keys() == want.keys()
    for name, w in want.items():
        assert got[name].shape == w.shape and got[name].dtype == w.dtype, name
        difference = np.abs(got[name].astype(np.float64) - w.astype(np.float64))
        scale = float(np.abs(w).max(initial=0.0)) or 1.0
        worst = float(difference.max(initial=0.0)) / scale
        assert worst <= TOLERANCE, f"output {name} is off by {worst:.2e} of its largest magnitude"


@pytest.mark.slow
@pytest.mark.skipif(not MODELS, reason="no zoo models here: run `tilewright models --fetch`")
@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in MODELS])
def test_agrees_with_onnxruntime(path: Path) -> None:
    graph = load_onnx(path, shapes_of(path))
    verify(graph)
    inputs = inputs_for(graph, path.stem)
    want = expected(path, inputs)
    assert_close(run(graph, inputs), want)
    optimised = optimize(graph)
    verify(optimised)
    assert_close(run(optimised, inputs), want)
    assert same_graph(parse(to_text(optimised), optimised.constants), optimised)
    again = optimize(optimised)
    assert [n.op for n in again.nodes] == [n.op for n in optimised.nodes], "not a fixed point"
