"""The worked example of docs/operators.md: from the text of the page to fuzzed and compiled by every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
NAME = "squared_distances"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install` leaves it: the module, and metadata with its entry point."""
    folder = tmp_path_factory.mktemp("site")
    text = PAGE.read_text(encoding="utf-8")
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if f'name="{NAME}"' in c)
    (folder / f"{NAME}.py").write_text(code, encoding="utf-8")
    metadata = folder / "example-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    entry = f"[tilewright.kernels]\n{NAME} = {NAME}\n"
    (metadata / "entry_points.txt").write_text(entry)
    node = helper.make_node("SquaredDistances", ["a", "b"], ["y"], domain="my.domain")
    values = {"a": [20, 100], "b": [7, 100], "y": [20, 7]}
    a, b, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n, dims in values.items()
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(
        helper.make_graph([node], "one", [a, b], [y]), opset_imports=opsets, ir_version=9
    )
    onnx.save(model, folder / "model.onnx")
    return folder


def tilewright(
    folder: Path, *words: str, installed: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command in a folder; `installed`: with the folder's packages."""
    env = {**os.environ, "PYTHONPATH": str(folder)} if installed else dict(os.environ)
    command = [sys.executable, "-c", "from tilewright.cli import main; main()", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_file_alone_is_fuzzed(package: Path) -> None:
    done = tilewright(package, "fuzz", f"{NAME}.py", "--seconds", "3", "--target", "x86-64-v4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no failure" in done.stdout


def test_a_forgotten_initialisation_is_found(package: Path, tmp_path: Path) -> None:
    code = (package / f"{NAME}.py").read_text()
    forgotten = code.replace("        k.set(acc, const(0, k.out_dtype))\n", "")
    assert forgotten != code
    (tmp_path / "wrong.py").write_text(forgotten)
    done = tilewright(tmp_path, "fuzz", "wrong.py", "--seconds", "30", "--target", "x86-64-v4")
    assert done.returncode == 1 and f"failure of {NAME}" in done.stdout, done.stderr


def test_an_installed_operator_compiles_and_verifies(package: Path) -> None:
    done = tilewright(package, "verify", "model.onnx", "--seeds", "1", installed=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout


def test_the_reference_of_the_page_is_numpy(package: Path) -> None:
    space: dict[str, object] = {"__name__": NAME}
    exec((package / f"{NAME}.py").read_text(), space)  # our own page
    (op,) = space["OPERATORS"]  # type: ignore[misc]
    a, b = np.eye(3, 4, dtype=np.float32), np.zeros((2, 4), np.float32)
    assert np.array_equal(op.reference([a, b], {})[0], np.ones((3, 2)))
