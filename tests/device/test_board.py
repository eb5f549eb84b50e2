"""Cortex-M: models on emulated boards, what they need of flash and RAM, artifacts for firmware."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tilewright import api
from tilewright.artifact import toolchain
from tilewright.artifact.elf import Elf
from tilewright.artifact.symbols import foreign_symbols
from tilewright.artifact.verify import verify_artifact
from tilewright.bench.inputs import make_inputs
from tilewright.bench.verify import Verifier
from tilewright.cli import main
from tilewright.codegen.stack import LIBRARY_BYTES, stack_bytes
from tilewright.device import qemu_system
from tilewright.device.board_model import BoardModel
from tilewright.device.machines import machine
from tilewright.device.qemu_system import EMULATOR, BoardRun, run_on_board
from tilewright.errors import ArtifactError, TargetError, ToolchainError
from tilewright.footprint import live_arena, require_fit
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.rebuild import check_rebuilt

DATA = Path(__file__).resolve().parents[1] / "data"
BOARDS = ("cortex-m4", "cortex-m7", "cortex-m55")
INT8 = sorted(DATA.glob("mlperftiny_*_int8_qdq.onnx"))
SMALL = DATA / "mlperftiny_dscnn_kws_int8_qdq.onnx"
#: What the issue promises: arena, inputs, outputs and stack of each MLPerf Tiny model in int8.
RAM_LIMIT = 192 << 10

_GCC = shutil.which("arm-none-eabi-gcc")
_ZIG = importlib.util.find_spec("ziglang") is not None
needs_gcc = pytest.mark.skipif(not _GCC, reason="arm-none-eabi-gcc is not installed")
needs_board = pytest.mark.skipif(
    not shutil.which(EMULATOR) or not (_GCC or _ZIG),
    reason=f"{EMULATOR} or a linker for bare-metal Arm is not installed",
)


def on_board_and_here(
    path: Path, target: str, arena: int | None = None
) -> tuple[Program, BoardRun]:
    """Run a model on a board; its outputs must be those of this machine, to the bit."""
    program = build(path, target, arena=arena)
    inputs = make_inputs(api.spec_of(program).inputs, program.graph, 0)
    run = run_on_board(program, inputs)
    for ours, theirs in zip(run.outputs, api.compile(path)(*inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return program, run


def check_footprint(program: Program, run: BoardRun) -> None:
    """The numbers of the footprint add up and hold for the run."""
    need = api.generate(program).need
    assert need is not None and need.ram < RAM_LIMIT
    assert sum(s.weights for s in need.steps) == need.weights
    assert 0 < sum(s.code for s in need.steps) <= need.code
    assert max(s.arena for s in need.steps) <= need.arena
    assert 0 < run.stack_bytes <= need.stack + 16  # and what the measurement itself takes
    assert run.instructions == pytest.approx(sum(run.steps), rel=0.02)


# ---------------------------------------------------------------- on the emulator


@needs_board
@pytest.mark.parametrize("target", BOARDS)
def test_int8_model_is_bit_equal(target: str) -> None:
    program, run = on_board_and_here(SMALL, target)
    check_footprint(program, run)


@pytest.mark.slow
@needs_board
@pytest.mark.parametrize("target", BOARDS)
@pytest.mark.parametrize("path", INT8, ids=lambda p: p.stem)
def test_all_int8_models_are_bit_equal_within_192_kb(path: Path, target: str) -> None:
    program, run = on_board_and_here(path, target)
    check_footprint(program, run)


@needs_board
@pytest.mark.parametrize("target", ("cortex-m4", "cortex-m55"))
def test_bands_of_rows_are_bit_equal_in_half_the_arena(target: str) -> None:
    path = DATA / "mlperftiny_mobilenetv1_025_vww_int8_qdq.onnx"
    program, run = on_board_and_here(path, target, arena=28_000)
    assert program.arena_bytes <= 28_000 < 0.5 * build(path, target).arena_bytes
    check_footprint(program, run)


@needs_board
@pytest.mark.parametrize("target", ("cortex-m4", "cortex-m55"))
def test_float_model_verifies_layer_by_layer(target: str) -> None:
    path = DATA / "mlperftiny_autoencoder_ad_fp32_randw.onnx"
    model = BoardModel(build(path, target))
    report = Verifier(path, model, 1e-5).verify(make_inputs(model.inputs, None, 1))
    assert report.passed and report.layers == len(model.program.steps)


@needs_board
def test_counts_repeat_and_inputs_are_checked() -> None:
    model = BoardModel(build(SMALL, "cortex-m4"))
    inputs = make_inputs(model.inputs, None, 0)
    first, second = model.profile(inputs), model.profile(inputs)
    assert first.steps == second.steps and first.instructions == second.instructions
    np.testing.assert_array_equal(model(*inputs)[0], first.outputs[0])
    with pytest.raises(ValueError, match="is wanted"):
        model.image.run([inputs[0].astype(np.float32)])


@needs_board
def test_a_clock_that_does_not_count_instructions_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = build(SMALL, "cortex-m4")
    monkeypatch.setattr(qemu_system, "_LOOP_INSTRUCTIONS", 1_000_000)
    with pytest.raises(ToolchainError, match="does not count instructions"):
        run_on_board(program, make_inputs(api.spec_of(program).inputs, None, 0))


@needs_board
def test_a_processor_fault_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = build(SMALL, "cortex-m55")  # Helium instructions fault where there is no Helium
    monkeypatch.setattr(qemu_system, "_machine", lambda _: machine("mps2-an386"))
    monkeypatch.setattr(
        qemu_system, "find_bare_compiler", lambda _: toolchain.find_bare_compiler("cortex-m55")
    )
    with pytest.raises(ToolchainError, match="took a fault"):
        run_on_board(program, make_inputs(api.spec_of(program).inputs, None, 0))


@needs_board
@pytest.mark.skipif(not _ZIG, reason="ziglang is not installed")
def test_zig_links_what_gcc_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_BARE_GCC", "no-such-gcc")
    on_board_and_here(SMALL, "cortex-m4")


def test_without_a_linker_or_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ToolchainError, match="apt-get install gcc-arm-none-eabi or"):
        run_on_board(build(SMALL, "cortex-m4"), [])
    with pytest.raises(TargetError, match="is not a board"):
        run_on_board(build(SMALL, "host"), [])
    with pytest.raises(TargetError, match="no memory map"):
        machine("raspi4")


# ---------------------------------------------------------------- flash, RAM, stack


def test_live_arena_is_the_plan() -> None:
    program = build(SMALL, "cortex-m4")
    assert max(live_arena(program)) <= program.arena_bytes
    assert program.arena_bytes % program.target.align == 0 and program.target.align == 16


def test_stack_of_calls() -> None:
    text = """
kernel:
\t.fnstart
\t.save\t{r4, r5, lr}
\tpush\t{r4, r5, lr}
\t.vsave\t{d8, d9}
\t.pad\t#100
\tsub\tsp, #100
\tbl\t__aeabi_ldivmod
step:
\tsub\tsp, #8
\tbl\tkernel
\tb\tstep2
step2:
\tbx\tlr
"""
    kernel = 12 + 16 + 100 + LIBRARY_BYTES
    assert stack_bytes(text) == {"kernel": kernel, "step": 8 + kernel, "step2": 0}


@pytest.mark.parametrize(
    ("flash", "ram", "stack", "message"),
    [
        (30000, 1 << 20, 8192, "bytes of flash and 30000 are available on cortex-m4: code"),
        (1 << 20, 20000, 8192, r"bytes of RAM and 20000 .* \(most in .* at `o"),
        (1 << 20, 1 << 20, 100, "bytes of stack and 100 are allowed"),
    ],
)
def test_what_does_not_fit_is_refused(flash: int, ram: int, stack: int, message: str) -> None:
    need = api.generate(build(SMALL, "cortex-m4")).need
    assert need is not None
    require_fit(need, need.flash, need.ram, need.stack)
    with pytest.raises(TargetError, match=message):
        require_fit(need, flash, ram, stack)


# ---------------------------------------------------------------- artifacts


@pytest.mark.parametrize("target", BOARDS)
@pytest.mark.parametrize("path", INT8, ids=lambda p: p.stem)
def test_objects_need_nothing(path: Path, target: str) -> None:
    program = build(path, target)
    code = api.generate(program).code
    assert foreign_symbols(Elf(code, "model"), api.spec_of(program)) == set()


def test_what_has_no_library_on_bare_metal_is_refused(tmp_path: Path) -> None:
    """A Cortex-M4 has no fused multiply-add of doubles; C's `fma` is in no runtime library."""
    types = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [8, 8]) for n in "aby"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])], "m", types[:2], types[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    program = build(model.SerializeToString(), "cortex-m4")
    with pytest.raises(ArtifactError, match="needs fma, which cortex-m4 has no library for"):
        api.write(program, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", BOARDS)
def test_artifact_is_sound_and_the_same_every_time(target: str, tmp_path: Path) -> None:
    program = build(SMALL, target)
    one, two = (api.write(program, tmp_path / d) for d in "ab")
    assert verify_artifact(one.directory) == [] and one.notes == []
    suffixes = {Path(f).suffix for f in one.files}
    assert suffixes == {".o", ".a", ".h", ".c", ".json"}
    for name in one.files:
        assert (one.directory / name).read_bytes() == (two.directory / name).read_bytes(), name
    table = json.loads((one.directory / "manifest.json").read_text())
    assert table["arena"]["align"] == 16 and not table["threads"]
    assert table["stack_bytes"] == table["memory"]["stack"] > 0
    assert len(table["memory"]["steps"]) == len(program.steps)


@needs_gcc
@pytest.mark.parametrize("target", BOARDS)
def test_example_builds_and_runs(target: str, tmp_path: Path) -> None:
    program = build(SMALL, target)
    folder = api.write(program, tmp_path / "out").directory
    name = program.name
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    for flags in (["-std=c99", "-x", "c"], ["-std=c++11", "-x", "c++"]):
        subprocess.run(["arm-none-eabi-gcc", *strict, *flags, f"{name}.h"], cwd=folder, check=True)
    limit = f"-D{name.upper()}_ARENA_LIMIT=1000"
    refused = subprocess.run(
        ["arm-none-eabi-gcc", "-fsyntax-only", limit, f"{name}.h"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "is larger than" in refused.stderr
    if not shutil.which(EMULATOR):
        pytest.skip(f"{EMULATOR} is not installed")
    board = Path(qemu_system.__file__).parent / "board"
    for source in ("board.h", "start.c"):
        shutil.copy(board / source, folder)
    where = qemu_system._machine(program)
    script = qemu_system.link_script((board / "board.ld").read_text(), where)
    (folder / "board.ld").write_text(script)
    compiler = toolchain.find_bare_compiler(program.target.cpu)
    sources = ["-Wall", "-Wextra", "-Werror", "start.c", "example.c", f"{name}.a"]
    compiler.run([*sources, "-Wl,-T,board.ld", "-o", "firmware.elf"], folder)
    qemu_system._emulate(where, folder)  # exit code 0 is that of NAME_run


# ---------------------------------------------------------------- commands


def run(*arguments: object) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_compile_prints_memory_and_refuses(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("compile", SMALL, "-t", "cortex-m4", "-o", out, "--ram", "12K") == 1
    assert "12288 are available" in capfd.readouterr().err and not out.exists()
    assert run("compile", SMALL, "-t", "cortex-m4", "-o", out, "--ram", "96K", "--flash", "1M") == 0
    text = capfd.readouterr().out
    assert "of 98304 bytes: arena" in text and "of 1048576 bytes: code" in text
    assert "in bands" not in text
    large = DATA / "mlperftiny_mobilenetv1_025_vww_int8_qdq.onnx"
    assert run("compile", large, "-t", "cortex-m4", "-o", out, "--ram", "68K") == 0
    assert "in bands of rows" in capfd.readouterr().err and check_rebuilt(out, large) == []
    assert run("compile", SMALL, "-t", "cortex-m4", "-o", out, "--ram", "some") == 2
    assert run("compile", SMALL, "-t", "x86-64-v3", "-o", out, "--ram", "96K") == 2


def float_model(nodes: list[Any], shape: list[int], outputs: list[str]) -> bytes:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", *outputs)]
    graph = helper.make_graph(nodes, "math", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def test_math_needs_no_libm() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], axis=-1),
        helper.make_node("Pow", ["p", "p"], ["q"]),
        helper.make_node("Erf", ["q"], ["e"]),
        helper.make_node("Round", ["e"], ["y"]),
    ]
    for target in BOARDS:
        program = build(float_model(nodes, [2, 9], ["y"]), target)
        code = api.generate(program).code
        assert foreign_symbols(Elf(code, "model"), api.spec_of(program)) == set()


@needs_board
@pytest.mark.parametrize("target", BOARDS)
def test_whole_numbers_near_floats(target: str) -> None:
    """Ties, signed zeros, numbers too large for fractions, infinities: as this machine has them."""
    ops = ("Floor", "Ceil", "Round")
    source = float_model([helper.make_node(op, ["x"], [op]) for op in ops], [21], list(ops))
    positive = [0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 8388607.5, 8388609.0, np.inf]
    x = np.array([*positive, *(-v for v in positive), np.nan], np.float32)
    ours = run_on_board(build(source, target), [x]).outputs
    for a, op in zip(ours, (np.floor, np.ceil, np.rint), strict=True):
        np.testing.assert_array_equal(a, op(x))
        np.testing.assert_array_equal(np.signbit(a[:-1]), np.signbit(op(x)[:-1]))
