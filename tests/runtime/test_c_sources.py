"""All C that ships or is generated: no warnings from gcc and clang, and no complaint of a sanitizer."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tilewright import api
from tilewright.device import qemu_system
from tilewright.pipeline import build
from tilewright.program import Program
from tilewright.runtime.loader import load

PACKAGE = Path(__file__).resolve().parents[2] / "compiler" / "tilewright"
DATA = Path(__file__).resolve().parents[1] / "data"
MODEL = "mlperftiny_dscnn_kws_int8_qdq"
STRICT = [
    "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wstrict-prototypes",
    "-Wmissing-prototypes", "-Wundef", "-Werror",
]  # fmt: skip
BARE = ["-ffreestanding", "-mthumb", "-I", str(PACKAGE / "device/board")]
ZIG = [sys.executable, "-m", "ziglang", "cc"]
HAS_ZIG = importlib.util.find_spec("ziglang") is not None
#: Name -> command, for this machine and for boards.
HOST = {"gcc": ["gcc"], "clang": ["clang"] if shutil.which("clang") else ZIG}
ARM = {
    "gcc": ["arm-none-eabi-gcc", "-mcpu=cortex-m4"],
    "clang": [*ZIG, "-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m4"],
}
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}


def compiler(table: dict[str, list[str]], name: str) -> list[str]:
    command = table[name]
    if not (HAS_ZIG if command[0] == sys.executable else shutil.which(command[0])):
        pytest.skip(f"no {name} here, and no ziglang")
    return command


def quiet(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    program = build(DATA / f"{MODEL}.onnx")
    folder = tmp_path_factory.mktemp("c") / "host"
    api.write(program, folder, selftest=True)
    return program, folder


@pytest.mark.parametrize("name", list(HOST))
@pytest.mark.parametrize(
    "source", ["runtime/pool.c", "device/linux/driver.c", "device/linux/count.c"]
)
def test_runtime(name: str, source: str, tmp_path: Path) -> None:
    folders = [f"-I{PACKAGE / 'runtime'}", f"-I{PACKAGE / 'device/linux'}"]
    extra = ["-Wno-missing-prototypes"] if source.endswith("count.c") else []  # QEMU looks it up
    command = [*compiler(HOST, name), "-std=c11", *STRICT, *extra, *folders]
    quiet([*command, "-c", str(PACKAGE / source), "-o", "x.o"], tmp_path)


@pytest.mark.parametrize("name", list(ARM))
@pytest.mark.parametrize("source", ["start.c", "runner.c"])
def test_board(name: str, source: str, tmp_path: Path) -> None:
    program = build(DATA / f"{MODEL}.onnx", "cortex-m4")
    (tmp_path / "runner.h").write_text(qemu_system._header(program))
    command = [*compiler(ARM, name), "-std=c11", *STRICT, *BARE, f"-I{tmp_path}"]
    quiet([*command, "-c", str(PACKAGE / "device/board" / source), "-o", "x.o"], tmp_path)


@pytest.mark.parametrize("name", list(HOST))
@pytest.mark.parametrize("threads", [[], ["-DWITH_THREADS"]])
def test_generated(name: str, threads: list[str], host: tuple[Program, Path]) -> None:
    _, folder = host
    command = [*compiler(HOST, name), "-std=c11", *STRICT, *threads, "-c"]
    for source in ("example.c", f"{MODEL}_selftest.c"):
        quiet([*command, source, "-o", "x.o"], folder)


@pytest.mark.parametrize("name", list(ARM))
def test_generated_for_a_board(name: str, tmp_path: Path) -> None:
    api.write(build(DATA / f"{MODEL}.onnx", "cortex-m4"), tmp_path / "out", selftest=True)
    command = [*compiler(ARM, name), "-std=c11", *STRICT, "-ffreestanding", "-mthumb", "-c"]
    for source in ("example.c", f"{MODEL}_selftest.c"):
        quiet([*command, source, "-o", "x.o"], tmp_path / "out")


def test_header_is_cplusplus_too(host: tuple[Program, Path]) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    (host[1] / "use.cpp").write_text(
        f'#include "{MODEL}.h"\n#include "tilewright.h"\n'
        f"int use(void *arena) {{ return {MODEL}_run(nullptr, nullptr, arena); }}\nint use(void *);\n"
    )
    quiet(
        ["g++", "-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "use.cpp"], host[1]
    )


def require(sanitizer: str, folder: Path) -> None:
    """Skip where no program can be built with a sanitizer; one that cannot is no reason."""
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    done = subprocess.run(
        [*compiler(HOST, "gcc"), *SANITIZERS[sanitizer], "empty.c", "-o", "empty"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"the compiler has no {sanitizer} sanitizer: {done.stderr.splitlines()[-1]}")


@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_example_under_sanitizers(
    sanitizer: str, host: tuple[Program, Path], tmp_path: Path
) -> None:
    """The example reads files, runs the model on a pool, and writes what Python computes."""
    _, folder = host
    require(sanitizer, tmp_path)
    flags = SANITIZERS[sanitizer]
    program = tmp_path / "example"
    done = subprocess.run(
        [*compiler(HOST, "gcc"), "-std=c11", "-g", "-O1", *flags, "-DWITH_THREADS", "example.c", "pool.c",
         f"{MODEL}.o", "-pthread", "-o", str(program)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = load(folder)
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, model.inputs[0].shape).astype(model.inputs[0].dtype)
    x.tofile(tmp_path / "x.bin")
    for arguments in (
        ["-n", "2"],
        ["-t", "3", "-n", "20"],
        ["-t", "3", "x.bin", "y.bin"],
        ["none", "y.bin"],
    ):
        run = subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "unexpected memory mapping" in run.stderr:
            pytest.skip("this kernel's address randomisation is too wide for the thread sanitizer")
        assert "Sanitizer" not in run.stderr and "runtime error" not in run.stderr, run.stderr
        assert (run.returncode == 0) is (arguments[0] != "none"), run.stderr
    assert (tmp_path / "y.bin").read_bytes() == model(x)[0].tobytes()


def test_driver_under_sanitizers(tmp_path: Path) -> None:
    """The program that runs models on devices, with a model in C that touches every byte it was given."""
    require("address", tmp_path)
    (tmp_path / "models.c").write_text(_MODELS)
    done = subprocess.run(
        [*compiler(HOST, "gcc"), "-std=c11", "-g", *SANITIZERS["address"], f"-I{PACKAGE / 'device/linux'}",
         "models.c", str(PACKAGE / "device/linux/driver.c"), "-o", "models"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (tmp_path / "in_0").write_bytes(bytes(range(5)))
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}  # it ends with what it has allocated
    for arguments, code in (
        (["3", "1", "1", "1"], 0),
        (["3", "1", "1", "2"], 0),
        (["0", "0", "0", "1", "0", "1"], 0),
        (["1", "1", "1"], 3),
    ):
        run = subprocess.run(
            ["./models", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == code and "Sanitizer" not in run.stderr, run.stderr
    assert (tmp_path / "out_0").read_bytes() == bytes(range(5))
    (tmp_path / "in_0").write_bytes(b"1234")
    run = subprocess.run(
        ["./models", "1", "0", "0", "1"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 3 and "too short: in_0" in run.stderr


_MODELS = """
#include "driver.h"
#include <string.h>
static int32_t run(const void *const *inputs, void *const *outputs, void *arena) {
  memset(arena, 7, 16);
  memcpy(outputs[0], inputs[0], 5);
  return 0;
}
static int32_t shared(const void *const *inputs, void *const *outputs, void *arena,
                      const struct tilewright_parallel *parallel) {
  (void)parallel;
  return run(inputs, outputs, arena);
}
const struct tilewright_parallel *start_threads(int32_t count) {
  static char pool[64];
  return count > 1 ? (const struct tilewright_parallel *)(void *)pool : NULL;
}
static int yes(void) { return 1; }
static int no(void) { return 0; }
static const size_t five[] = {5};
const struct model models[] = {{run, shared, yes, 0, 1, 1, five, five, 16}, {run, shared, no, 7, 1, 1, five, five, 16}};
const unsigned model_count = 2;
"""
