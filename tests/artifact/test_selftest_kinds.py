"""NAME_selftest() in every kind of artifact: object, static and shared library, another CPU, a board."""

from __future__ import annotations

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from tilewright import api
from tilewright.artifact.toolchain import find_bare_compiler
from tilewright.device import qemu_system
from tilewright.device.machines import machine
from tilewright.pipeline import build

MODEL = "mlperftiny_dscnn_kws_int8_qdq"
DATA = Path(__file__).resolve().parents[1] / "data"
_MAIN = """
#include "{n}.h"
#include <stdint.h>
{include}
static _Alignas(64) uint8_t arena[{N}_ARENA_BYTES + 64], scratch[{N}_SELFTEST_SCRATCH_BYTES + 64];
int main(void) {{ return (int){n}_selftest(arena, scratch); }}
"""


def main_program(folder: Path, include: str = "") -> None:
    text = _MAIN.format(n=MODEL, N=MODEL.upper(), include=include)
    (folder / "main.c").write_text(text)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("kinds") / "out"
    api.write(build(DATA / f"{MODEL}.onnx"), folder, selftest=True)
    main_program(folder)
    return folder


@pytest.mark.parametrize("kind", ["o", "a", "so"])
def test_kinds(kind: str, here: Path) -> None:
    flags = ["-pthread", "-Wl,-rpath,$ORIGIN"] if kind != "o" else []
    command = ["cc", "-std=c11", "main.c", f"{MODEL}_selftest.c", f"{MODEL}.{kind}", *flags]
    subprocess.run([*command, "-o", f"test_{kind}"], cwd=here, check=True)
    assert subprocess.run([here / f"test_{kind}"], cwd=here, check=False).returncode == 0


def test_another_cpu(tmp_path: Path) -> None:
    cc, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
    if cc is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64")
    folder = tmp_path / "out"
    api.write(build(DATA / f"{MODEL}.onnx", "cortex-a76"), folder, selftest=True)
    main_program(folder)
    command = [
        cc,
        "-static",
        "-std=c11",
        "main.c",
        f"{MODEL}_selftest.c",
        f"{MODEL}.o",
        "-o",
        "test",
    ]
    subprocess.run(command, cwd=folder, check=True)
    assert (
        subprocess.run([emulator, "-cpu", "max", "test"], cwd=folder, check=False).returncode == 0
    )


def test_a_board(tmp_path: Path) -> None:
    if shutil.which(qemu_system.EMULATOR) is None or shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs qemu-system-arm and arm-none-eabi-gcc")
    folder = tmp_path / "out"
    program = build(DATA / f"{MODEL}.onnx", "cortex-m4")
    assert program.target.board is not None
    board = machine(program.target.board.machine)
    api.write(program, folder, selftest=True)
    main_program(folder, '#include "board.h"')
    sources = resources.files("tilewright.device") / "board"
    for name in ("board.h", "start.c"):
        (folder / name).write_bytes((sources / name).read_bytes())
    script = (sources / "board.ld").read_text(encoding="utf-8")
    (folder / "board.ld").write_text(qemu_system.link_script(script, board))
    files = ["start.c", "main.c", f"{MODEL}_selftest.c", f"{MODEL}.a", "-Wl,-T,board.ld"]
    find_bare_compiler(program.target.cpu).run([*files, "-o", "firmware.elf"], folder)
    qemu_system._emulate(board, folder)  # raises for an exit code that is not 0
