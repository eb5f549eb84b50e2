"""The PTX itself, run by a machine that knows the PTX ISA and nothing of the compiler.

It computes, bit by bit, what the interpreter of threads makes of the loop IR, without a misaligned access, and
without two threads that meet between barriers.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from gpu_cases import OPERATORS, PRODUCT
from gpu_helpers import executed
from ptx_machine import Machine
from ptx_memory import PtxError

from tilewright.codegen.cuda import emit_cuda, launch_of
from tilewright.codegen.llvm import to_assembly
from tilewright.loop.parse import parse
from tilewright.schedule.target import load_target

DATA = Path(__file__).parents[1] / "data"
TARGET = load_target("cuda-sm80")
QUICK = (
    "matmul-f16",
    "matmul-f16-ragged",
    "matmul-u8-i8",
    "matmul-tf32",
    "conv-f16-stride",
    "conv-i8",
)
#: Those of the zoo are in `test_zoo`.
MODELS = ["autoencoder_ad_fp32_randw", "dscnn_kws_fp32_randw"]


def _product() -> tuple[str, list[tuple[np.ndarray, bool]]]:  # type: ignore[type-arg]
    kernel = parse(PRODUCT)
    ptx = to_assembly(emit_cuda([kernel], TARGET, {"product": [16, 16, 16]}), TARGET)
    rng = np.random.default_rng(0)
    data = [rng.integers(-4, 5, (32, 32)).astype(np.float32) for _ in range(2)]
    return ptx, [(data[0], True), (data[1], True), (np.zeros((32, 32), np.float32), False)]


def _run(ptx: str, arrays: list[tuple[np.ndarray, bool]]) -> None:  # type: ignore[type-arg]
    launch = launch_of(parse(PRODUCT))
    Machine(ptx, "product").run(range(launch.blocks), launch.threads, arrays, launch.blocks)


def test_a_product() -> None:
    ptx, arrays = _product()
    _run(ptx, arrays)
    np.testing.assert_array_equal(arrays[2][0], arrays[0][0] @ arrays[1][0])


@pytest.mark.parametrize("which", [0, 1])
def test_every_barrier_is_needed(which: int) -> None:
    """The machine finds what happens without one."""
    ptx, arrays = _product()
    places = [m.span() for m in re.finditer(r"\tbar\.sync \t0;\n", ptx)]
    assert len(places) == 2
    start, end = places[which]
    with pytest.raises(PtxError, match="another thread"):
        _run(ptx[:start] + ptx[end:], arrays)


def test_misaligned_accesses_are_found() -> None:
    ptx, arrays = _product()
    wide = re.search(r"st\.global\.v2\.b32 \t\[(%rd\d+)", ptx)
    assert wide is not None
    with pytest.raises(PtxError, match="not aligned"):
        _run(ptx.replace(f"[{wide.group(1)}]", f"[{wide.group(1)}+4]"), arrays)


def test_accesses_outside_are_found() -> None:
    ptx, arrays = _product()
    with pytest.raises(PtxError, match="is outside its"):
        _run(ptx, [arrays[0], (arrays[1][0][:16].copy(), True), arrays[2]])


def test_inputs_are_not_written() -> None:
    ptx, arrays = _product()
    with pytest.raises(PtxError, match="is an input"):
        _run(ptx, [*arrays[:2], (arrays[2][0], True)])


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OPERATORS]
)
def test_tensor_cores(name: str) -> None:
    graph, target, error = OPERATORS[name]
    assert executed(graph, target, 2, error)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    assert executed(DATA / f"mlperftiny_{name}.onnx", "cuda-sm80", 2) >= 5
