"""Artifacts that were compiled before, from the cache on disk.

In: what `tilewright compile` was asked for. Out: the same artifact to the byte without compiling it, if all
that decides its bytes is as it was: the model (and files beside it that hold its tensors), options, tuning
logs, the compiler's own files, the packages and C compilers it uses, this machine's CPU.
Invariant: imports no part of the compiler, so that what is in the cache is there in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tilewright.artifact.write import Written, restore
from tilewright.cache import Cache, Entry, key_of
from tilewright.runtime.cpu import kernel_flags
from tilewright.tune.folders import shipped_folder, user_folder

#: Distributions whose code takes part in what is compiled.
_PACKAGES = (
    "tilewright", "llvmlite", "numpy", "onnx", "protobuf", "tflite", "flatbuffers", "ziglang",
    "nvidia-cuda-nvcc-cu12",
)  # fmt: skip
#: Programs that `artifact.toolchain` and `codegen.ptxas` look for.
_PROGRAMS = (
    "cc", "gcc", "clang", "aarch64-linux-gnu-gcc", "x86_64-linux-gnu-gcc",
    "arm-linux-gnueabihf-gcc", "ptxas",
)  # fmt: skip
#: Folders of a package that hold nothing that decides what is compiled.
_IRRELEVANT = {"__pycache__", "commands", "testing", "backend_suite", "demo"}


@dataclass(frozen=True, slots=True)
class Request:
    """What an artifact is compiled from. `model` is the file; `options` are all that changes the result,
    by name, as JSON has them."""

    model: Path
    target: str
    shapes: Mapping[str, Sequence[int | str] | str]
    options: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Reused:
    """An artifact from the cache, and what was said when it was compiled."""

    written: Written
    notices: tuple[str, ...]


def find(request: Request, directory: Path, cache: Cache) -> tuple[str, Reused | None]:
    """The key of a request, and its artifact in `directory` if it was compiled before.

    The key is empty where nothing can be stored. Raises `ArtifactError` if the directory cannot be written.
    """
    key = _key(request) if cache.folder is not None else ""
    entry = cache.get(key) if key else None
    if entry is None or not _same_tensors(entry, request.model):
        return key, None
    written = restore(directory, entry.files, entry.facts["notes"])
    return key, Reused(written, tuple(entry.facts["notices"]))


def store(
    key: str,
    request: Request,
    written: Written,
    weights: bytes,
    notices: Sequence[str],
    tensors: Iterable[Path],
    cache: Cache,
) -> None:
    """Keep the artifact that was `written` under its key; `tensors` are files beside the model that were
    read for it."""
    if not key or key != _key(request):  # the model changed while it was compiled
        return
    folder = request.model.parent.resolve()
    hashes = {str(p.relative_to(folder)): _hash(p) for p in tensors}
    if None in hashes.values():
        return
    facts = {"notes": written.notes, "notices": list(notices), "tensors": hashes}
    try:
        files = {name: (written.directory / name).read_bytes() for name in written.files}
    except OSError:  # moved away already
        return
    cache.put(key, files, facts, weights)


def _same_tensors(entry: Entry, model: Path) -> bool:
    """Whether the files beside the model are as they were."""
    return all(_hash(model.parent / p) == digest for p, digest in entry.facts["tensors"].items())


# ---------------------------------------------------------------- keys


def _key(request: Request) -> str:
    """Hash of all that decides the artifact; empty if the model cannot be read."""
    digest = _hash(request.model)
    if digest is None:
        return ""
    return key_of(
        [
            ("model", digest),
            ("file", request.model.name),
            ("target", (request.target, _hash(Path(request.target)))),
            ("shapes", json.dumps(dict(request.shapes), sort_keys=True)),
            ("options", json.dumps(dict(request.options), sort_keys=True)),
            ("logs", _logs()),
            ("compiler", _sources()),
            ("packages", [_version(p) for p in _PACKAGES]),
            ("programs", _programs()),
            ("machine", (platform.machine(), sorted(kernel_flags() or ()), sys.version_info[:2])),
        ]
    )


def _hash(path: Path) -> str | None:
    """SHA-256 of a file, None if it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _sources() -> str:
    """Hash of the compiler itself: a checkout changes without its version."""
    digest = hashlib.sha256()
    for package in ("tilewright", "tilewright.kernels", "tilewright.targets"):
        spec = importlib.util.find_spec(package)
        for root in sorted(map(Path, spec.submodule_search_locations or ())) if spec else ():
            _add_folder(digest, root, root)
    return digest.hexdigest()


def _add_folder(digest: hashlib._Hash, folder: Path, root: Path) -> None:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda e: e.name)
    for e in entries:
        if e.is_dir():
            if e.name not in _IRRELEVANT:
                _add_folder(digest, Path(e.path), root)
        elif not e.name.endswith(".pyc"):
            data = Path(e.path).read_bytes()
            digest.update(f"{os.path.relpath(e.path, root)} {len(data)}\n".encode())
            digest.update(data)


def _logs() -> str:
    """Hash of the tuning logs: those that ship and the user's own."""
    digest = hashlib.sha256()
    for folder in (shipped_folder(), user_folder()):
        for path in sorted(folder.glob("*/*.jsonl")):
            digest.update(f"{path.relative_to(folder)} {_hash(path)}\n".encode())
    return digest.hexdigest()


def _programs() -> list[object]:
    """C compilers and assemblers: where they are and what tells one version from another."""
    out: list[object] = [os.environ.get("CC", "")]
    own = os.environ.get("CC", "").split()[:1]
    for name in (*_PROGRAMS, *own):
        path = shutil.which(name)
        if path is not None:
            real = Path(path).resolve()
            status = real.stat()
            out.append((name, str(real), status.st_size, status.st_mtime_ns))
    return out
