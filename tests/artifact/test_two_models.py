"""Two models in one C program: symbols do not clash, and nothing is shared but the stack."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tilewright.api import write
from tilewright.artifact.toolchain import find_compiler
from tilewright.pipeline import build
from tilewright.session import Session

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = {
    "kws": DATA / "mlperftiny_dscnn_kws_fp32_randw.onnx",
    "ic": DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx",
}

MAIN = """
#include "kws.h"
#include "ic.h"
#include <stdio.h>
static _Alignas(64) unsigned char arena[KWS_ARENA_BYTES > IC_ARENA_BYTES ? KWS_ARENA_BYTES : IC_ARENA_BYTES];
static kws_input_0_t a[KWS_INPUT_0_ELEMENTS];
static ic_input_0_t b[IC_INPUT_0_ELEMENTS];
static kws_output_0_t x[KWS_OUTPUT_0_ELEMENTS];
static ic_output_0_t y[IC_OUTPUT_0_ELEMENTS];
int main(void) {
  const void *ins[] = {a, b};
  void *outs[] = {x, y};
  for (int i = 0; i < KWS_INPUT_0_ELEMENTS; ++i) a[i] = (float)(i % 7) / 7.0f;
  for (int i = 0; i < IC_INPUT_0_ELEMENTS; ++i) b[i] = (float)(i % 7) / 7.0f;
  if (kws_run(&ins[0], &outs[0], arena) || ic_run(&ins[1], &outs[1], arena)) return 1;
  fwrite(x, 1, sizeof x, stdout);
  fwrite(y, 1, sizeof y, stdout);
  return 0;
}
"""


@pytest.mark.parametrize("kind", ["o", "a"])
def test_two_models_link_into_one_program(kind: str, tmp_path: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler is installed")
    want = b""
    for name, path in FILES.items():
        program = build(path, name=name)
        write(program, tmp_path / name)
        (t,) = program.inputs
        x = ((np.arange(t.type.size) % 7).astype(np.float32) / np.float32(7)).reshape(t.type.shape)
        session = Session(program)
        session.set_inputs([x])
        want += session.run()[0].tobytes()
    (tmp_path / "main.c").write_text(MAIN, encoding="utf-8")
    libraries = [f"{name}/{name}.{kind}" for name in FILES]
    headers = [f"-I{name}" for name in FILES]
    compiler.run(
        ["-std=c11", "-O2", "-Wall", *headers, "main.c", *libraries, "-o", "both"], tmp_path
    )
    done = subprocess.run([tmp_path / "both"], check=True, capture_output=True)
    assert done.stdout == want
