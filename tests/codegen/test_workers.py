"""Parts of a model in several processes: the same bytes for any number of them, and whatever happens to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.codegen import workers
from tilewright.codegen.llvm import to_object_and_assembly
from tilewright.codegen.module import emit_parts
from tilewright.codegen.optimise import assembly_of, machine_of
from tilewright.codegen.workers import Pool, default_jobs
from tilewright.errors import ToolchainError
from tilewright.pipeline import build

DATA = Path(__file__).resolve().parents[1] / "data"

CPU = workers.Cpu("x86_64-unknown-linux-gnu", "x86-64-v3", "")
PART = """target triple = "x86_64-unknown-linux-gnu"

define i32 @f{i}(i32 %a) {{
  %b = add i32 %a, {i}
  %c = mul i32 %b, %b
  ret i32 %c
}}
"""


def parts(n: int = 12) -> list[str]:
    return [PART.format(i=i) for i in range(n)]


def code(bitcode: list[bytes]) -> list[str]:
    """What the parts are: bitcode of the same part may list what LLVM knows in another order."""
    return [assembly_of(b, machine_of(CPU)) for b in bitcode]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are started for any work."""
    monkeypatch.setattr(workers, "WORTH", 1)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("jobs", [2, 3])
def test_same_bytes(jobs: int) -> None:
    program = build(DATA / "mlperftiny_dscnn_kws_fp32_randw.onnx", "x86-64-v3")
    alone = to_object_and_assembly(emit_parts(program.plan(), True), program.target, b"", 1)
    several = to_object_and_assembly(emit_parts(program.plan(), True), program.target, b"", jobs)
    assert alone == several


@pytest.mark.usefixtures("eager")
def test_results_in_order_and_children_end() -> None:
    with Pool(CPU, 1) as alone, Pool(CPU, 3) as pool:
        assert code(pool.optimise(parts())) == code(alone.optimise(parts()))
        assert len(pool._children) == 2
        assert code(pool.optimise(parts())) == code(
            alone.optimise(parts())
        )  # the same children again
        assert len(pool._children) == 2
        module = pool.optimise(parts(1))[0]
        assert pool.assembly(module)() == alone.assembly(module)()
    assert all(c.process.returncode is not None for c in pool._children)


@pytest.mark.usefixtures("eager")
def test_a_child_that_dies_costs_only_time() -> None:
    def killing(pool: Pool) -> Iterator[str]:
        for i, part in enumerate(parts()):
            if i == 4:
                for child in pool._children:
                    child.process.kill()
                    child.process.wait()
            yield part

    with Pool(CPU, 1) as alone, Pool(CPU, 3) as pool:
        assert code(pool.optimise(killing(pool))) == code(alone.optimise(parts()))
        module = alone.optimise(parts(1))[0]
        assert pool.assembly(module)() == alone.assembly(module)()


@pytest.mark.usefixtures("eager")
def test_children_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.sys, "executable", "/nowhere/python")
    with Pool(CPU, 1) as alone, Pool(CPU, 3) as pool:
        assert code(pool.optimise(parts())) == code(alone.optimise(parts()))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("jobs", [1, 3])
def test_what_llvm_refuses_is_said(jobs: int) -> None:
    wrong = [*parts(), "define i32 @broken() { ret i64 0 }", *parts(2)]
    with Pool(CPU, jobs) as pool, pytest.raises(ToolchainError, match="LLVM rejected"):
        pool.optimise(wrong)


def test_jobs_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_JOBS", "5")
    assert default_jobs() == 5
    monkeypatch.setenv("TILEWRIGHT_JOBS", "many")
    assert default_jobs() >= 1
