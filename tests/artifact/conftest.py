"""A tiny model whose object code comes from a C compiler instead of the code generator."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tilewright.artifact.toolchain import find_compiler
from tilewright.artifact.write import Written, write_artifact
from tilewright.runtime.model import Spec, TensorSpec

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "compiler" / "tilewright" / "runtime"
TRIPLE = f"{platform.machine()}-unknown-linux-gnu"
TARGET = {"name": "test-cpu", "triple": TRIPLE, "required_features": []}
SPEC = Spec(
    name="tiny",
    target="test-cpu",
    inputs=(TensorSpec("x.1", (2, 3), "float32"), TensorSpec("/n:0", (4,), "int32")),
    outputs=(TensorSpec("scaled", (2, 3), "float32"), TensorSpec("total", (), "int64")),
    arena_bytes=64,
    weights_bytes=24,
    features=(),
)

Compile = Callable[..., bytes]


@pytest.fixture(scope="session")
def cc() -> list[str]:
    """The command of a C compiler for this machine."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    return list(compiler.command)


@pytest.fixture(scope="session")
def compile_object(cc: list[str], tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles C source to the bytes of an object file."""

    def run(source: Path = HERE / "tiny.c", *flags: str) -> bytes:
        out = tmp_path_factory.mktemp("object") / "model.o"
        command = [*cc, "-O2", "-g0", "-fPIC", "-ffreestanding", "-fno-ident", f"-I{RUNTIME}"]
        subprocess.run([*command, *flags, "-c", str(source), "-o", str(out)], check=True)
        return out.read_bytes()

    return run


@pytest.fixture(scope="session")
def object_code(compile_object: Compile) -> bytes:
    return compile_object()


@pytest.fixture
def written(object_code: bytes, tmp_path: Path) -> Written:
    """The artifact of the tiny model in `tmp_path / "out"`."""
    facts = {"model_sha256": "", "arena": {"lower_bound": 24}, "tools": {"tilewright": "0"}}
    return write_artifact(tmp_path / "out", SPEC, object_code, facts, TARGET)


@pytest.fixture
def spec() -> Spec:
    return SPEC


@pytest.fixture
def target() -> dict[str, object]:
    return dict(TARGET)
