"""Checked code: every index outside its buffer is found before the access, on every kind of target."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import tilewright
from tilewright.artifact.toolchain import find_compiler
from tilewright.artifact.verify import verify_artifact
from tilewright.cli import app
from tilewright.core.dtypes import F32
from tilewright.core.index import Ix
from tilewright.device.qemu_system import EMULATOR
from tilewright.errors import AccessError, TargetError, TilewrightError
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.loop.ir import Kernel, Load
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import map_block, map_loads
from tilewright.pipeline import build, resolve_target
from tilewright.program import Program
from tilewright.session import Session
from tilewright.testing.native import Native
from tilewright.testing.worker import Outcome, shared

SCALAR = """kernel scalar(x: f32[8, 4], out y: f32[8, 4])
  for i in 8:
    for j in 4:
      y[i, j] = x[i + {shift}, j]:f32
"""
VECTOR = """kernel wide(x: f32[10], out y: f32[10])
  for i in {blocks}:
    vector j in 5:
      y[i*5 + j] = x[i*5 + j]:f32
"""
OPEN = """kernel open(x: f32[11], out y: f32[11])
  for i in 3:
    vector j in min(4, i*-4 + 11):
      y[i*4 + j] = x[i*4 + j + {shift}]:f32
"""
RANGE = """kernel chosen(x: i64[3], z: f32[7], out y: f32[3])
  for i in 3:
    let at in 0..6 = (x[i]:i64 + {shift}:i64)
    y[i] = z[at]:f32
"""
PARALLEL = """kernel wide(x: f32[10], out y: f32[10])
  parallel i in 10:
    y[i] = x[i + {shift}]:f32
"""


def run(text: str) -> Outcome:
    kernel = parse(text)
    arrays = {
        p.buffer.name: np.arange(np.prod(p.buffer.shape))
        .reshape(p.buffer.shape)
        .astype(p.buffer.dtype.numpy)
        for p in kernel.params
        if p.role != "out"
    }
    return shared().run(Native(kernel, resolve_target("host"), arrays, checked=True))


@pytest.mark.parametrize(
    ("text", "bad", "message", "buffer"),
    [
        (SCALAR, {"shift": 1}, "scalar reads x outside dim 0, which has 8 elements: it is 8", "x"),
        (SCALAR, {"shift": -2}, "scalar reads x outside dim 0, which has 8 elements: it is -2", "x"),
        (OPEN, {"shift": 1}, "open reads x outside dim 0, which has 11 elements: it is 11", "x"),
        (RANGE, {"shift": 5}, "chosen: `at` is outside its range of 0 to 6: it is 7", ""),
        (PARALLEL, {"shift": 1}, "wide reads x outside dim 0, which has 10 elements: it is 10", "x"),
    ],
)  # fmt: skip
def test_one_index_too_far(text: str, bad: dict[str, int], message: str, buffer: str) -> None:
    good = run(text.format(shift=0))
    assert not good.problem, good
    found = run(text.format(**bad))
    assert (found.problem, found.message, found.buffer) == ("outside", message, buffer)


def test_vectors() -> None:
    assert not run(VECTOR.format(blocks=2)).problem
    found = run(VECTOR.format(blocks=3))
    assert found.problem == "outside" and found.message.endswith("10 elements: it is 10")


# ---------------------------------------------------------------- whole models


def graph() -> Graph:
    g = Graph("small", ["x"], ["y"])
    g.types["x"] = TensorType(F32, (3, 40))
    w = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    g.types["m"] = g.types["y"] = TensorType(F32, (3, 24))
    g.nodes = [
        Node("product", "matmul", ("x", g.add_constant("w", w)), ("m",), {}),
        Node("soft", "softmax", ("m",), ("y",), {"axis": 1}),
    ]
    return g


def broken(program: Program) -> Program:
    """The program with one index of its first kernel too far."""

    def spoil(kernel: Kernel) -> Kernel:
        name = kernel.params[0].buffer.name

        def load(e: Load) -> Load:
            far = (*e.index[:-1], e.index[-1] + Ix(1))
            return Load(e.buffer, far, e.dtype) if e.buffer == name else e

        return replace(kernel, body=map_block(kernel.body, expr=lambda e: map_loads(e, load)))

    first, *rest = program.kernels
    return replace(program, kernels=(spoil(first), *rest)).with_checks()


def test_results_are_the_same() -> None:
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    plain, checked = (tilewright.compile(graph(), checked=c)(x)[0] for c in (False, True))
    assert np.array_equal(plain, checked)


def test_a_model_says_what_is_wrong() -> None:
    program = broken(build(graph(), "host"))
    with pytest.raises(
        AccessError, match=r"matmul reads .* outside dim 1, which has 40 elements: it is 40"
    ):
        Session(program).run()


def test_threads() -> None:
    x = np.ones((3, 40), np.float32)
    assert np.isfinite(tilewright.compile(graph(), threads=2, checked=True)(x)[0]).all()


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_artifact_says_what_is_wrong(tmp_path: Path) -> None:
    from tilewright.api import write

    written = write(broken(build(graph(), "host")), tmp_path / "a")
    text = (written.directory / "small.h").read_text()
    assert "small_fault(int32_t code)" in text and "SMALL_FAULT_INDEX" in text
    model = tilewright.load(written.directory)
    with pytest.raises(AccessError, match="it is 40"):
        model(np.ones((3, 40), np.float32))
    assert not verify_artifact(written.directory)


@pytest.mark.parametrize("target", ["cortex-a76", "cortex-m4"])
def test_other_machines(target: str) -> None:
    """Code with checks is generated for every CPU, and runs where an emulator is installed."""
    from tilewright import api

    program = build(graph(), target)
    assert api.generate(program.with_checks()).code
    machine = resolve_target(target)
    emulator = EMULATOR if machine.board else machine.emulator[0]
    compiler = shutil.which("arm-none-eabi-gcc") if machine.board else find_compiler(machine.triple)
    if not shutil.which(emulator) or not compiler:
        pytest.skip(f"nothing here runs code for {target}")
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    good = api.remote(program.with_checks())(x)[0]
    assert np.array_equal(good, api.remote(program)(x)[0])
    with pytest.raises(TilewrightError, match="outside dim 1, which has 40 elements"):
        api.remote(broken(program))(x)


def test_gpus_are_refused_clearly() -> None:
    with pytest.raises(TargetError, match="no checked mode: run it with `--device emulator`"):
        tilewright.compile(graph(), "cuda-sm80", device="emulator", checked=True)


def test_command_line(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 5]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]))
    onnx.save(model, str(tmp_path / "relu.onnx"))
    runner = CliRunner()
    done = runner.invoke(app, ["run", str(tmp_path / "relu.onnx"), "--checked", "--repeat", "1"])
    assert done.exit_code == 0, done.output
    out = str(tmp_path / "out")
    done = runner.invoke(app, ["compile", str(tmp_path / "relu.onnx"), "-o", out, "--checked"])
    assert done.exit_code == 0, done.output
    assert "faults" in (tmp_path / "out" / "manifest.json").read_text()
