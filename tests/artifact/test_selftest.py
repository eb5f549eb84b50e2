"""NAME_selftest: right on a sound model, wrong results are noticed, the same inputs in C and NumPy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright import api
from tilewright.artifact.selftest import expect, make_inputs
from tilewright.core.dtypes import ALL
from tilewright.graph.ir import Graph, Node, TensorType
from tilewright.pipeline import build
from tilewright.runtime.model import Spec, TensorSpec

DATA = Path(__file__).resolve().parents[1] / "data"
CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler")

_MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "{n}.h"
int main(void) {{
  void *arena = aligned_alloc({N}_ARENA_ALIGN, ({N}_ARENA_BYTES + 63) / 64 * 64);
  void *scratch = aligned_alloc({N}_ARENA_ALIGN, ({N}_SELFTEST_SCRATCH_BYTES + 63) / 64 * 64);
  return {n}_selftest(arena, scratch);
}}
"""


def built(folder: Path, name: str) -> int:
    """Exit code of a program that runs the self-test of the artifact in `folder`."""
    assert CC is not None
    (folder / "main.c").write_text(_MAIN.format(n=name, N=name.upper()), encoding="utf-8")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
    sources = ["main.c", f"{name}_selftest.c", f"{name}.a", "-pthread", "-o", "test"]
    subprocess.run([CC, *flags, *sources], cwd=folder, check=True)
    return subprocess.run([folder / "test"], check=False).returncode


def graph(dtype: str) -> Graph:
    """y = x + x in `dtype`, which is also an output as f32 (or i32) where there is a cast."""
    g = Graph("tiny", [], [])
    g.types["x"] = g.types["y"] = TensorType(ALL[dtype], (3, 5))
    g.inputs.append("x")
    g.outputs.append("y")
    g.nodes.append(Node("double", "max" if dtype == "bool" else "add", ("x", "x"), ("y",)))
    return g


@needs_cc
@pytest.mark.parametrize(
    "dtype", ["f16", "f32", "f64", "i8", "u8", "i16", "i32", "i64", "u16", "u32", "u64", "bool"]
)
def test_every_type(tmp_path: Path, dtype: str) -> None:
    g = graph(dtype)
    if dtype == "bool":
        g.nodes[0] = g.nodes[0].with_(op="or")
    program = build(g)
    api.write(program, tmp_path / "out", selftest=True)
    assert built(tmp_path / "out", "tiny") == 0


@needs_cc
@pytest.mark.parametrize("kind", ["fp32_randw", "int8_qdq"])
def test_a_model_and_a_model_that_went_wrong(tmp_path: Path, kind: str) -> None:
    name = f"mlperftiny_resnet8_ic_{kind}"
    folder = tmp_path / "out"
    program = build(DATA / f"{name}.onnx")
    api.write(program, folder, selftest=True)
    assert built(folder, name) == 0
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["selftest"]["outputs"][0]["at"] == list(range(10))
    assert f"{name}_selftest.c" in facts["files"]
    test = folder / f"{name}_selftest.c"
    text = test.read_text()
    changed = re.sub(r"(want_0\[\] = \{\s+)-?[0-9.e+-]+", r"\g<1>77", text)
    assert changed != text
    test.write_text(changed.replace("77f", "77.0f"))
    assert built(folder, name) == 2


def test_the_same_text_every_time(tmp_path: Path) -> None:
    texts = []
    for target in ("host", "host", "x86-64-v3"):
        folder = tmp_path / str(len(texts))
        api.write(build(graph("f32"), target), folder, selftest=True)
        texts.append((folder / "tiny_selftest.c").read_text())
    assert len(set(texts)) == 1


def test_inputs_are_within_their_ranges() -> None:
    shapes: Mapping[str, Any] = {
        "float32": (0.0, 1.0), "float16": (1.0, 2.0), "int64": (3, 9), "uint8": (3, 9),
    }  # fmt: skip
    for dtype, (low, high) in shapes.items():
        spec = Spec("m", "t", (TensorSpec("x", (100, 7), dtype),), (), 0, 0, ())
        (x,) = make_inputs(spec, [(3, 6)], 1)
        assert x.dtype == dtype and x.shape == (100, 7)
        assert low <= x.min() and x.max() < high
        assert len(np.unique(x)) > 5


def test_what_is_not_finite_is_left_out() -> None:
    e = expect(np.array([1.0, np.inf, np.nan, -4.0], np.float32))
    assert e.at == (0, 3) and e.values == (1.0, -4.0) and e.tolerance == pytest.approx(4e-3)
    assert expect(np.zeros((0, 3), np.float32)).at == ()
    assert expect(np.array([5], np.int64)).tolerance == 0
