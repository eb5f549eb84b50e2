"""Every operator on a GPU: all samples of an operator are one program, in the interpreter of threads."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sample_graphs import program_of

from tilewright.emulate import Emulator
from tilewright.gpu import gpu_assembly
from tilewright.graph.ir import type_of
from tilewright.pipeline import build
from tilewright.registry import operator, operators

NAMES = sorted(n for n, op in operators().items() if op.samples is not None)
QUICK = ("add", "argmax", "conv_transpose2d", "cumulative_sum", "layer_norm", "log_softmax", "topk")


def _marked(name: str) -> Any:
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [_marked(n) for n in NAMES])
def test_operator(name: str) -> None:
    op = operator(name)
    assert op.samples is not None
    samples = [s for s in op.samples(np.random.default_rng(1)) if s.inputs[0] is not None]
    graph, inputs = program_of(name, samples)
    program = build(graph, "cuda-sm80")
    there = Emulator(program)
    there.set_inputs(inputs)
    for got, sample in zip(there.run(), samples, strict=True):
        with np.errstate(all="ignore"):
            (want,) = op.reference(sample.inputs, sample.attrs)
        assert got.shape == want.shape and got.dtype == want.dtype
        if type_of(want).dtype.is_float:
            rtol = max(3e-5, float(ml_dtypes.finfo(want.dtype).eps))
            a, b = got.astype(np.float64), want.astype(np.float64)
            finite = np.abs(b[np.isfinite(b)]).max(initial=0.0)
            atol = 1e-5 * max(1.0, float(finite))
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=str(sample.attrs))
        else:  # what is interpolated or divided first may cross an integer
            slack = 1 if name in ("resize", "avg_pool2d", "quantize") else 0
            off = np.abs(got.astype(np.float64) - want.astype(np.float64))
            assert off.max(initial=0) <= slack, sample.attrs
    assert ".entry" in gpu_assembly(program)
