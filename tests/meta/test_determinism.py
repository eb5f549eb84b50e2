"""Same model, target and version: the same artifact bytes, whatever the hash seed, folder or time."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"
MODELS = ("mlperftiny_resnet8_ic_fp32_randw", "mlperftiny_dscnn_kws_fp32_randw")
COMPILE = "from tilewright.cli import main; main()"


def compiled(model: Path, folder: Path, seed: str) -> dict[str, str]:
    """Hash of every file of an artifact and of the dumped IR, made by a fresh process."""
    folder.mkdir()
    arguments = ["compile", str(model), "-o", "out", "--dump-ir", "ir", "--target", "x86-64-v3"]
    env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": "UTC" if seed == "1" else "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *arguments],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", MODELS)
def test_same_bytes(name: str, tmp_path: Path) -> None:
    model = DATA / f"{name}.onnx"
    first = compiled(model, tmp_path / "one", "1")
    second = compiled(model, tmp_path / "another folder", "4242")
    assert first.keys() == second.keys()
    different = [f for f in first if first[f] != second[f]]
    assert not different, f"these files differ between two runs: {different}"
