"""Load a compiled artifact and run it from Python.

In: a directory written by `tilewright compile`, or the .so in it. Out: a `Model`.
Invariant: nothing is executed before the manifest, the library's hash and this machine's CPU features
have been checked. Standard library and NumPy only: the compiler is not needed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from tilewright.errors import ArtifactError
from tilewright.runtime.model import Model, Spec, TensorSpec

SCHEMA = 1


def load(path: str | Path, threads: int = 1) -> Model:
    """The model in `path`; `threads` > 1 runs it on a pool of its own.

    Raises `ArtifactError` if a file is missing, damaged, or made for a CPU with features this machine
    lacks; `ValueError` for a bad number of threads.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    directory, manifest = read_manifest(Path(path))
    spec = spec_from_manifest(manifest)
    library = directory / f"{spec.name}.so"
    recorded = manifest["files"].get(library.name)
    if recorded is None or not library.is_file():
        raise ArtifactError(
            f"{directory} has no {library.name}: compile again where a C compiler is installed"
        )
    if hashlib.sha256(library.read_bytes()).hexdigest() != recorded["sha256"]:
        raise ArtifactError(f"{library} does not match its manifest: it is damaged, compile it again")
    check_cpu(spec, manifest["target"])
    try:
        code = ctypes.CDLL(str(library.resolve()))
    except OSError as err:
        raise ArtifactError(f"{library} cannot be loaded: {err}") from None
    return Model(spec, _entry(code, spec, threads), keep=code)


def _entry(code: ctypes.CDLL, spec: Spec, threads: int) -> Any:
    if threads == 1:
        run = getattr(code, f"{spec.name}_run")
        run.argtypes, run.restype = [ctypes.c_void_p] * 3, ctypes.c_int32
        return run
    run = getattr(code, f"{spec.name}_run_parallel")
    run.argtypes, run.restype = [ctypes.c_void_p] * 4, ctypes.c_int32
    pool = Pool(code, threads)

    def entry(inputs: int, outputs: int, arena: int) -> int:
        return int(run(inputs, outputs, arena, pool.parallel))

    return entry


class Pool:
    """The C thread pool of a loaded library; destroyed with this object."""

    def __init__(self, code: ctypes.CDLL, threads: int) -> None:
        create, view = code.tilewright_pool_create, code.tilewright_pool_parallel
        create.argtypes, create.restype = [ctypes.c_int32], ctypes.c_void_p
        view.argtypes, view.restype = [ctypes.c_void_p], ctypes.c_void_p
        self._destroy = code.tilewright_pool_destroy
        self._destroy.argtypes, self._destroy.restype = [ctypes.c_void_p], None
        self._pool = create(threads)
        if not self._pool:
            raise ArtifactError(f"cannot start {threads} threads")
        self.parallel: int = view(self._pool)

    def __del__(self) -> None:
        if getattr(self, "_pool", None):
            self._destroy(self._pool)
            self._pool = None


# ---------------------------------------------------------------- manifest


def read_manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    """The artifact's directory and its parsed manifest."""
    directory = path if path.is_dir() else path.parent
    file = directory / "manifest.json"
    if not file.is_file():
        raise ArtifactError(f"{directory} has no manifest.json: it is not a compiled artifact")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise ArtifactError(f"{file} has schema {manifest['schema']}, this version reads {SCHEMA}")
        spec_from_manifest(manifest)
        for entry in manifest["files"].values():
            str(entry["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ArtifactError(f"{file} is damaged ({err}): compile the model again") from None
    return directory, manifest


def spec_from_manifest(manifest: dict[str, Any]) -> Spec:
    """The caller's view of a manifest."""

    def tensors(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(str(t["name"]), tuple(int(n) for n in t["shape"]), str(t["dtype"])) for t in items
        )

    return Spec(
        name=str(manifest["name"]),
        target=str(manifest["target"]["name"]),
        inputs=tensors(manifest["inputs"]),
        outputs=tensors(manifest["outputs"]),
        arena_bytes=int(manifest["arena"]["bytes"]),
        weights_bytes=int(manifest["weights_bytes"]),
        features=tuple(str(f) for f in manifest["target"]["required_features"]),
    )


def check_cpu(spec: Spec, target: dict[str, Any]) -> None:
    """Raise `ArtifactError` unless this machine can run code for the target."""
    machine = platform.machine()
    arch = str(target["triple"]).split("-")[0]
    if machine != arch:
        raise ArtifactError(f"{spec.name} was compiled for {arch}, this machine is {machine}")
    info = Path("/proc/cpuinfo")
    if not spec.features or not info.is_file():
        return
    present: set[str] = set()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            present.update(line.split(":", 1)[1].split())
    missing = [f for f in spec.features if f not in present]
    if missing:
        raise ArtifactError(
            f"{spec.name} was compiled for {spec.target}, but this CPU lacks {', '.join(missing)}: "
            "compile it for this machine with --target host"
        )
