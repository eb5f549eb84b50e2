"""Host code of CUDA artifacts, run against a stand-in for the driver (fake_cuda.c) that records calls.

What is checked: order of calls, launches and their arguments, graph capture and doing without, every
failure: its message, and that nothing is held afterwards.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.artifact.toolchain import Compiler, find_compiler
from tilewright.artifact.verify import verify_artifact
from tilewright.cli import main
from tilewright.codegen.ptxas import find_ptxas
from tilewright.errors import ArtifactError, TargetError
from tilewright.graph.ir import Graph
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.runtime.cuda import has_driver

FAKE = Path(__file__).with_name("fake_cuda.c")
WARNINGS = (
    "-std=c11",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Werror",
)
#: Calls that a run can do without.
GRAPH = {
    "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy",
    "cuGraphExecDestroy",
}  # fmt: skip
#: Calls that clean up: nobody is told when they fail.
CLEANUP = {
    "cuMemFree_v2", "cuModuleUnload", "cuStreamDestroy_v2", "cuCtxPopCurrent_v2",
    "cuDevicePrimaryCtxRelease_v2",
}  # fmt: skip


def _graph() -> Graph:
    """Two products with a normalisation between them: several kernels, weights and an arena."""
    b = Builder(x=(4, 8))
    rng = np.random.default_rng(0)
    w = b.const("w", rng.standard_normal((8, 8)).astype(np.float32))
    v = b.const("v", rng.standard_normal((8, 3)).astype(np.float32))
    b.node("matmul", "y", "x", w)
    b.node("softmax", "p", "y", axis=1)
    b.node("matmul", "z", "p", v)
    return b.done("z")


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    found = find_compiler()
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


@pytest.fixture(scope="module")
def program() -> Program:
    return build(_graph(), "cuda-sm80", name="small")


@pytest.fixture(scope="module")
def artifact(
    compiler: Compiler, program: Program, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "small"
    api.write(program, folder)
    return folder


@pytest.fixture(scope="module")
def executable(compiler: Compiler, artifact: Path) -> Path:
    """The example, built without a warning."""
    out = artifact.parent / "example"
    sources = ["example.c", "small.c", "small_data.S"]
    compiler.run([*WARNINGS, *sources, "-o", str(out), "-ldl"], artifact)
    return out


def _fake(compiler: Compiler, folder: Path, *flags: str) -> Path:
    folder.mkdir()
    command = [*WARNINGS, *flags, "-fPIC", "-shared", str(FAKE), "-o", "libcuda.so.1"]
    compiler.run(command, folder)
    return folder


@pytest.fixture(scope="module")
def driver(compiler: Compiler, artifact: Path) -> Path:
    return _fake(compiler, artifact.parent / "driver")


class Run:
    """One run of the example, and what the stand-in wrote down."""

    def __init__(
        self, executable: Path, program: Program, driver: Path | None, folder: Path, **fake: str
    ) -> None:
        log = folder / "log"
        log.unlink(missing_ok=True)
        counts = "".join(str(len(k.params)) for k in program.kernels)
        settings = {f"FAKE_CUDA_{k}": v for k, v in fake.items()}
        settings |= {"FAKE_CUDA_LOG": str(log), "FAKE_CUDA_ARGUMENTS": counts}
        if driver is not None:
            settings["LD_LIBRARY_PATH"] = str(driver)
        done = subprocess.run(
            [executable], env={**os.environ, **settings}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        self.code, self.error = done.returncode, done.stderr
        self.log = log.read_text().splitlines() if log.exists() else []
        self.calls = [s for s in self.log if s.startswith("cu")]
        self.launches = [s for s in self.log if s.startswith("launch ")]
        self.leaks = [s for s in self.log if s.startswith("leak ")]


def test_order_of_calls(executable: Path, program: Program, driver: Path, tmp_path: Path) -> None:
    run = Run(executable, program, driver, tmp_path)
    assert (run.code, run.leaks) == (0, []), run.error
    kernels, steps = len(program.kernels), len(program.steps)
    begin = [
        "cuInit", "cuDeviceGetCount", "cuDeviceGet", *["cuDeviceGetAttribute"] * 2,
        "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuStreamCreate",
        f"cuModuleLoadData {'cubin' if find_ptxas() else 'ptx'}", *["cuModuleGetFunction"] * kernels,
        *["cuMemAlloc_v2"] * 4, "cuMemcpyAsync", "cuStreamSynchronize",
        "cuStreamBeginCapture_v2", *["cuLaunchKernel"] * steps, "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags", "cuGraphDestroy", "cuCtxPopCurrent_v2",
    ]  # fmt: skip
    once = [
        "cuCtxPushCurrent_v2", "cuMemcpyAsync", "cuGraphLaunch", "cuMemcpyAsync",
        "cuStreamSynchronize", "cuCtxPopCurrent_v2",
    ]  # fmt: skip
    end = [
        "cuCtxPushCurrent_v2", "cuStreamSynchronize", "cuGraphExecDestroy", *["cuMemFree_v2"] * 4,
        "cuModuleUnload", "cuStreamDestroy_v2", "cuCtxPopCurrent_v2",
        "cuDevicePrimaryCtxRelease_v2",
    ]  # fmt: skip
    assert run.calls == [*begin, *once * 100, *end]


def test_launches(executable: Path, program: Program, driver: Path, tmp_path: Path) -> None:
    """Each step's grid, block and arguments: weights are block 0 of the memory, then arena, x, output."""
    run = Run(executable, program, driver, tmp_path)
    code = api.generate(program).gpu
    assert code is not None
    calls = zip(program.steps, code.image.launches, strict=True)
    bases = {"weights": 0, "arena": 1, "input": 2, "output": 3}
    assert run.launches == [
        " ".join([
            f"launch {s.kernel} {c.blocks} {c.threads}",
            *(f"{bases[p.base] + p.number}+{p.offset}" for p in s.places),
        ])
        for s, c in calls
    ]  # fmt: skip


def test_without_graphs(
    executable: Path, program: Program, compiler: Compiler, tmp_path: Path
) -> None:
    run = Run(executable, program, _fake(compiler, tmp_path / "d", "-DNO_GRAPHS"), tmp_path)
    assert (run.code, run.leaks) == (0, []), run.error
    assert len(run.launches) == 100 * len(program.steps)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_a_graph_that_fails_only_costs_time(
    executable: Path, program: Program, driver: Path, tmp_path: Path, name: str
) -> None:
    run = Run(executable, program, driver, tmp_path, FAIL=f"{name}:0")
    assert run.code == 0, run.error
    captured = name in ("cuGraphDestroy", "cuGraphExecDestroy")
    assert Counter(run.calls)["cuGraphLaunch"] == (100 if captured else 0)


def test_failures(executable: Path, program: Program, driver: Path, tmp_path: Path) -> None:
    """Whatever call fails first, the program ends with its name and holds nothing."""
    good = Run(executable, program, driver, tmp_path)
    capture = good.calls.index("cuStreamBeginCapture_v2")
    setting_up = Counter(good.calls[:capture])
    for call, count in setting_up.items():
        if call.startswith("cuModuleLoadData"):
            continue
        for n in range(count):
            run = Run(executable, program, driver, tmp_path, FAIL=f"{call}:{n}")
            assert run.code == 1 and run.leaks == [], (call, n, run.error)
            shown = re.sub(r"_v\d$", "", call)
            assert run.error == f"small: {shown} failed: told to fail (CUDA error 2)\n"
    for call in set(good.calls[good.calls.index("cuGraphLaunch") - 2 :]) - GRAPH - CLEANUP:
        run = Run(executable, program, driver, tmp_path, FAIL=f"{call}:{setting_up[call]}")
        assert run.code == 1 and run.leaks == [], (call, run.error)


def test_ptx_where_machine_code_does_not_fit(
    executable: Path, program: Program, driver: Path, tmp_path: Path
) -> None:
    if find_ptxas() is None:
        pytest.skip("no ptxas: the artifact has no machine code (pip install 'tilewright[cuda]')")
    settings = {"FAIL": "cuModuleLoadData cubin:0"}
    run = Run(executable, program, driver, tmp_path, **settings)
    assert run.code == 0, run.error
    assert run.calls.count("cuModuleLoadData ptx") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"CAPABILITY": "75"}, "the GPU has compute capability 7.5, small was compiled for 8.0"),
        ({"DEVICES": "0"}, "there is no CUDA device 0: the driver knows 0"),
    ],
)
def test_unfit_devices(
    executable: Path, program: Program, driver: Path, tmp_path: Path,
    settings: dict[str, str], message: str,
) -> None:  # fmt: skip
    run = Run(executable, program, driver, tmp_path, **settings)
    assert (run.code, run.error, run.leaks) == (1, f"small: {message}\n", [])


def test_no_driver(executable: Path, program: Program, tmp_path: Path) -> None:
    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    run = Run(executable, program, None, tmp_path)
    assert run.code == 1
    assert "no CUDA driver (libcuda.so.1) found" in run.error


# ---------------------------------------------------------------- from Python


def test_load_without_a_gpu(artifact: Path) -> None:
    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    with pytest.raises(ArtifactError, match=r"no CUDA driver \(libcuda.so.1\) found"):
        api.load(artifact)
    with pytest.raises(TargetError, match="there is no GPU"):
        api.compile(_graph(), "cuda-sm80")


def test_load_with_a_driver(artifact: Path, driver: Path, program: Program) -> None:
    """The stand-in's kernels copy one number from their first tensor to their last: it arrives."""
    code = (
        "import sys, numpy as np; from tilewright import api; m = api.load(sys.argv[1])\n"
        "x = np.full((4, 8), 7.5, np.float32)\n"
        "print(m(x)[0].shape, m(x)[0][0, 0], m.spec.target)"
    )
    counts = "".join(str(len(k.params)) for k in program.kernels)
    settings = {"LD_LIBRARY_PATH": str(driver), "FAKE_CUDA_ARGUMENTS": counts}
    done = subprocess.run(
        [sys.executable, "-c", code, artifact], env={**os.environ, **settings}, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "(4, 3) 7.5 cuda-sm80\n", done.stderr


def test_artifact_is_sound(artifact: Path, program: Program) -> None:
    assert verify_artifact(artifact) == []
    facts = json.loads((artifact / "manifest.json").read_text())
    assert facts["target"]["triple"] == "nvptx64-nvidia-cuda"
    if find_ptxas() is not None:
        assert [k["name"] for k in facts["kernels"]] == [k.name for k in program.kernels]
        assert all(k["registers"] > 0 and 0 < k["occupancy"] <= 1 for k in facts["kernels"])


def test_only_ptx_without_ptxas(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.codegen.ptxas.find_ptxas", lambda: None)
    written = api.write(program, tmp_path / "out")
    assert "small.ptx" in written.files and "small.cubin" not in written.files
    assert any("ptxas was not found" in n for n in written.notes)
    assert verify_artifact(tmp_path / "out") == []


def test_the_command_line_says_that_there_is_no_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    model = Path(__file__).parents[1] / "data" / "mlperftiny_dscnn_kws_fp32_randw.onnx"
    with pytest.raises(SystemExit) as end:
        main(["run", str(model), "--target", "cuda-sm80"])
    assert end.value.code == 1
    assert "there is no GPU" in capfd.readouterr().err
