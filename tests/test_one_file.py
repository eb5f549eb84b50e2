"""Adding an operator touches one file, adding a device one file: both are done here as a user does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_helpers import Builder, model
from onnx import helper

from tilewright import api
from tilewright.cli import main
from tilewright.errors import TargetError
from tilewright.schedule.target import load_target, target_from_table

ROOT = Path(__file__).resolve().parents[1]
DEVICE = """\
inherits = "cortex-a76"
description = "A camera with two cores"
cores = 2
registers = 24
l2_bytes = 262144
"""

needs_qemu = pytest.mark.skipif(
    not shutil.which("qemu-aarch64") or not shutil.which("aarch64-linux-gnu-gcc"),
    reason="qemu-aarch64 or aarch64-linux-gnu-gcc is not installed",
)

_USE = """\
import sys
import numpy as np
import tilewright
x = np.linspace(-3, 3, 2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
model = tilewright.compile(sys.argv[1], sys.argv[2])
assert len(model.program.steps) == 1, "the operator is fused into what feeds it"
np.testing.assert_array_equal(model(x)[0], np.clip(x + x, -1, 1))
print("right")
"""


@pytest.fixture
def toy_operator(tmp_path: Path) -> Path:
    """A model with an operator that nothing of ours knows, and the one file that docs/operators.md shows,
    installed as a package of a third party: it says in its metadata where its operators are."""
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?OPERATORS.*?)```", text, re.S)
    assert found is not None
    (tmp_path / "toy_operator.py").write_text(found.group(1))
    info = tmp_path / "toy_operator-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-operator\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tilewright.kernels]\ntoy = toy_operator\n")
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("HardTanh", ["twice"], ["y"], domain="com.microsoft"),
    ]
    path = tmp_path / "model.onnx"
    path.write_bytes(
        model(nodes, {"x": [2, 5, 7]}, ["y"], domains=["com.microsoft"]).SerializeToString()
    )
    return path


@pytest.mark.parametrize(
    "target", ["host", pytest.param("cortex-a76", marks=needs_qemu), "cortex-m4"]
)
def test_an_operator(toy_operator: Path, target: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(toy_operator.parent)}
    if target == "cortex-m4":  # an artifact: no emulator is needed
        out = str(toy_operator.parent / "artifact")
        command = ["-m", "tilewright.cli", "compile", str(toy_operator), "-t", target, "-o", out]
    else:
        command = ["-c", _USE, str(toy_operator), target]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert target == "cortex-m4" or done.stdout == "right\n"


def test_without_its_file_the_operator_is_refused(toy_operator: Path) -> None:
    with pytest.raises(Exception, match="HardTanh"):
        api.compile(toy_operator)


@needs_qemu
def test_a_device_from_a_string() -> None:
    """The schedule keeps to the device's 24 registers; the code runs."""
    camera = target_from_table("camera", tomllib.loads(DEVICE))
    assert camera == replace(
        load_target("cortex-a76"), name="camera", description=camera.description, cores=2,
        registers=24, l2_bytes=262144,
    )  # fmt: skip
    b = Builder(x=(1, 32, 9, 9))
    b.const("w", np.random.default_rng(0).standard_normal((24, 32, 1, 1)))
    b.conv("y", "x", "w")
    graph = b.done("y")
    there, here = api.compile(graph, camera), api.compile(graph)
    x = np.random.default_rng(1).standard_normal((1, 32, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(there(x)[0], here(x)[0], rtol=1e-5, atol=1e-5)
    assert there.program.traces != api.compile(graph, "cortex-a76").program.traces


@needs_qemu
def test_a_device_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "camera.toml"
    path.write_text(DEVICE)
    data = ROOT / "tests" / "data" / "mlperftiny_dscnn_kws_fp32_randw.onnx"
    for arguments in (["targets", str(path)], ["run", str(data), "--target", str(path)]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code
    out = capsys.readouterr().out
    assert "A camera with two cores" in out and "(emulated)" in out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cores = 2", "missing fields"),
        ('inherits = "cortex-a76"\ncores = "two"', "`cores` must be int"),
        ('inherits = "cortex-a76"\ncolour = 1', r"unknown fields \['colour'\]"),
        ("cores = ", "is not TOML"),
    ],
)
def test_a_file_that_is_no_device(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "camera.toml"
    path.write_text(text)
    with pytest.raises(TargetError, match=problem):
        load_target(str(path))
    with pytest.raises(TargetError, match="cannot be read: No such file"):
        load_target(str(tmp_path / "none.toml"))
