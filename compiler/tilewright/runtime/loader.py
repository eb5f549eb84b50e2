"""Load a compiled artifact and run it from Python.

In: a directory written by `tilewright compile`, or the .so in it. Out: a `Model`.
Invariant: nothing is executed before the manifest, the library's hash and this machine's CPU features
have been checked. Standard library and NumPy only: the compiler is not needed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

from tilewright.artifact import manifest as manifests
from tilewright.artifact.manifest import Manifest
from tilewright.errors import ArtifactError
from tilewright.runtime.cpu import architecture, missing_features
from tilewright.runtime.cuda import cuda_model
from tilewright.runtime.model import Model
from tilewright.runtime.pool import Pool

__all__ = ["Pool", "load"]

#: Hash of the library that was loaded from each path. The dynamic linker knows libraries by their path:
#: it would answer with the old code if a model were compiled into the same directory again.
_LOADED: dict[str, str] = {}


def load(path: str | Path, threads: int = 1) -> Model:
    """The model in `path`; `threads` > 1 runs it on a pool of its own.

    Raises `ArtifactError` if a file is missing, damaged, or made for a CPU with features this machine
    lacks; `ValueError` for a bad number of threads.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    directory = Path(path)
    if not directory.exists():
        raise ArtifactError(f"{directory} does not exist: name a directory of `tilewright compile`")
    if not directory.is_dir():
        directory = directory.parent
    manifest = manifests.read(directory)
    check_machine(manifest)
    code = _open(directory, manifest, Path(path).name if Path(path).is_file() else None)
    name = manifest.spec.name

    def save(destination: Path) -> None:
        copy_artifact(directory, manifest, destination)

    if manifest.is_cuda:
        if threads > 1:
            raise ArtifactError(
                f"{name} runs on a GPU, which has threads of its own: use threads=1"
            )
        return cuda_model(code, manifest.spec, save)
    try:
        run = getattr(code, f"{name}_run" if threads == 1 else f"{name}_run_parallel")
    except AttributeError as err:
        raise ArtifactError(f"the library in {directory} lacks an entry point: {err}") from None
    run.argtypes, run.restype = [ctypes.c_void_p] * (3 if threads == 1 else 4), ctypes.c_int32
    if threads == 1:
        return Model(manifest.spec, run, keep=code, save=save)
    pool = Pool(code, threads)
    return Model(manifest.spec, run, keep=(pool, code), trailing=(pool.parallel,), save=save)


def check_machine(manifest: Manifest, cpuinfo: str = "/proc/cpuinfo") -> None:
    """Raise `ArtifactError` unless this machine can run the artifact's code."""
    spec = manifest.spec
    arch = architecture(manifest.machine)
    if arch and architecture() != arch:  # without a library, that is what to complain about
        raise ArtifactError(
            f"{spec.name} was compiled for {arch}, but this machine is {architecture()}"
        )
    missing = missing_features(spec.features, cpuinfo)
    if missing:
        raise ArtifactError(
            f"{spec.name} was compiled for {spec.target}, but this CPU lacks {', '.join(missing)}: "
            "compile it for this machine with --target host"
        )


def copy_artifact(source: Path, manifest: Manifest, destination: Path) -> None:
    """Copy the files of an artifact, the manifest last; `ArtifactError` if that fails."""
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name in [*sorted(manifest.files), manifests.FILE_NAME]:
            # A new file takes the old one's place: a process that has loaded that one keeps it.
            fresh = destination / f".{name}.new"
            shutil.copyfile(source / name, fresh)
            fresh.replace(destination / name)
    except OSError as err:
        raise ArtifactError(f"cannot copy {source} to {destination}: {err}") from None


def _open(directory: Path, manifest: Manifest, asked: str | None) -> ctypes.CDLL:
    """The checked library of an artifact; `asked` is the file that the user named, if any."""
    name = f"{manifest.spec.name}.so"
    library = directory / name
    if asked is not None and asked not in (name, manifests.FILE_NAME):
        raise ArtifactError(
            f"{directory / asked} is not the library that its manifest names: load {library}"
        )
    if name not in manifest.files:
        raise ArtifactError(
            f"{directory} has no {name}: compile the model again where a C compiler is installed"
        )
    try:
        found = manifests.hash_file(library)
    except OSError as err:
        raise ArtifactError(
            f"{library} cannot be read ({err.strerror}): compile the model again"
        ) from None
    if found != manifest.files[name]:
        raise ArtifactError(
            f"{library} does not match its manifest: it is damaged, compile the model again"
        )
    real = os.path.realpath(library)
    try:
        if _LOADED.setdefault(real, found.sha256) == found.sha256:
            return ctypes.CDLL(real)
        return _open_copy(library)
    except OSError as err:
        raise ArtifactError(f"{library} cannot be loaded: {err}") from None


def _open_copy(library: Path) -> ctypes.CDLL:
    """Load under a path of its own; the file may go as soon as it is mapped."""
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        own = Path(folder) / library.name
        shutil.copyfile(library, own)
        return ctypes.CDLL(str(own))
