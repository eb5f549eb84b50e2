"""Magika's input and output: a file's bytes as tokens, the model's scores as a content type.

In: the bytes of a file. Out: the tokens the model wants, and an `Answer` for its scores.
Invariant: tokens are the first and last `beg_size` / `end_size` bytes of the content stripped of
white space, padded with `padding_token`; files too short for the model are decided without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.graph.ir import Array

_HOME = resources.files("tilewright.demo")
_WHITE = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True, slots=True)
class Config:
    """The model's own configuration, as it was published with it."""

    beg_size: int
    end_size: int
    block_size: int
    padding: int
    shortest: int
    medium: float
    labels: tuple[str, ...]
    thresholds: Mapping[str, float]
    overwrite: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a file is: its content type, a description, and the model's confidence (1 without it)."""

    label: str
    description: str
    score: float


def model_bytes() -> bytes:
    """The embedded ONNX model."""
    return (_HOME / "magika_v3_3.onnx").read_bytes()


@cache
def config() -> Config:
    """The embedded configuration."""
    c = _json("magika_config.json")
    return Config(
        beg_size=c["beg_size"],
        end_size=c["end_size"],
        block_size=c["block_size"],
        padding=c["padding_token"],
        shortest=c["min_file_size_for_dl"],
        medium=c["medium_confidence_threshold"],
        labels=tuple(c["target_labels_space"]),
        thresholds=c["thresholds"],
        overwrite=c["overwrite_map"],
    )


@cache
def _types() -> Mapping[str, Any]:
    return _json("magika_content_types.json")


def _json(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((_HOME / name).read_text(encoding="utf-8"))
    return data


# ---------------------------------------------------------------- bytes to tokens


def read_ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last block of a file; raises `TilewrightError` if it cannot be read."""
    block = config().block_size
    try:
        with path.open("rb") as f:
            first = f.read(block)
            f.seek(max(0, path.stat().st_size - block))
            return first, f.read(block)
    except OSError as err:
        raise TilewrightError(f"cannot read {path}: {err.strerror}") from None


def tokens(first: bytes, last: bytes) -> Array | None:
    """int32[1, beg_size + end_size], or None where too little content is left after stripping."""
    c = config()
    head = first.lstrip(_WHITE)[: c.beg_size]
    tail = last.rstrip(_WHITE)[-c.end_size :]
    if len(head) < c.shortest:
        return None
    out = np.full((1, c.beg_size + c.end_size), c.padding, np.int32)
    out[0, : len(head)] = np.frombuffer(head, np.uint8)
    out[0, out.shape[1] - len(tail) :] = np.frombuffer(tail, np.uint8)
    return out


# ---------------------------------------------------------------- scores to an answer


def answer(scores: Array) -> Answer:
    """The best label of `scores` f32[1, labels]; below its threshold, only text or not."""
    c = config()
    best = int(np.argmax(scores[0]))
    named, score = c.labels[best], float(scores[0, best])
    label = c.overwrite.get(named, named)
    if score < c.thresholds.get(named, c.medium):
        label = "txt" if _types()[label]["is_text"] else "unknown"
    return _described(label, score)


def short_answer(first: bytes) -> Answer:
    """What a file is that is too short for the model."""
    if not first:
        return _described("empty", 1.0)
    try:
        first.decode("utf-8")
    except UnicodeDecodeError:
        return _described("unknown", 1.0)
    return _described("txt", 1.0)


def _described(label: str, score: float) -> Answer:
    return Answer(label, _types().get(label, {}).get("description") or label, score)
