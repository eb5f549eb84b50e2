"""Loading artifacts: right results, and a clear refusal of whatever should not run."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.artifact import manifest as manifests
from tilewright.artifact.verify import verify_artifact
from tilewright.artifact.write import Written, write_artifact
from tilewright.errors import ArtifactError
from tilewright.runtime import loader
from tilewright.runtime.cpu import architecture
from tilewright.runtime.loader import load
from tilewright.runtime.model import Spec

X = np.arange(6, dtype=np.float32).reshape(2, 3)
N = np.array([1, -2, 3, 4], np.int32)


def edit(directory: Path, **changes: Any) -> None:
    path = directory / "manifest.json"
    table = json.loads(path.read_text())
    table.update(changes)
    path.write_text(manifests.sealed(table))


@pytest.mark.parametrize("file", ["", "tiny.so", "manifest.json"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results(written: Written, threads: int, file: str) -> None:
    model = load(written.directory / file, threads)
    scaled, total = model(X, N)
    assert scaled.dtype == np.float32 and (scaled == 2 * X).all()
    assert total.dtype == np.int64 and total.shape == () and total == 6
    assert model.name == "tiny" and model.arena_bytes == 64 and model.weights_bytes == 24


def test_compiling_again_into_the_same_directory(
    written: Written, compile_object: Any, spec: Spec, target: dict[str, Any]
) -> None:
    """The dynamic linker would hand out the library it has loaded from this path before."""
    old = load(written.directory)
    threes = compile_object(Path(__file__).with_name("tiny.c"), "-DSCALE=3.0f")
    write_artifact(written.directory, spec, threes, {}, target)
    new = load(written.directory)
    again = load(written.directory)
    assert (old(X, N)[0] == 2 * X).all()
    assert (new(X, N)[0] == 3 * X).all() and (again(X, N)[0] == 3 * X).all()


def test_calls_from_many_threads(written: Written) -> None:
    for threads in (1, 3):
        model = load(written.directory, threads)
        wrong: list[int] = []

        def work(k: int, model: Any = model, wrong: list[int] = wrong) -> None:
            x = np.full((2, 3), k, np.float32)
            for _ in range(200):
                scaled, total = model(x, N)
                if not (scaled == 2 * k).all() or total != 6:
                    wrong.append(k)

        workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_threads_in_a_forked_child(written: Written) -> None:
    model = load(written.directory, 3)
    assert model(X, N)[1] == 6
    child = os.fork()
    if child == 0:  # a hang here would be the old workers that the child does not have
        try:
            ok = (model(X, N)[0] == 2 * X).all()
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (model(X, N)[0] == 2 * X).all()


def test_save_copies_the_artifact(written: Written, tmp_path: Path) -> None:
    load(written.directory).save(tmp_path / "copy")
    assert verify_artifact(tmp_path / "copy") == []
    assert (load(tmp_path / "copy")(X, N)[0] == 2 * X).all()
    load(tmp_path / "copy").save(tmp_path / "copy")
    assert verify_artifact(tmp_path / "copy") == []


def test_refuses_what_is_missing_or_damaged(written: Written, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        load(tmp_path)
    (written.directory / "other.so").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not the library that its manifest names"):
        load(written.directory / "other.so")
    with pytest.raises(ValueError, match="threads"):
        load(written.directory, 0)
    library = written.directory / "tiny.so"
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.unlink()
    library.write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        load(written.directory)
    library.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(written.directory)


def test_refuses_another_machine(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    table = json.loads((written.directory / "manifest.json").read_text())
    edit(written.directory, target={**table["target"], "required_features": ["avx2", "warp-drive"]})
    with pytest.raises(
        ArtifactError, match=r"tiny was compiled for test-cpu, but this CPU lacks .*warp-drive"
    ):
        load(written.directory)
    edit(written.directory, target={**table["target"], "triple": "vax-unknown-linux-gnu"})
    with pytest.raises(ArtifactError, match=f"for vax, but this machine is {architecture()}"):
        load(written.directory)


def test_refuses_a_library_that_does_not_load(written: Written) -> None:
    for content, message in (
        (b"not a library", "cannot be loaded"),
        (None, "lacks an entry point"),
    ):
        library = written.directory / "tiny.so"
        library.unlink()
        if content is None:
            shutil.copyfile(next(Path(p) for p in _libraries()), library)
        else:
            library.write_bytes(content)
        found = manifests.hash_file(library)
        edit(written.directory, files={"tiny.so": {"bytes": found.bytes, "sha256": found.sha256}})
        with pytest.raises(ArtifactError, match=message):
            load(written.directory)


def _libraries() -> list[str]:
    """A shared library without our entry points: one that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [s.split()[-1] for s in lines if "/libm.so" in s or "/libm-" in s or "_ctypes" in s]


def test_features_are_checked_by_both_names(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: pni avx512_vnni avx2\n\nflags\t\t: pni avx2 avx512_vnni fma\n")
    missing = loader.missing_features(["sse3", "avx512vnni", "avx2", "fma"], str(info))
    assert missing == ["fma"]  # not every core has it
    assert loader.missing_features(["anything"], str(tmp_path / "none")) == []
