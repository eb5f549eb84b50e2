"""Writing artifacts: complete, reproducible, all or nothing, and never over somebody's files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.artifact import archive, manifest, toolchain
from tilewright.artifact import write as writer
from tilewright.artifact.example import pattern
from tilewright.artifact.verify import verify_artifact
from tilewright.artifact.write import Written, write_artifact
from tilewright.errors import ArtifactError
from tilewright.runtime.loader import load
from tilewright.runtime.model import Spec, TensorSpec

FILES = {
    "tiny.o", "tiny.a", "tiny.so", "tiny.h", "example.c", "manifest.json", "pool.c", "tilewright.h",
}  # fmt: skip


def build_example(cc: list[str], directory: Path, *arguments: str) -> Path:
    program = directory / "example"
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [*cc, *strict, "example.c", *arguments, "-o", str(program)], cwd=directory, check=True
    )
    return program


def test_all_files_are_written_and_sound(written: Written) -> None:
    assert set(written.files) == FILES == {p.name for p in written.directory.iterdir()}
    assert written.notes == []
    assert verify_artifact(written.directory) == []
    table = json.loads((written.directory / "manifest.json").read_text())
    assert table["arena"] == {"align": 64, "bytes": 64, "lower_bound": 24}
    assert table["inputs"][1] == {"bytes": 16, "dtype": "int32", "name": "/n:0", "shape": [4]}
    assert table["tools"]["tilewright"] == "0" and table["tools"]["c_compiler"]


def test_the_same_inputs_give_the_same_bytes(
    written: Written, object_code: bytes, spec: Spec, target: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "a longer path" / "elsewhere"
    facts = {"tools": {"tilewright": "0"}, "arena": {"lower_bound": 24}, "model_sha256": ""}
    write_artifact(other, spec, object_code, facts, target)
    for name in FILES:
        assert (other / name).read_bytes() == (written.directory / name).read_bytes(), name


def test_nothing_in_the_library_names_this_machine(written: Written, tmp_path: Path) -> None:
    for name in ("tiny.so", "tiny.a"):
        assert str(tmp_path).encode() not in (written.directory / name).read_bytes()


# ---------------------------------------------------------------- the C side


@pytest.mark.parametrize("what", ["tiny.o", "tiny.a"])
def test_example_computes_what_python_computes(cc: list[str], written: Written, what: str) -> None:
    directory = written.directory
    program = build_example(cc, directory, what)
    model = load(directory)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3), np.float32)
    n = rng.integers(-(2**31), 2**31, 4).astype(np.int32)
    x.tofile(directory / "x.bin")
    n.tofile(directory / "n.bin")
    subprocess.run([program, "x.bin", "n.bin", "y.bin", "s.bin"], cwd=directory, check=True)
    expected = model(x, n)
    assert (directory / "y.bin").read_bytes() == expected[0].tobytes() == (2 * x).tobytes()
    assert (directory / "s.bin").read_bytes() == expected[1].tobytes()
    assert expected[1] == n.sum(dtype=np.int64)


def test_example_without_files_runs_the_pattern(cc: list[str], written: Written) -> None:
    program = build_example(cc, written.directory, "tiny.o")
    shown = subprocess.run([program, "-n", "3"], capture_output=True, text=True, check=True).stdout
    scaled, total = load(written.directory)(*map(pattern, load(written.directory).inputs))
    low, high, mean, first = scaled.min(), scaled.max(), scaled.mean(dtype=np.float64), scaled[0, 0]
    assert f"scaled: 6 elements, min {low:g}, max {high:g}, mean {mean:g}, first {first:g}" in shown
    assert f"total: 1 elements, min {total}" in shown
    assert "least of 3 runs" in shown


def test_example_with_threads(cc: list[str], written: Written) -> None:
    program = build_example(cc, written.directory, "-DWITH_THREADS", "pool.c", "tiny.o", "-pthread")
    alone = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    shared = subprocess.run([program, "-t", "3"], capture_output=True, text=True, check=True).stdout
    assert alone.splitlines()[:2] == shared.splitlines()[:2]
    assert "3 threads" in shared
    linked = build_example(cc, written.directory, "-DWITH_THREADS", "tiny.a", "-pthread")
    subprocess.run([linked, "-t", "2"], check=True, capture_output=True)


@pytest.mark.parametrize(
    "arguments, message",
    [(["x.bin"], "usage"), (["none", "n.bin"], "none: cannot read the 24 bytes of input x.1"),
     (["-t", "2"], "WITH_THREADS"), (["-n", "0"], "usage"), (["-z", "1", "2"], "usage")],
)  # fmt: skip
def test_example_refuses_wrong_use(
    cc: list[str], written: Written, arguments: list[str], message: str
) -> None:
    program = build_example(cc, written.directory, "tiny.o")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode and message in done.stderr


ODD = Spec(
    name="Odd_9",
    target="a */ target",
    inputs=(
        *(TensorSpec(f'{d} "quoted" \\ ??/ */ é', (3,), d) for d in sorted(manifest.DTYPES)),
        TensorSpec("empty", (0, 4), "float32"),
        TensorSpec("Empty", (), "bool"),
    ),
    outputs=(TensorSpec("", (2,), "float16"),),
    arena_bytes=0,
    weights_bytes=0,
    features=("avx2", "f16c", "avx512bf16", "sse4.2", "nothing-known"),
)  # fmt: skip


@pytest.mark.parametrize("language", ["c99", "c++11"])
@pytest.mark.parametrize("features", [(), ODD.features, ("dotprod", "i8mm")])
def test_header_compiles_as_c_and_cpp(
    cc: list[str], tmp_path: Path, language: str, features: tuple[str, ...]
) -> None:
    (tmp_path / "Odd_9.h").write_text(writer.header(replace(ODD, features=features)))
    (tmp_path / "use.c").write_text(
        '#include "Odd_9.h"\n#include "Odd_9.h"\n'
        "typedef char right_size[ODD_9_INPUT_0_BYTES == 3 && ODD_9_INPUT_12_ELEMENTS == 0 ? 1 : -1];\n"
        "int dims[] = ODD_9_INPUT_12_DIMS;\n"
        "int main(void) { return sizeof dims / sizeof *dims - ODD_9_INPUT_12_RANK +\n"
        "  ODD_9_INPUT_INDEX_EMPTY_2 - 13 + (Odd_9_cpu_supported() & 0); }\n"
    )
    kind = ["-x", "c" if language == "c99" else "c++"]
    flags = [f"-std={language}", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [*cc, *kind, *flags, "-c", "use.c", "-o", "use.o"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "cc1plus" in done.stderr:
        pytest.skip("the C compiler has no C++ front end installed")
    assert done.returncode == 0, done.stderr


def test_cpu_check_of_the_header_agrees_with_the_kernel(cc: list[str], tmp_path: Path) -> None:
    from tilewright.runtime.cpu import missing_features

    for features in (
        ("avx2",),
        ("f16c", "fma"),
        ("avx512f", "avx512vnni"),
        ("amx-int8",),
        ("movbe", "lzcnt"),
    ):
        (tmp_path / "Odd_9.h").write_text(writer.header(replace(ODD, features=features)))
        (tmp_path / "use.c").write_text(
            '#include "Odd_9.h"\nint main(void) { return Odd_9_cpu_supported(); }'
        )
        subprocess.run([*cc, "use.c", "-o", "use"], cwd=tmp_path, check=True)
        supported = subprocess.run([tmp_path / "use"], check=False).returncode
        assert supported == (not missing_features(features)), features


def test_example_compiles_for_every_dtype(cc: list[str], tmp_path: Path) -> None:
    odd = replace(ODD, features=())
    (tmp_path / "Odd_9.h").write_text(writer.header(odd))
    (tmp_path / "example.c").write_text(writer.example(odd))
    (tmp_path / "model.c").write_text(
        '#include "Odd_9.h"\n#include <string.h>\n'
        "int32_t Odd_9_run_parallel(const void *const *in, void *const *out, void *arena,\n"
        "                           const struct tilewright_parallel *p) {\n"
        "  memcpy(out[0], in[1], ODD_9_OUTPUT_0_BYTES);\n"
        "  return (int)((uintptr_t)arena & 63) + (p != 0);\n}\n"
    )
    program = build_example(cc, tmp_path, "model.c", "-Wno-trigraphs")
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    half = pattern(odd.inputs[1])
    assert odd.inputs[1].dtype == "float16"
    assert f"min {half[:2].min():g}, max {half[:2].max():g}" in shown


# ---------------------------------------------------------------- without a compiler


def test_without_a_compiler(
    object_code: bytes,
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "find_compiler", lambda triple: None)
    written = write_artifact(tmp_path / "out", spec, object_code, {}, target)
    assert set(written.files) == FILES - {"tiny.so"}
    assert len(written.notes) == 1 and "no C compiler found" in written.notes[0]
    assert verify_artifact(tmp_path / "out") == []
    with pytest.raises(
        ArtifactError, match=r"has no tiny\.so: compile the model again where a C compiler"
    ):
        load(tmp_path / "out")


def test_nothing_is_found_on_an_empty_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    assert toolchain.find_compiler("x86_64-unknown-linux-gnu") is None
    assert "firmware" in toolchain.missing("thumbv7em-none-eabi", "m")


def test_a_wrong_cc_is_a_note(
    object_code: bytes,
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    written = write_artifact(tmp_path / "out", spec, object_code, {}, target)
    assert "tiny.so" not in written.files
    assert "is not on the PATH" in written.notes[0]
    monkeypatch.setenv("CC", "false")
    written = write_artifact(tmp_path / "out", spec, object_code, {}, target)
    assert "`false` failed" in written.notes[0]


def test_a_linker_that_fails_costs_the_shared_library_only(
    object_code: bytes,
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "LINK_FLAGS", ("-Wl,--no-such-option",))
    written = write_artifact(tmp_path / "out", spec, object_code, {}, target)
    assert "tiny.so" not in written.files
    assert written.notes[0].startswith("tiny.so was not made: ")
    names = [n for n, _ in archive.unpack((tmp_path / "out" / "tiny.a").read_bytes(), "tiny.a")]
    assert names == ["tiny.o", "tilewright_pool.o"]
    assert verify_artifact(tmp_path / "out") == []


def test_cross_candidates() -> None:
    assert toolchain._candidates("aarch64-unknown-linux-gnu")[0].startswith(
        ("aarch64-linux-gnu-gcc", "cc")
    )
    assert toolchain._zig_target("aarch64-unknown-linux-gnu") == "aarch64-linux-gnu.2.28"
    assert toolchain._zig_target("x86_64-unknown-linux-musl") == "x86_64-linux-musl"


# ---------------------------------------------------------------- the destination


def test_a_second_compilation_replaces_its_own_files_only(
    written: Written,
    object_code: bytes,
    spec: Spec,
    target: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = written.directory
    (directory / "notes.txt").write_text("mine")
    monkeypatch.setattr(writer, "find_compiler", lambda triple: None)
    write_artifact(directory, spec, object_code, {}, target)
    assert {p.name for p in directory.iterdir()} == FILES - {"tiny.so"} | {"notes.txt"}
    assert verify_artifact(directory) == []


def test_foreign_files_are_not_overwritten(
    object_code: bytes, spec: Spec, target: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "example.c").write_text("mine")
    with pytest.raises(ArtifactError, match=r"example\.c is there already"):
        write_artifact(tmp_path, spec, object_code, {}, target)
    assert [p.name for p in tmp_path.iterdir()] == ["example.c"]


def test_a_failure_leaves_everything_as_it_was(
    written: Written, object_code: bytes, spec: Spec, target: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = {p.name: p.read_bytes() for p in written.directory.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "to_json", fail)
    for directory in (written.directory, tmp_path / "fresh"):
        with pytest.raises(ArtifactError, match="No space left"):
            write_artifact(directory, spec, object_code, {}, target)
    assert {p.name: p.read_bytes() for p in written.directory.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_is_a_file(
    object_code: bytes, spec: Spec, target: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        write_artifact(tmp_path / "file", spec, object_code, {}, target)
    with pytest.raises(ArtifactError, match="cannot write"):
        write_artifact(tmp_path / "file" / "below", spec, object_code, {}, target)


def test_wrong_object_code_is_refused(
    object_code: bytes, spec: Spec, target: dict[str, Any], tmp_path: Path
) -> None:
    for bad_spec, code, bad_target, message in (
        (spec, b"not ELF", target, "is not an ELF file"),
        (spec, object_code[:200], target, "damaged"),
        (replace(spec, name="other"), object_code, target, "does not define other_run"),
        (replace(spec, name="a-b"), object_code, target, "cannot be a model's name"),
        (
            spec,
            object_code,
            {**target, "triple": "riscv64-unknown-linux-gnu"},
            "is not for riscv64",
        ),
    ):
        with pytest.raises(ArtifactError, match=message):
            write_artifact(tmp_path / "out", bad_spec, code, {}, bad_target)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- archives


def test_archive_round_trip(object_code: bytes) -> None:
    members = [("short.o", object_code), ("a_rather_long_member_name.o", object_code)]
    packed = archive.pack(members)
    assert archive.unpack(packed, "lib.a") == members
    for cut in (9, 100, len(packed) - 3):
        with pytest.raises(ArtifactError, match=r"damaged|cut off"):
            archive.unpack(packed[:cut], "lib.a")
    with pytest.raises(ArtifactError, match="is not a static library"):
        archive.unpack(b"", "lib.a")


def test_two_models_link_into_one_program(
    cc: list[str],
    object_code: bytes,
    compile_object: Any,
    spec: Spec,
    target: dict[str, Any],
    tmp_path: Path,
) -> None:
    source = Path(__file__).with_name("tiny.c").read_text().replace("tiny_", "huge_")
    (tmp_path / "huge.c").write_text(source)
    write_artifact(tmp_path / "a", spec, object_code, {}, target)
    write_artifact(
        tmp_path / "b", replace(spec, name="huge"), compile_object(tmp_path / "huge.c"), {}, target
    )
    (tmp_path / "main.c").write_text(
        '#include "a/tiny.h"\n#include "b/huge.h"\n#include "a/tilewright.h"\n'
        "int main(void) { tilewright_pool *p = tilewright_pool_create(2);\n"
        "  int bad = tiny_run(0, 0, (void *)1) != 1 || huge_run(0, 0, (void *)1) != 1 || !p;\n"
        "  tilewright_pool_destroy(p); return bad; }\n"
    )
    subprocess.run(
        [*cc, "main.c", "a/tiny.a", "b/huge.a", "-o", "both", "-pthread"], cwd=tmp_path, check=True
    )
    subprocess.run([tmp_path / "both"], check=True)


def test_verification_needs_no_compiler() -> None:
    """On a device the loader and the verifier run without LLVM, ONNX and the rest of tilewright."""
    code = (
        "import sys; sys.modules['tilewright'] = m = type(sys)('tilewright'); "
        f"m.__path__ = [{str(Path(writer.__file__).parents[1])!r}]; "
        "import tilewright.runtime.loader, tilewright.artifact.verify; "
        "print(sorted(n for n in sys.modules if n.startswith(('tilewright.', 'llvmlite', 'onnx'))))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    loaded = set(json.loads(shown.replace("'", '"')))
    packages = {".".join(n.split(".")[:2]) for n in loaded}
    assert packages == {"tilewright.artifact", "tilewright.errors", "tilewright.runtime"}
