"""The thread pool in C: every iteration exactly once, under sanitizers, with and without futex."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from tilewright.artifact.toolchain import find_compiler
from tilewright.errors import ArtifactError
from tilewright.runtime.pool import Pool

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "compiler" / "tilewright" / "runtime"
STRICT = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow", "-pthread", f"-I{RUNTIME}"]
SANITIZERS = {
    "none": [],
    "thread": [
        "-fsanitize=thread",
        "-Wno-tsan",
    ],  # its fences are real, gcc only says they add no edges
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


@pytest.fixture(scope="module")
def cc() -> list[str]:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return list(compiler.command)


@pytest.mark.parametrize("parking", ["futex", "condition"])
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_stress(cc: list[str], tmp_path: Path, sanitizer: str, parking: str) -> None:
    flags = [*STRICT, *SANITIZERS[sanitizer]]
    if parking == "condition":
        flags.append("-DTILEWRIGHT_POOL_NO_FUTEX")
    program = tmp_path / "stress"
    command = [
        *cc,
        *flags,
        str(HERE / "pool_stress.c"),
        str(RUNTIME / "pool.c"),
        "-o",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and sanitizer != "none":
        pytest.skip(f"the compiler has no {sanitizer} sanitizer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    for threads in (1, 2, 5):
        run = subprocess.run(
            [program, str(threads), "600"], capture_output=True, text=True, timeout=120, check=False
        )
        if "unexpected memory mapping" in run.stderr:
            pytest.skip("this kernel's address randomisation is too wide for the thread sanitizer")
        assert run.stdout == "ok\n" and run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("standard", ["c11", "gnu17"])
def test_compiles_without_warnings(cc: list[str], tmp_path: Path, standard: str) -> None:
    flags = [*STRICT, "-Wconversion", "-Wpedantic", "-Werror", f"-std={standard}"]
    subprocess.run(
        [*cc, *flags, "-c", str(RUNTIME / "pool.c"), "-o", str(tmp_path / "p.o")], check=True
    )


def test_pool_from_python(cc: list[str], tmp_path: Path) -> None:
    library = tmp_path / "pool.so"
    subprocess.run(
        [*cc, *STRICT, "-fPIC", "-shared", str(RUNTIME / "pool.c"), "-o", str(library)], check=True
    )
    code = ctypes.CDLL(str(library))
    pool = Pool(code, 3)
    task_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    loop_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, task_type, ctypes.c_void_p, ctypes.c_int64)
    fields = (ctypes.c_void_p * 2).from_address(pool.parallel)
    parallel_for = loop_type(fields[0])
    for count in (10, 2, 1, 0, 1000, 65535, 200_001, 5_000_000):
        seen: list[tuple[int, int]] = []
        parallel_for(
            fields[1], task_type(lambda _, b, e, seen=seen: seen.append((b, e))), None, count
        )
        pieces = sorted(seen)
        ends = [0, *(e for _, e in pieces)]
        assert [b for b, _ in pieces] == ends[:-1] and ends[-1] == count  # each iteration once
        assert all(b < e for b, e in pieces)
        assert len(pieces) <= 100  # halves of what is left, not single iterations
    del pool
    for threads in (0, -1, 5000):
        with pytest.raises(ValueError, match="threads must be between"):
            Pool(code, threads)
    with pytest.raises(ArtifactError, match="has no thread pool"):
        Pool(ctypes.CDLL(None), 2)
