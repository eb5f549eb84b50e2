"""manifest.json: what an artifact holds, for which machine, and the hash of every file.

In: the bytes of a manifest (from anywhere: nothing in them is trusted), or what the compiler knows.
Out: a `Manifest` whose fields have been checked one by one, or JSON text that is the same wherever and
whenever it is made.
Invariant: a `Manifest` that was parsed names only files inside its own directory and a model whose name
is a C identifier. Standard library and NumPy only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tilewright.errors import ArtifactError
from tilewright.runtime.model import ARENA_ALIGN, OpenDim, SizeSpec, Spec, StateSpec, TensorSpec

#: 2: with a digest of the manifest itself.
SCHEMA = 2
FILE_NAME = "manifest.json"
DTYPES = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
})  # fmt: skip
#: Larger than any manifest of ours; a bound on what a damaged one can cost.
MAX_BYTES = 64 << 20

T = TypeVar("T")

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")
_DIGEST = "digest"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class File:
    """Size and SHA-256 (hexadecimal) of one file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest; `facts` is all that the compiler recorded beyond the calling interface."""

    spec: Spec
    triple: str
    files: Mapping[str, File]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_cuda(self) -> bool:
        """Whether the model runs on an NVIDIA GPU, and its library is host code."""
        return self.triple.startswith("nvptx")

    @property
    def machine(self) -> str:
        """Architecture of the artifact's library: of a GPU's host, where a library was made."""
        if not self.is_cuda:
            return self.triple.partition("-")[0]
        host = self.facts.get("host")
        return str(host.get("machine", "")) if isinstance(host, Mapping) else ""


def is_identifier(name: str) -> bool:
    """Whether `name` can be the prefix of C symbols."""
    return _IDENTIFIER.match(name) is not None


def hash_file(path: Path) -> File:
    """Size and hash of a file, read in pieces; `OSError` if it cannot be read."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return File(size, digest.hexdigest())


# ---------------------------------------------------------------- writing


def to_json(manifest: Manifest) -> str:
    """JSON text with sorted keys."""
    spec = manifest.spec
    arena = {
        **manifest.facts.get("arena", {}),
        "bytes": spec.arena_bytes,
        "align": spec.arena_align,
    }
    table = {
        **manifest.facts,
        "schema": SCHEMA,
        "name": spec.name,
        "target": {
            "name": spec.target,
            "triple": manifest.triple,
            "required_features": list(spec.features),
        },
        **({"sizes": [_size_table(s) for s in spec.sizes]} if spec.sizes else {}),
        **({"states": [_state_table(s) for s in spec.states]} if spec.states else {}),
        **({"faults": list(spec.faults)} if spec.faults else {}),
        "inputs": [_tensor_table(t) for t in spec.inputs],
        "outputs": [_tensor_table(t) for t in spec.outputs],
        "weights_bytes": spec.weights_bytes,
        "stack_bytes": spec.stack_bytes,
        "threads": spec.threads,
        "arena": arena,
        "files": {n: {"bytes": f.bytes, "sha256": f.sha256} for n, f in manifest.files.items()},
    }
    return sealed(table)


def sealed(table: Mapping[str, Any]) -> str:
    """JSON text of a manifest's table, with the digest that its reader asks for."""
    whole = {**table, _DIGEST: _digest(table)}
    return json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _digest(table: Mapping[str, Any]) -> str:
    """SHA-256 over everything else in the table: a damaged shape would have models write out of bounds."""
    rest = {k: v for k, v in table.items() if k != _DIGEST}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_table(t: TensorSpec) -> dict[str, Any]:
    table = {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.nbytes}
    if t.dims:
        table["dims"] = [{"constant": d.constant, "terms": [*map(list, d.terms)]} for d in t.dims]
    return table


def _size_table(s: SizeSpec) -> dict[str, Any]:
    return {"name": s.name, "low": s.low, "high": s.high, "step": s.step}


def _state_table(s: StateSpec) -> dict[str, Any]:
    initial = base64.b64encode(s.initial).decode()
    return {"input": s.input, "output": s.output, "initial": initial}


# ---------------------------------------------------------------- reading


def read(directory: Path) -> Manifest:
    """The manifest of the artifact in `directory`; `ArtifactError` if it is missing or damaged."""
    path = directory / FILE_NAME
    try:
        with path.open("rb") as f:
            data = f.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{directory} has no {FILE_NAME}: it is not an artifact of `tilewright compile`"
        ) from None
    except OSError as err:
        raise ArtifactError(f"{path} cannot be read: {err.strerror or err}") from None
    try:
        return parse(data)
    except ArtifactError as err:
        raise ArtifactError(f"{path} is damaged ({err}): compile the model again") from None


def parse(data: bytes) -> Manifest:
    """A `Manifest` from JSON bytes; `ArtifactError` says which field is wrong."""
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"it is larger than {MAX_BYTES} bytes")
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ArtifactError(f"not JSON: {str(err).splitlines()[0]}") from None
    if not isinstance(table, dict):
        raise ArtifactError("not a JSON object")
    schema = table.get("schema")
    if schema != SCHEMA:
        raise ArtifactError(f"schema {schema!r}, this version of tilewright reads {SCHEMA}")
    try:
        whole = _digest(table) == table.get(_DIGEST)
    except (ValueError, RecursionError):  # lone surrogates, or nested deeper than can be written
        whole = False
    if not whole:
        raise ArtifactError("it does not match its own digest")
    target = _get(table, "target", dict)
    name = _get(table, "name", str)
    if not is_identifier(name):
        raise ArtifactError(f"name {name!r} is not a C identifier")
    features = _get(target, "required_features", list)
    if not all(isinstance(f, str) for f in features):
        raise ArtifactError("`required_features` holds something that is not a string")
    sizes = _sizes(table) if "sizes" in table else ()
    inputs, outputs = _tensors(table, "inputs", sizes), _tensors(table, "outputs", sizes)
    spec = Spec(
        name=name,
        target=_get(target, "name", str),
        inputs=inputs,
        outputs=outputs,
        arena_bytes=_count(_get(table, "arena", dict), "bytes"),
        weights_bytes=_count(table, "weights_bytes"),
        features=tuple(features),
        arena_align=_align(_get(table, "arena", dict)),
        stack_bytes=_count(table, "stack_bytes") if "stack_bytes" in table else 0,
        threads=_get(table, "threads", bool) if "threads" in table else True,
        sizes=sizes,
        states=_states(table, inputs, outputs) if "states" in table else (),
        faults=_faults(table) if "faults" in table else (),
    )
    known = {
        "sizes", "states", "faults",
        "schema", _DIGEST, "name", "target", "inputs", "outputs", "weights_bytes", "stack_bytes", "threads", "files",
    }  # fmt: skip
    facts = {k: v for k, v in table.items() if k not in known}
    return Manifest(spec, _get(target, "triple", str), _files(table), facts)


def _get(table: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = table.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ArtifactError(f"`{key}` is not a {kind.__name__}")
    return value


def _count(table: Mapping[str, Any], key: str) -> int:
    value = _get(table, key, int)
    if not 0 <= value < 1 << 48:
        raise ArtifactError(f"`{key}` is {value}")
    return value


def _align(arena: Mapping[str, Any]) -> int:
    align = _count(arena, "align") if "align" in arena else ARENA_ALIGN
    if align not in (16, 32, 64):
        raise ArtifactError(f"`align` is {align}")
    return align


def _sizes(table: Mapping[str, Any]) -> tuple[SizeSpec, ...]:
    out: list[SizeSpec] = []
    for item in _get(table, "sizes", list):
        if not isinstance(item, dict):
            raise ArtifactError("`sizes` holds something that is not an object")
        s = SizeSpec(
            _get(item, "name", str), *(_count(item, key) for key in ("low", "high", "step"))
        )
        if not 1 <= s.step <= s.low <= s.high or s.low % s.step or s.high % s.step:
            raise ArtifactError(f"`sizes` has the range {s}")
        out.append(s)
    if not out:
        raise ArtifactError("`sizes` is empty")
    return tuple(out)


def _faults(table: Mapping[str, Any]) -> tuple[str, ...]:
    texts = _get(table, "faults", list)
    if not texts or not all(isinstance(t, str) for t in texts):
        raise ArtifactError("`faults` is not a list of sentences")
    return tuple(texts)


def _states(
    table: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[StateSpec, ...]:
    """States: each input and output once, of one type, with as many bytes as that has, or none."""
    out: list[StateSpec] = []
    for item in _get(table, "states", list):
        if not isinstance(item, dict):
            raise ArtifactError("`states` holds something that is not an object")
        i, o = _count(item, "input"), _count(item, "output")
        if i >= len(inputs) or o >= len(outputs) or any(s.input == i or s.output == o for s in out):
            raise ArtifactError(f"`states` names input {i} and output {o}")
        a, b = inputs[i], outputs[o]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ArtifactError(f"`states` changes the type of {a}")
        try:
            initial = base64.b64decode(_get(item, "initial", str), validate=True)
        except ValueError:
            raise ArtifactError("`states` has an initial value that is not base64") from None
        if len(initial) not in (0, a.nbytes):
            raise ArtifactError(f"`states` has {len(initial)} bytes for {a}")
        out.append(StateSpec(i, o, initial))
    return tuple(out)


def _dims(
    item: Mapping[str, Any], key: str, shape: list[int], sizes: Sequence[SizeSpec]
) -> tuple[OpenDim, ...]:
    """Dims that follow the sizes: within the tensor's shape at every size."""
    dims: list[OpenDim] = []
    for d in _get(item, "dims", list):
        if not isinstance(d, dict) or type(d.get("constant")) is not int:
            raise ArtifactError(f"`{key}` has dims without a constant")
        terms = _get(d, "terms", list)
        for t in terms:
            good = isinstance(t, list) and len(t) == 4 and all(type(x) is int for x in t)
            if not good or not 0 <= t[1] < len(sizes) or t[0] < 1 or t[3] < 1:
                raise ArtifactError(f"`{key}` has the term {t}")
        dims.append(OpenDim(d["constant"], tuple(tuple(t) for t in terms)))
    low, high = ([getattr(s, end) // s.step for s in sizes] for end in ("low", "high"))
    if [d.at(high) for d in dims] != shape or any(d.at(low) < 0 for d in dims):
        raise ArtifactError(f"`{key}` has dims that do not fit its shape")
    return tuple(dims)


def _tensors(
    table: Mapping[str, Any], key: str, sizes: Sequence[SizeSpec]
) -> tuple[TensorSpec, ...]:
    tensors: list[TensorSpec] = []
    for item in _get(table, key, list):
        if not isinstance(item, dict):
            raise ArtifactError(f"`{key}` holds something that is not an object")
        shape = _get(item, "shape", list)
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in shape) or len(shape) > 64:
            raise ArtifactError(f"`{key}` has the shape {shape}")
        dtype = _get(item, "dtype", str)
        if dtype not in DTYPES:
            raise ArtifactError(f"`{key}` has the unknown dtype {dtype!r}")
        dims = _dims(item, key, shape, sizes) if sizes else ()
        tensors.append(TensorSpec(_get(item, "name", str), tuple(shape), dtype, dims))
        if tensors[-1].nbytes >= 1 << 48:
            raise ArtifactError(f"`{key}` has the shape {shape}")
    return tuple(tensors)


def _files(table: Mapping[str, Any]) -> dict[str, File]:
    files: dict[str, File] = {}
    for name, item in _get(table, "files", dict).items():
        if not _PLAIN_FILE.match(name):
            raise ArtifactError(f"`files` names {name!r}, which is not a plain file name")
        if not isinstance(item, dict) or not _SHA256.match(_get(item, "sha256", str)):
            raise ArtifactError(f"`files` has no hash for {name}")
        files[name] = File(_count(item, "bytes"), item["sha256"])
    return files
