"""The verifier finds every kind of damage, and damage never becomes anything but a problem."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tilewright.artifact import manifest as manifests
from tilewright.artifact import write as writer
from tilewright.artifact.elf import Elf
from tilewright.artifact.verify import check_library, check_object, verify_artifact
from tilewright.artifact.write import Written, write_artifact
from tilewright.errors import ArtifactError
from tilewright.runtime.model import Spec


def rehash(directory: Path) -> None:
    """Make the manifest agree with files that a test has changed."""
    path = directory / "manifest.json"
    table = json.loads(path.read_text())
    for name in table["files"]:
        found = manifests.hash_file(directory / name)
        table["files"][name] = {"bytes": found.bytes, "sha256": found.sha256}
    path.write_text(manifests.sealed(table))


@pytest.mark.parametrize("name", ["tiny.o", "tiny.a", "tiny.so", "tiny.h", "example.c", "pool.c"])
def test_changed_and_lost_files(written: Written, name: str) -> None:
    path = written.directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert f"{name} does not match its hash in the manifest" in verify_artifact(written.directory)
    path.unlink()
    assert any(p.startswith(f"{name} cannot be read") for p in verify_artifact(written.directory))


def test_no_artifact(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        (problem,) = verify_artifact(directory)
        assert "is not an artifact" in problem


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("schema", 99, "schema 99"), ("name", "../x", "not a C identifier"), ("name", 3, "`name` is not"),
        ("files", {"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "not a plain file name"),
        ("files", {"a": {"bytes": 1, "sha256": "zz"}}, "no hash for a"),
        ("inputs", [{"name": "x", "shape": [-1], "dtype": "float32"}], r"shape \[-1\]"),
        ("inputs", [{"name": "x", "shape": [True], "dtype": "float32"}], "shape"),
        ("inputs", [{"name": "x", "shape": [1 << 40, 1 << 40], "dtype": "int8"}], "shape"),
        ("inputs", [{"name": "x", "shape": [], "dtype": "object"}], "unknown dtype"),
        ("inputs", [3], "not an object"), ("outputs", None, "`outputs` is not a list"),
        ("arena", {"bytes": -1}, "`bytes` is -1"), ("arena", {"bytes": True}, "not a int"),
        ("target", {"name": "t", "triple": "x", "required_features": [1]}, "not a string"),
    ],
)  # fmt: skip
def test_damaged_manifests(written: Written, key: str, value: Any, message: str) -> None:
    path = written.directory / "manifest.json"
    table = json.loads(path.read_text())
    table[key] = value
    with pytest.raises(ArtifactError, match=message):
        manifests.parse(manifests.sealed(table).encode())
    path.write_text(manifests.sealed(table))
    assert len(verify_artifact(written.directory)) == 1


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"nul"])
def test_manifests_that_are_not_manifests(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        manifests.parse(data)


def test_manifest_round_trip(written: Written) -> None:
    text = (written.directory / "manifest.json").read_text()
    assert manifests.to_json(manifests.parse(text.encode())) == text


@pytest.mark.parametrize(
    "extra, problem",
    [
        ("int puts(const char *); void tiny_hello(void) { puts(\"hi\"); }", "tiny.o needs the symbol puts"),
        ("static int n; int tiny_count(void) { return ++n; }", "tiny.o has writable data in section .bss"),
        ("int tiny_n = 3;", "tiny.o has writable data in section .data"),
        ("void helper(void) {}", "tiny.o defines helper, which does not begin with the model's name"),
        ('__asm__(".section .note.GNU-stack,\\"x\\",@progbits\\n.text\\n");', "executable stack"),
    ],
)  # fmt: skip
def test_bad_objects(
    compile_object: Callable[..., bytes], written: Written, tmp_path: Path, extra: str, problem: str
) -> None:
    source = tmp_path / "bad.c"
    source.write_text(Path(__file__).with_name("tiny.c").read_text() + extra + "\n")
    manifest = manifests.read(written.directory)
    problems = check_object(Elf(compile_object(source), "tiny.o"), manifest)
    assert any(problem in p for p in problems), problems


_SECRET = """
void secret(void) {}
#ifdef DATA
int counter = 3;
int count(void) { return ++counter; }
#endif
#ifdef START
static volatile int n;
__attribute__((constructor)) static void begin(void) { n = 1; }
#endif
#ifdef IFUNC
static void one(void) {}
static void (*choose(void))(void) { return one; }
void chosen(void) __attribute__((ifunc("choose")));
#endif
#ifdef TEXT
__asm__(".text\\n.quad secret\\n");
#endif
"""


@pytest.mark.parametrize(
    "flags, problem",
    [
        (["-Wl,-z,execstack"], "asks for an executable stack"),
        (["-Wl,-rpath,/tmp"], "library search path"),
        (["-Wl,-z,norelro"], "without relro"),
        (["-Wl,-soname,libother.so"], "calls itself libother.so"),
        (["-Wl,--version-script=all.map"], "exports secret"),
        (["-Wl,--no-as-needed", "-lm"], "needs the library libm.so"),
        (["-DDATA"], "has writable data in section .data"),
        (["-DSTART"], "runs code when it is loaded (init_array)"),
        (
            ["-DIFUNC", "-Wl,--version-script=all.map"],
            "runs code when it is loaded, to find chosen",
        ),
        (["-DTEXT", "-Wl,-z,notext"], "has relocations in its code"),
    ],
)
def test_bad_libraries(
    cc: list[str], written: Written, tmp_path: Path, flags: list[str], problem: str
) -> None:
    work = written.directory
    (work / "secret.c").write_text(_SECRET)
    (work / "all.map").write_text("{ global: *; };\n")
    done = subprocess.run(
        [*cc, "-shared", "-nostartfiles", "-fPIC", "-Wl,-soname,tiny.so", "tiny.o", "secret.c", "pool.c",
         "-pthread", *flags, "-o", str(tmp_path / "bad.so")],
        cwd=work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"this linker does not take {flags}")
    elf = Elf((tmp_path / "bad.so").read_bytes(), "tiny.so")
    problems = check_library(elf, manifests.read(work))
    assert any(problem in p for p in problems), problems


def test_archive_with_another_object(
    written: Written,
    compile_object: Callable[..., bytes],
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
) -> None:
    other = compile_object(Path(__file__).with_name("tiny.c"), "-DSCALE=3.0f")
    write_artifact(tmp_path / "other", spec, other, {}, target)
    (tmp_path / "other" / "tiny.a").replace(written.directory / "tiny.a")
    rehash(written.directory)
    (problem,) = verify_artifact(written.directory)
    assert problem == "tiny.a holds another tiny.o than the one beside it"


@pytest.mark.parametrize("name", ["tiny.o", "tiny.so", "tiny.a"])
def test_random_damage_is_a_problem_and_never_an_exception(written: Written, name: str) -> None:
    path = written.directory / name
    whole = path.read_bytes()
    rng = random.Random(7)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        assert bytes(data) == whole or verify_artifact(written.directory)


def test_cross_artifact_for_aarch64(
    spec: Spec, target: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code generator's target need not be this machine; a cross compiler links it."""
    monkeypatch.delenv("CC", raising=False)
    triple = "aarch64-unknown-linux-gnu"
    compiler = writer.find_compiler(triple)
    if compiler is None:
        pytest.skip("neither an aarch64 cross gcc nor ziglang on this machine")
    source = Path(__file__).with_name("tiny.c")
    include = Path(writer.__file__).parents[1] / "runtime"
    compiler.run(
        ["-O2", "-g0", "-fPIC", f"-I{include}", "-c", str(source), "-o", "tiny.o"], tmp_path
    )
    code = (tmp_path / "tiny.o").read_bytes()
    written = write_artifact(tmp_path / "out", spec, code, {}, {**target, "triple": triple})
    assert "tiny.so" in written.files, written.notes
    assert verify_artifact(tmp_path / "out") == []


def test_a_sound_library_of_zig(
    object_code: bytes,
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("CC", f"{sys.executable} -m ziglang cc")
    written = write_artifact(tmp_path / "out", spec, object_code, {}, target)
    assert "tiny.so" in written.files, written.notes
    assert verify_artifact(tmp_path / "out") == []


def test_every_flipped_bit_of_a_manifest(written: Written) -> None:
    """None is read as another interface: a wrong shape would make a sound model write out of bounds."""
    whole = (written.directory / "manifest.json").read_bytes()
    sound = manifests.parse(whole)
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            try:
                assert manifests.parse(bytes(data)) == sound  # white space, or 1e2 for 1E2
            except ArtifactError as err:
                assert "\n" not in str(err)
    for end in range(len(whole) - 1):
        with pytest.raises(ArtifactError):
            manifests.parse(whole[:end])


def test_code_that_can_be_written(written: Written) -> None:
    """The segment with the code, made writable."""
    data = bytearray((written.directory / "tiny.so").read_bytes())
    table, size = struct.unpack_from("<Q", data, 0x20)[0], struct.unpack_from("<H", data, 0x36)[0]
    for at in range(table, table + size * data[0x38], size):
        kind, flags = struct.unpack_from("<II", data, at)
        if kind == 1 and flags & 1:
            struct.pack_into("<I", data, at + 4, flags | 2)
    problems = check_library(Elf(bytes(data), "tiny.so"), manifests.read(written.directory))
    assert problems == ["tiny.so has a segment that is both writable and executable"]
