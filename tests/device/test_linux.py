"""Linux devices: programs here, under qemu-user and over ssh; what goes wrong there, and says so."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_helpers import Builder
from ssh_server import Server

from tilewright import api
from tilewright.artifact.toolchain import find_compiler
from tilewright.bench.inputs import make_inputs
from tilewright.bench.verify import Verifier, relative_error
from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.cli import main
from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import F32, I8
from tilewright.device.base import Device
from tilewright.device.choose import device_for
from tilewright.device.count import counting_options
from tilewright.device.link import Unit, unit_of
from tilewright.device.linux import LinuxProgram, run_on_linux
from tilewright.device.linux_model import LinuxArtifact, LinuxModel
from tilewright.device.local import LocalDevice
from tilewright.device.measure import measure
from tilewright.errors import TargetError, ToolchainError
from tilewright.graph.ir import Array
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.schedule.target import load_target

DATA = Path(__file__).resolve().parents[1] / "data"
SMALL = DATA / "mlperftiny_dscnn_kws_fp32_randw.onnx"
CORES = ("cortex-a53", "cortex-a72", "cortex-a76", "armv8.6-i8mm")
TOLERANCE = 1e-4

_CROSS = shutil.which("aarch64-linux-gnu-gcc")
_ZIG = importlib.util.find_spec("ziglang") is not None
needs_qemu = pytest.mark.skipif(
    not shutil.which("qemu-aarch64") or not (_CROSS or _ZIG),
    reason="qemu-aarch64 or a cross compiler is not installed (apt: qemu-user gcc-aarch64-linux-gnu)",
)
needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="cc is not installed")


def inputs_of(program: Program, seed: int = 0) -> list[Array]:
    model = api.spec_of(program)
    return make_inputs(model.inputs, program.graph, seed)


def same_as_here(path: Path, target: str, shapes: object = None) -> None:
    """A model gives the same outputs on `target` as on this machine."""
    here = api.compile(path, shapes=shapes)
    there = api.compile(path, target, shapes)
    inputs = make_inputs(here.inputs, here.program.graph, seed=0)
    for mine, theirs in zip(here(*inputs), there(*inputs), strict=True):
        assert relative_error(theirs, mine) <= TOLERANCE
    there.close()


def status(arguments: list[str]) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


# ---------------------------------------------------------------- the same results


@needs_qemu
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("kind", ["fp32_randw", "int8_qdq"])
def test_every_core_gives_the_same(core: str, kind: str) -> None:
    same_as_here(DATA / f"mlperftiny_dscnn_kws_{kind}.onnx", core)


@needs_qemu
@pytest.mark.parametrize("name", ["mobilenetv1_025_vww", "resnet8_ic", "autoencoder_ad"])
def test_models(name: str) -> None:
    same_as_here(DATA / f"mlperftiny_{name}_fp32_randw.onnx", "cortex-a76")


@needs_qemu
@pytest.mark.parametrize("channels", [1, 3, 6, 7, 13])
def test_parts_of_vectors(channels: int) -> None:
    """Whatever is left of a vector goes to memory in powers of two; int8 tensors sum exactly."""
    rng = np.random.default_rng(channels)
    for dtype, kind in ((F32, np.float32), (I8, np.int8)):
        b = Builder()
        b.input("x", (1, 16, 9, 9), dtype)
        weight = rng.integers(-9, 9, (channels, 16, 3, 3)).astype(kind)
        b.graph.add_constant("w", weight)
        b.conv("y", "x", "w", pads=(1, 1, 1, 1))
        graph = b.done("y")
        x = rng.integers(-99, 99, (1, 16, 9, 9)).astype(kind)
        # Winograd's transforms round, sums of products of whole numbers do not
        there = api.compile(graph, "cortex-a76", winograd=False)
        here = api.compile(graph, winograd=False)
        np.testing.assert_array_equal(there(x)[0], here(x)[0])


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo()))
def test_zoo_from_shared_libraries(name: str, tmp_path: Path) -> None:
    """The .so that this machine writes gives on an emulated Cortex-A76 what this machine gives."""
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    shapes = zoo()[name].shapes
    here = api.compile(path, shapes=shapes)
    api.write(build(path, "cortex-a76", shapes), tmp_path)
    inputs = make_inputs(here.inputs, here.program.graph, seed=0)
    there = api.load(tmp_path, device="emulator")
    assert isinstance(there, LinuxArtifact)
    for mine, theirs in zip(here(*inputs), there(*inputs), strict=True):
        assert relative_error(theirs, mine) <= TOLERANCE


@needs_qemu
def test_commands_run_on_the_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["run", str(SMALL), "--target", "cortex-a76"]) == 0
    assert "instructions on `qemu-aarch64 -cpu cortex-a76` (emulated)" in capsys.readouterr().out
    assert status(["verify", str(SMALL), "--target", "cortex-a76", "--seeds", "1"]) == 0
    assert status(["compile", str(SMALL), "--target", "cortex-a76", "-o", str(tmp_path / "a")]) == 0
    assert status(["run", str(tmp_path / "a"), "--device", "emulator"]) == 0
    assert status(["run", str(tmp_path / "a")]) == 1
    assert "this machine is" in capsys.readouterr().err


@needs_qemu
@pytest.mark.slow
@pytest.mark.skipif(not _ZIG, reason="ziglang is not installed (pip: tilewright[cross])")
def test_zig_alone_builds_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "qemu-aarch64").symlink_to(shutil.which("qemu-aarch64") or "")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CC", raising=False)
    program = build(SMALL, "cortex-a76")
    written = api.write(program, tmp_path / "artifact")
    assert f"{program.name}.so" in written.files and not written.notes
    inputs = inputs_of(program)
    (expected,) = api.compile(SMALL)(*inputs)
    (got,) = api.load(tmp_path / "artifact", device="emulator")(*inputs)
    assert relative_error(got, expected) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("qemu-riscv64") or not _ZIG,
    reason="qemu-riscv64 or ziglang is not installed (apt: qemu-user, pip: tilewright[cross])",
)
@pytest.mark.parametrize("kind", ["fp32_randw", "int8_qdq"])
def test_riscv(kind: str) -> None:
    same_as_here(DATA / f"mlperftiny_resnet8_ic_{kind}.onnx", "riscv64-v")


def test_riscv_code_has_vectors() -> None:
    program = build(SMALL, "riscv64-v")
    assert "vfmadd" in api.assembly(program) or "vfmacc" in api.assembly(program)


# ---------------------------------------------------------------- over ssh


@needs_cc
def test_ssh(ssh_device: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """compile(device=...), run and verify over ssh give what this process gives; nothing stays there."""
    here, there = api.compile(SMALL), api.compile(SMALL, device=ssh_device.url)
    assert isinstance(there, LinuxModel)
    for seed in (0, 1):
        inputs = inputs_of(here.program, seed)
        assert there(*inputs)[0].tobytes() == here(*inputs)[0].tobytes()
    timed = there.measure(inputs, 5)
    assert 0 < timed.least <= timed.median and timed.instructions is None
    assert "x86_64" in there.device.describe() or "aarch64" in there.device.describe()
    assert list(ssh_device.folder.glob("tilewright-*"))
    there.close()
    assert not list(ssh_device.folder.glob("tilewright-*"))
    assert status(["verify", str(SMALL), "--seeds", "1", "--device", ssh_device.url]) == 0
    assert status(["run", str(SMALL), "--device", ssh_device.url]) == 0
    assert "least of 10), median" in capsys.readouterr().out


@needs_cc
def test_artifact_over_ssh(ssh_device: Server, tmp_path: Path) -> None:
    here = api.compile(SMALL)
    here.save(tmp_path)
    inputs = inputs_of(here.program)
    there = api.load(tmp_path, device=ssh_device.url)
    assert there(*inputs)[0].tobytes() == here(*inputs)[0].tobytes()


@needs_cc
def test_candidates_over_ssh(ssh_device: Server, tmp_path: Path) -> None:
    """A crash on the other side is found there, and the others are measured."""
    program = build(SMALL)
    units = [unit_of(program), crashing(program, tmp_path)]
    good, bad = measure(units, inputs_of(program), program.target, ssh_device.url, rounds=3)
    assert good.least > 0 and not good.error and bad.error


@needs_cc
@pytest.mark.skipif(not shutil.which("timeout"), reason="timeout is not installed")
def test_nothing_runs_on_over_there(ssh_device: Server) -> None:
    program = build(SMALL)
    device = device_for(program.target, ssh_device.url)
    with (
        LinuxProgram([unit_of(program)], program.target.triple, device) as linked,
        pytest.raises(TargetError, match=r"did not finish within 1 s"),
    ):
        linked.run([inputs_of(program)], rounds=1000000, timeout=1)
    here = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _says(p, b"./models\x001000000")]
    assert not here


def _says(file: Path, text: bytes) -> bool:
    try:
        return text in file.read_bytes()
    except OSError:
        return False


def test_ssh_refuses(ssh_device: Server) -> None:
    target = load_target("cortex-a76")
    here = replace(target, triple="x86_64-unknown-linux-gnu")
    if not runs_here(target):
        with pytest.raises(TargetError, match="is x86_64, the code for cortex-a76 is aarch64"):
            device_for(target, ssh_device.url)
    with pytest.raises(TargetError, match=r"cannot be reached: .*refused"):
        device_for(here, "ssh://127.0.0.1:9")
    missing = f"{ssh_device.url}/missing"
    with pytest.raises(TargetError, match=r"cannot be used: .*missing"):
        device_for(here, missing).install(Path(shutil.which("true") or ""))


@pytest.mark.parametrize(
    "address", ["foo", "ssh://", "ssh://a:b", "http://host", "ssh://-oProxyCommand=x", "ssh://h?q"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(TargetError, match="is not"):
        device_for(load_target("x86-64-v3"), address)


def test_missing_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("TILEWRIGHT_SSH", raising=False)
    target = load_target("cortex-a76")
    with pytest.raises(ToolchainError, match="apt-get install openssh-client"):
        device_for(target, "ssh://board")
    if not runs_here(target):
        with pytest.raises(ToolchainError, match="`qemu-aarch64` is not installed: apt-get"):
            device_for(target)
        with pytest.raises(TargetError, match="names no emulator: name a machine"):
            device_for(replace(target, emulator=()))
        with pytest.raises(TargetError, match="cannot run on this machine"):
            device_for(target, "local")


def test_boards_are_no_linux_devices() -> None:
    with pytest.raises(TargetError, match="has no operating system"):
        device_for(load_target("cortex-m4"))
    with pytest.raises(TargetError, match="runs in QEMU only"):
        api.remote(build(DATA / "mlperftiny_dscnn_kws_int8_qdq.onnx", "cortex-m4"), "ssh://board")


@needs_qemu
def test_threads_of_a_device(tmp_path: Path) -> None:
    """Layers large enough for threads, cut into shares by the pool of artifacts, give what one thread gives."""
    path = DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx"
    alone = api.compile(path, "cortex-a76")
    assert any(s.threaded for s in alone.program.steps)
    inputs = inputs_of(alone.program)
    shared = api.compile(path, "cortex-a76", threads=3)
    assert isinstance(shared, LinuxModel) and shared.threads == 3
    np.testing.assert_array_equal(shared(*inputs)[0], alone(*inputs)[0])
    shared.close()
    alone.save(tmp_path / "artifact")
    there = api.load(tmp_path / "artifact", threads=2, device="emulator")
    np.testing.assert_array_equal(there(*inputs)[0], alone(*inputs)[0])


def test_threads_of_a_process_here() -> None:
    program = build(DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx")
    inputs = inputs_of(program)
    with LinuxProgram([unit_of(program)], program.target.triple, LocalDevice(), 2) as linked:
        (run,) = linked.run([inputs], rounds=3)
    assert not run.error and run.least > 0
    (want,) = run_on_linux(program, inputs, "local").outputs
    np.testing.assert_array_equal(run.outputs[0], want)


@pytest.mark.parametrize("target", ["cortex-m4", "cuda-sm80"])
def test_what_takes_no_threads(target: str) -> None:
    with pytest.raises(TargetError, match="takes no threads of ours: use threads=1"):
        api.compile(SMALL, target, threads=2, device="emulator")


# ---------------------------------------------------------------- candidates


def crashing(program: Program, folder: Path) -> Unit:
    """A candidate with the interface of `program` whose code breaks off."""
    compiler = find_compiler(program.target.triple)
    assert compiler is not None
    (folder / "crash.c").write_text("int crash_run(void) { __builtin_trap(); }")
    compiler.run(["-c", "crash.c", "-o", "crash.o"], folder)
    return Unit(replace(api.spec_of(program), name="crash"), (folder / "crash.o").read_bytes())


@needs_cc
def test_a_crash_is_the_candidate_s_own(tmp_path: Path) -> None:
    program = build(SMALL)
    units = [crashing(program, tmp_path), unit_of(program)]
    with LinuxProgram(units, program.target.triple, LocalDevice()) as linked:
        bad, good = linked.run([inputs_of(program)], rounds=2)
    assert "stopped with code 13" in bad.error or "instruction that the CPU lacks" in bad.error
    assert not good.error and good.least > 0
    (expected,) = api.compile(SMALL)(*inputs_of(program))
    assert good.outputs[0].tobytes() == expected.tobytes()


@needs_cc
def test_a_cpu_that_lacks_something() -> None:
    program = build(SMALL)
    unit = unit_of(program)
    lacking = replace(unit, spec=replace(unit.spec, features=("sve2", "amx-fp8")))
    with LinuxProgram([lacking], program.target.triple, LocalDevice()) as linked:
        (run,) = linked.run([inputs_of(program)])
    assert run.error == "the CPU of this machine lacks some of sve2, amx-fp8"


@needs_qemu
def test_the_wrong_core_is_named() -> None:
    """A Cortex-A53 has no dot products of bytes."""
    program = build(SMALL, "cortex-a76")
    program.target = replace(program.target, emulator=("qemu-aarch64", "-cpu", "cortex-a53"))
    with pytest.raises(TargetError, match="lacks some of neon, dotprod, fullfp16"):
        run_on_linux(program, inputs_of(program))


@needs_cc
def test_a_program_without_end() -> None:
    program = build(SMALL)
    with (
        LinuxProgram([unit_of(program)], program.target.triple, LocalDevice()) as linked,
        pytest.raises(TargetError, match=r"did not finish within 0\.2 s"),
    ):
        linked.run([inputs_of(program)], rounds=100000, timeout=0.2)


@needs_qemu
def test_instructions_are_counted_alike_in_every_run() -> None:
    program = build(SMALL, "cortex-a76")
    if counting_options(program.target.emulator) is None:
        pytest.skip("this qemu-aarch64 takes no plugins")
    first, second = (
        measure([unit_of(program)], inputs_of(program), program.target)[0] for _ in "12"
    )
    assert first.instructions == second.instructions
    assert first.checksum == second.checksum
    macs = sum(s.flops for s in program.steps) / 2
    assert first.instructions is not None and macs / 8 < first.instructions < 4 * macs


def test_devices_keep_the_protocol() -> None:
    device: Device = LocalDevice()
    assert device.name == device.describe() == "this machine" and not device.emulated


@needs_qemu
def test_verifier_judges_whole_runs() -> None:
    model = api.compile(SMALL, "cortex-a72")
    report = Verifier(SMALL, model, TOLERANCE).verify(inputs_of(model.program))
    assert report.passed and report.layers == 0
    assert isinstance(model, LinuxModel) and np.isfinite(report.outputs[0].error)
