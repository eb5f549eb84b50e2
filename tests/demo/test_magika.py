"""Magika's input and output handling: blocks, padding, thresholds, files too short for the model."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from tilewright.demo import magika
from tilewright.errors import TilewrightError


def scores(label: str, score: float) -> np.ndarray:
    labels = magika.config().labels
    out = np.full((1, len(labels)), (1 - score) / len(labels), np.float32)
    out[0, labels.index(label)] = score
    return out


def test_short_content_is_padded_between_head_and_tail() -> None:
    text = b"  \n0123456789 \t"
    x = magika.tokens(text, text)
    assert x is not None and x.shape == (1, 2048) and x.dtype == np.int32
    assert bytes(x[0, :12].astype(np.uint8)) == b"0123456789 \t"
    assert (x[0, 12:1024] == 256).all()
    assert (x[0, 1024:-13] == 256).all()
    assert bytes(x[0, -13:].astype(np.uint8)) == b"  \n0123456789"


def test_long_content_is_cut() -> None:
    data = bytes(i % 251 + 1 for i in range(10_000))
    x = magika.tokens(data[:4096], data[-4096:])
    assert x is not None
    np.testing.assert_array_equal(x[0, :1024], np.frombuffer(data.lstrip()[:1024], np.uint8))
    np.testing.assert_array_equal(x[0, 1024:], np.frombuffer(data.rstrip()[-1024:], np.uint8))


@pytest.mark.parametrize(
    ("content", "label"),
    [(b"", "empty"), (b"hi", "txt"), (b"\xff\xfe\x00", "unknown"), (b"   \n      a    ", "txt")],
)
def test_too_short_for_the_model(content: bytes, label: str) -> None:
    assert magika.tokens(content, content) is None
    found = magika.short_answer(content)
    assert found.label == label and found.score == 1


def test_answers() -> None:
    assert magika.answer(scores("python", 0.9)).label == "python"
    assert magika.answer(scores("python", 0.9)).description == "Python source"
    assert magika.answer(scores("python", 0.3)).label == "txt"  # not sure, but it is text
    assert magika.answer(scores("elf", 0.3)).label == "unknown"
    assert magika.answer(scores("markdown", 0.7)).label == "txt"  # its own threshold is 0.75
    assert magika.answer(scores("randombytes", 0.9)).label == "unknown"
    assert magika.answer(scores("randomtxt", 0.9)).label == "txt"


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(TilewrightError, match="absent"):
        magika.read_ends(tmp_path / "absent")


def test_the_embedded_model_is_the_published_one() -> None:
    text = (resources.files("tilewright.bench") / "zoo.toml").read_text(encoding="utf-8")
    pinned = tomllib.loads(text)["magika_v3_3"]["sha256"]
    assert hashlib.sha256(magika.model_bytes()).hexdigest() == pinned
    home = resources.files("tilewright.demo")
    assert "Apache License" in (home / "LICENSE-magika.txt").read_text(encoding="utf-8")
    assert "Google" in (home / "NOTICE-magika.txt").read_text(encoding="utf-8")
