"""What README.md shows works as written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "tests/data/mlperftiny_resnet8_ic_fp32_randw.onnx"


def block(language: str, containing: str) -> str:
    found = [
        b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b
    ]
    assert len(found) == 1, f"README has {len(found)} {language} blocks with {containing}"
    return str(found[0])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which the README's relative paths hold."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    return tmp_path


needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler `cc` on the PATH")


@needs_cc
def test_python_example(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python", "tilewright.load")],
        cwd=checkout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@needs_cc
def test_c_example(checkout: Path) -> None:
    command = re.search(r"`tilewright (compile [^`]*)`", README)
    build = re.search(r"`(cc [^`]*)`", README)
    assert command and build
    program = "from tilewright.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", program, *command.group(1).split()], cwd=checkout, check=True
    )
    (checkout / "out" / "main.c").write_text(block("c", "resnet8_run"), encoding="utf-8")
    done = subprocess.run(
        build.group(1), shell=True, cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = [float(line.split()[1]) for line in done.stdout.splitlines()]
    (expected,) = tilewright.compile(ROOT / MODEL)(np.zeros((1, 3, 32, 32), np.float32))
    np.testing.assert_allclose(printed, expected[0], atol=1e-6)


def test_links_and_paths() -> None:
    """Files that README names exist."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README links to {target}, which does not exist"
    package = ROOT / "compiler" / "tilewright"
    for name in re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.py)`", README):
        places = (ROOT / name, package / name, ROOT / name.replace("out/", "tests/"))
        assert name.startswith("out/") or any(p.exists() for p in places), f"README names {name}"


def test_commands_exist() -> None:
    from typer.main import get_command

    from tilewright.cli import app

    known = set(getattr(get_command(app), "commands", {}))
    named = set(re.findall(r"^tilewright (\w+)", block("sh", "tilewright check"), re.MULTILINE))
    assert named <= known, f"README shows commands that do not exist: {named - known}"
