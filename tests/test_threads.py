"""Which steps get threads: enough work in the step, and in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilewright
from tilewright.artifact.toolchain import find_compiler
from tilewright.bench.inputs import make_inputs
from tilewright.pipeline import build
from tilewright.program import Step
from tilewright.schedule.target import load_target
from tilewright.threads import MIN_THREADED_CYCLES, threads_that_pay

DATA = Path(__file__).resolve().parent / "data"
TARGET = load_target("x86-64-v3")
#: Operations of a step that is just worth it.
WORTH = int(MIN_THREADED_CYCLES * 2 * TARGET.fma_per_cycle * TARGET.lanes(4))


def step(flops: int, bytes_: int = 0, shares: bool = True) -> Step:
    return Step("s", "k", "op", (), flops, bytes_, (), (), 8 if shares else 1, shares)


def decided(*steps: Step) -> list[bool]:
    return [s.threaded for s in threads_that_pay(steps, TARGET)]


def test_small_steps_stay_on_one_thread() -> None:
    large = step(8 * WORTH)
    assert decided(large, step(WORTH - 8), step(WORTH), step(0, 10 << 20)) == [
        True,
        False,
        True,
        True,
    ]
    assert decided(large, step(8 * WORTH, shares=False)) == [True, False]


def test_small_models_stay_on_one_thread() -> None:
    assert decided(step(WORTH), step(WORTH)) == [False, False]
    assert decided(*[step(WORTH)] * 8) == [True] * 8
    assert decided() == []


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("mlperftiny_dscnn_kws_fp32_randw", False),
        ("mlperftiny_autoencoder_ad_fp32_randw", False),
        ("mlperftiny_resnet8_ic_fp32_randw", True),
    ],
)
def test_real_models(name: str, some: bool) -> None:
    program = build(DATA / f"{name}.onnx", "x86-64-v3")
    assert any(s.threaded for s in program.steps) == some


def test_results_do_not_depend_on_threads() -> None:
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    path = DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx"
    one, three = (tilewright.compile(path, threads=n) for n in (1, 3))
    inputs = make_inputs(one.inputs, one.program.graph, 0)
    expected = one(*inputs)
    for _ in range(50):
        for a, b in zip(expected, three(*inputs), strict=True):
            assert np.array_equal(a, b)
