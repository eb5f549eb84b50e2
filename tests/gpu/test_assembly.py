"""Every kernel of a model assembles for every GPU, and none spills."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.codegen.ptxas import find_ptxas
from tilewright.gpu import generate_gpu
from tilewright.loop.ir import For, Kernel
from tilewright.loop.rewrite import walk
from tilewright.pipeline import Source, build

DATA = Path(__file__).parents[1] / "data"
TARGETS = ("cuda-sm75", "cuda-sm80", "cuda-sm87", "cuda-sm90")

pytestmark = pytest.mark.skipif(
    find_ptxas() is None, reason="no ptxas: install CUDA or `pip install 'tilewright[cuda]'`"
)


def spread(kernel: Kernel) -> bool:
    """Whether no loop that was cut for a grid of blocks was left to a single block."""
    return not any(
        isinstance(s, For) and s.kind == "serial" and re.fullmatch(r"block\d+", s.var)
        for s in walk(kernel.body)
    )


def _assembles(source: Source, target: str, **options: object) -> None:
    program = build(source, target, options.get("shapes"), name="m")  # type: ignore[arg-type]
    code = generate_gpu(program)
    assert code.image.cubin.startswith(b"\x7fELF")
    assert [r.name for r in code.reports] == [k.name for k in program.kernels]
    gpu = program.target.gpu
    assert gpu is not None
    alone = [k for k in program.kernels if len(k.body) == 1 and not spread(k)]
    assert not alone, f"{alone[0].name} runs in one block"
    for r in code.reports:
        assert 0 < r.registers <= gpu.registers_thread, r
        assert r.spill_bytes == 0, f"{r.name} spills {r.spill_bytes} bytes"
        assert 0 < r.threads <= gpu.threads_block and r.shared_bytes <= gpu.shared_block, r
        assert r.occupancy > 0, r


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["fp32_randw", "int8_qdq"])
def test_small_models(kind: str, target: str) -> None:
    _assembles(DATA / f"mlperftiny_dscnn_kws_{kind}.onnx", target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda-sm80", "cuda-sm87", "cuda-sm90"])
@pytest.mark.parametrize("name", list(zoo()))
def test_zoo(name: str, target: str) -> None:
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    _assembles(path, target, shapes=zoo()[name].shapes)
