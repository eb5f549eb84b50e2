"""Broken and hostile model files: the property that a file gives a `Graph` or a `ModelError`, and no
more than limited time and memory.

In: valid model files, a seed. Out: a `Report` of how many broken versions of them were read, and every kind
of misbehaviour with the smallest file that shows it.
Invariant: a case is told by its seed and number alone; native code, memory and time of what reads the
files are in a `Sandbox`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.testing.mutations import change_bytes, mutate, pieces_removed
from tilewright.testing.sandbox import BYTES, SECONDS, Sandbox, Verdict

#: What a file may cost: as many seconds to read.
SLOW = SECONDS


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind of misbehaviour, the case that showed it first, and the smallest file that shows it."""

    verdict: Verdict
    model: str
    number: int
    data: bytes

    def __str__(self) -> str:
        v = self.verdict
        return f"{v.outcome}: {v.detail} [{v.where}] (case {self.number}, made of {self.model})"


@dataclass(slots=True)
class Report:
    """Of one run: cases by outcome, findings by kind, and the dearest file that was fine."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    findings: dict[str, Finding] = field(default_factory=dict[str, Finding])
    slowest: float = 0.0
    largest: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {k}" for k, n in sorted(self.outcomes.items()))
        return (
            f"{self.cases} files: {counts}; at most {self.slowest:.2f} s and "
            f"{self.largest / 2**20:.0f} MiB for one"
        )


def make_case(models: Sequence[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes]:
    """The broken file with this number: (name of the model it was made of, bytes)."""
    rng = np.random.default_rng((seed, number))
    name, data = models[int(rng.integers(len(models)))]
    if not name.endswith(".onnx"):  # of other formats only the bytes are known
        return name, change_bytes(data, rng)
    others = [d for n, d in models if n.endswith(".onnx")] if len(models) < 50 else []
    while len(models) >= 50 and len(others) < 3:
        n, d = models[int(rng.integers(len(models)))]
        others += [d] if n.endswith(".onnx") else []
    return name, mutate(data, rng, others)


def fuzz_models(
    models: Mapping[str, bytes],
    cases: int,
    seed: int = 0,
    seconds: float | None = None,
    progress: Callable[[Report], None] = lambda report: None,
    limit_seconds: float = SECONDS,
    limit_bytes: int = BYTES,
) -> Report:
    """Read `cases` broken versions of `models` (file name -> bytes), for at most `seconds` in all.

    Each may take `limit_seconds` and `limit_bytes`. Findings are reduced to smaller files that show the
    same. Raises nothing for what files do.
    """
    report = Report()
    table = list(models.items())
    end = None if seconds is None else time.monotonic() + seconds
    with (
        tempfile.TemporaryDirectory(prefix="tilewright-fuzz-") as folder,
        Sandbox(limit_seconds, limit_bytes) as sandbox,
    ):
        home = prepare(Path(folder))
        for number in range(cases):
            if end is not None and time.monotonic() > end:
                break
            name, data = make_case(table, seed, number)
            verdict = _read(sandbox, home, name, data)
            report.cases += 1
            report.outcomes[verdict.outcome] += 1
            report.slowest = max(report.slowest, verdict.seconds)
            report.largest = max(report.largest, verdict.peak_bytes)
            if verdict.is_bug and verdict.signature not in report.findings:
                small = data
                if name.endswith(".onnx") and verdict.outcome != "hung":
                    small = reduced(sandbox, home, name, data, verdict.signature)
                report.findings[verdict.signature] = Finding(verdict, name, number, small)
            progress(report)
    return report


def prepare(folder: Path) -> Path:
    """A folder to read models in, with what external data can point to: a file, links out of the
    folder, a pipe, a secret outside."""
    home = folder / "home"
    home.mkdir()
    (folder / "weights.bin").write_bytes(b"secret" * 100)
    (home / "weights.bin").write_bytes(bytes(range(256)) * 16)
    (home / "link.bin").symlink_to(folder / "weights.bin")
    if hasattr(os, "mkfifo"):
        os.mkfifo(home / "pipe")
    return home


def reduced(
    sandbox: Sandbox, home: Path, name: str, data: bytes, signature: str, tries: int = 300
) -> bytes:
    """A smaller file with the same verdict: pieces of the model are left out while that holds."""
    found = True
    while found and tries > 0:
        found = False
        for smaller in pieces_removed(data):
            tries -= 1
            if tries <= 0:
                break
            if _read(sandbox, home, name, smaller).signature == signature:
                data, found = smaller, True
                break
    return data


def _read(sandbox: Sandbox, home: Path, name: str, data: bytes) -> Verdict:
    path = home / f"model{Path(name).suffix}"
    path.write_bytes(data)
    return sandbox.read(path)
