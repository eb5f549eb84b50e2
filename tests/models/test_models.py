"""Real models end to end: compiled code against the reference, and the artifact as a C program.

Runs over every model of the zoo that is on this machine (`tilewright models --fetch` brings them); the
small ones of tests/data are always there. The large ones are marked slow.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import tilewright
from tilewright.artifact.toolchain import find_compiler
from tilewright.artifact.verify import verify_artifact
from tilewright.bench.inputs import make_inputs
from tilewright.bench.verify import Verifier
from tilewright.bench.zoo import ZooModel, find, zoo

TOLERANCE = 1e-4
SMALL = 4_000_000


def cases() -> list[object]:
    out: list[object] = []
    for model in zoo().values():
        path = find(model)
        big = path is not None and path.stat().st_size > SMALL
        heavy = big or "light" in model.name or "ppocr" in model.name or "nudenet" in model.name
        marks = [pytest.mark.slow] if heavy else []
        out.append(pytest.param(model, id=model.name, marks=marks))
    return out


@pytest.mark.parametrize("model", cases())
def test_model(model: ZooModel, tmp_path: Path) -> None:
    path = find(model)
    if path is None:
        pytest.skip(f"{model.name} is not on this machine: `tilewright models --fetch` brings it")
    compiled = tilewright.compile(path, shapes=model.shapes)
    inputs = make_inputs(compiled.inputs, compiled.program.graph, 0)
    report = Verifier(path, compiled, TOLERANCE).verify(inputs)
    assert report.passed, report

    written = compiled.save(tmp_path)
    assert verify_artifact(tmp_path) == []
    want = compiled(*inputs)
    for threads in (1, 2):
        loaded = tilewright.load(tmp_path, threads=threads)
        for a, b in zip(want, loaded(*inputs), strict=True):
            assert a.tobytes() == b.tobytes()
    compiler = find_compiler()
    if compiler is None:
        pytest.skip(f"no C compiler: {written.notes}")
    name = compiled.name
    compiler.run(
        ["-std=c11", "-O1", "-Wall", "-Werror", "example.c", f"{name}.o", "-o", "run"], tmp_path
    )
    files = [tmp_path / f"in{i}.bin" for i in range(len(inputs))]
    results = [tmp_path / f"out{i}.bin" for i in range(len(want))]
    for f, a in zip(files, inputs, strict=True):
        a.tofile(f)
    subprocess.run([tmp_path / "run", *files, *results], check=True, capture_output=True)
    for f, a in zip(results, want, strict=True):
        assert np.fromfile(f, a.dtype).tobytes() == a.tobytes(), f"{name}: the C program differs"
