"""Every kernel of a model assembles for every GPU, and none spills (the zoo: `test_zoo`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.codegen.ptxas import find_ptxas
from tilewright.gpu import generate_gpu
from tilewright.pipeline import Source, build

DATA = Path(__file__).parents[1] / "data"
TARGETS = ("cuda-sm75", "cuda-sm80", "cuda-sm87", "cuda-sm90")

pytestmark = pytest.mark.skipif(
    find_ptxas() is None, reason="no ptxas: install CUDA or `pip install 'tilewright[cuda]'`"
)


def _assembles(source: Source, target: str) -> None:
    program = build(source, target, name="m")
    code = generate_gpu(program)
    assert code.image.cubin.startswith(b"\x7fELF")
    assert [r.name for r in code.reports] == [k.name for k in program.kernels]
    gpu = program.target.gpu
    assert gpu is not None
    assert not any("one block" in reason for reason in program.reasons.values())
    for r in code.reports:
        assert 0 < r.registers <= gpu.registers_thread, r
        assert r.spill_bytes == 0, f"{r.name} spills {r.spill_bytes} bytes"
        assert 0 < r.threads <= gpu.threads_block and r.shared_bytes <= gpu.shared_block, r
        assert r.occupancy > 0, r


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["fp32_randw", "int8_qdq"])
def test_small_models(kind: str, target: str) -> None:
    _assembles(DATA / f"mlperftiny_dscnn_kws_{kind}.onnx", target)
