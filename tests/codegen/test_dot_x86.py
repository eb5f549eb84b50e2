"""Sums of byte products on x86-64: the same whole numbers with VNNI and without, at the ends of the range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.codegen.llvm import runs_here
from tilewright.core.dtypes import I8, U8, DType
from tilewright.graph.interp import run
from tilewright.pipeline import build
from tilewright.schedule.target import load_target

RESNET8 = Path(__file__).parents[1] / "data" / "mlperftiny_resnet8_ic_fp32_randw.onnx"
INSTRUCTION = {"x86-64-v3": "vpmaddwd", "x86-64-v4": "vpmaddwd", "x86-64-v4-vnni": "vpdpbusd"}


@pytest.mark.parametrize("channels", [16, 24, 7])
@pytest.mark.parametrize("weights", [I8, U8], ids=str)
@pytest.mark.parametrize("pixels", [I8, U8], ids=str)
@pytest.mark.parametrize("name", INSTRUCTION)
def test_matmul(name: str, pixels: DType, weights: DType, channels: int) -> None:
    rng = np.random.default_rng(0)
    low, high = np.iinfo(weights.numpy).min, np.iinfo(weights.numpy).max
    w = rng.choice([low, low + 1, 0, high], (36, channels)).astype(weights.numpy)
    b = Builder()
    b.input("x", (9, 36), pixels)
    b.graph.add_constant("w", w)
    graph = b.done(b.node("matmul", "y", "x", "w"))
    ends = np.iinfo(pixels.numpy)
    x = rng.choice([ends.min, ends.min + 1, -1 % 256 if ends.min == 0 else -1, ends.max], (9, 36))
    x = x.astype(pixels.numpy)
    program = build(graph, name)
    if channels == 16 and (pixels, weights) != (U8, U8):
        assert INSTRUCTION[name] in api.assembly(program)
    if not runs_here(load_target(name)):
        pytest.skip(f"this machine cannot run {name}")
    (y,) = api.CompiledModel(program)(x)
    np.testing.assert_array_equal(y, run(graph, {"x": x})["y"])


def test_logs_of_a_kindred_target_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tuned for x86-64-v4 is used with VNNI too, which changes byte products only."""
    monkeypatch.setenv("TILEWRIGHT_LOGS", str(tmp_path))
    plain, kindred = (build(RESNET8, name).reasons for name in ("x86-64-v4", "x86-64-v4-vnni"))
    assert plain == kindred
    assert any("log" in why for why in plain.values())
