"""Every operator on every emulated board: all samples of an operator are one program."""

from __future__ import annotations

import importlib.util
import shutil

import ml_dtypes
import numpy as np
import pytest
from sample_graphs import program_of

from tilewright.device.qemu_system import EMULATOR, run_on_board
from tilewright.graph.ir import type_of
from tilewright.pipeline import build
from tilewright.registry import Sample, operator, operators

BOARDS = ("cortex-m4", "cortex-m7", "cortex-m55")
NAMES = sorted(n for n, op in operators().items() if op.samples is not None)
needs_board = pytest.mark.skipif(
    not shutil.which(EMULATOR)
    or not (shutil.which("arm-none-eabi-gcc") or importlib.util.find_spec("ziglang")),
    reason=f"{EMULATOR} or a linker for bare-metal Arm is not installed",
)


def usable(sample: Sample) -> bool:
    """Doubles need C's `fma` on these cores, which bare metal does not have."""
    return np.dtype("f8") not in {a.dtype for a in sample.inputs if a is not None}


def without_denormals(sample: Sample) -> Sample:
    """Helium takes numbers too small for a normal exponent for zero."""
    tiny = np.finfo(np.float32).tiny
    return Sample(
        tuple(
            np.where(np.abs(a) < tiny, np.copysign(np.float32(0), a), a)
            if a is not None and a.dtype == np.float32
            else a
            for a in sample.inputs
        ),
        sample.attrs,
    )


@pytest.mark.slow
@needs_board
@pytest.mark.parametrize("target", BOARDS)
@pytest.mark.parametrize("name", NAMES)
def test_operator(name: str, target: str) -> None:
    op = operator(name)
    assert op.samples is not None
    samples = [
        s for s in op.samples(np.random.default_rng(1)) if usable(s) and s.inputs[0] is not None
    ]
    if target == "cortex-m55":
        samples = [without_denormals(s) for s in samples]
    if not samples:
        pytest.skip(f"{name} has samples of doubles only")
    graph, inputs = program_of(name, samples)
    outputs = run_on_board(build(graph, target), inputs).outputs
    for got, sample in zip(outputs, samples, strict=True):
        with np.errstate(all="ignore"):
            (want,) = op.reference(sample.inputs, sample.attrs)
        assert got.shape == want.shape and got.dtype == want.dtype
        if type_of(want).dtype.is_float:
            rtol = max(3e-5, float(ml_dtypes.finfo(want.dtype).eps))
            got, want = got.astype(np.float64), want.astype(np.float64)
            finite = np.abs(want[np.isfinite(want)]).max(initial=0.0)
            atol = 1e-5 * max(1.0, float(finite))
            np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=str(sample.attrs))
        else:  # what is interpolated or divided first may cross an integer
            slack = 1 if name in ("resize", "avg_pool2d", "quantize") else 0
            off = np.abs(got.astype(np.float64) - want.astype(np.float64))
            assert off.max(initial=0) <= slack, sample.attrs
