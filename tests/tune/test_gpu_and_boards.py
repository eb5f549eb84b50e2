"""Tuning for devices that are not here: GPUs by the static model, microcontrollers by counted instructions."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tune_helpers import conv_graph, kernel_of, kernels_of, matmul_graph

from tilewright.core.dtypes import I8
from tilewright.device.qemu_system import EMULATOR
from tilewright.errors import ScheduleError, TilewrightError
from tilewright.graph.ir import Attrs, Graph, Node, TensorType
from tilewright.loop import simt
from tilewright.pipeline import build
from tilewright.registry import operator
from tilewright.schedule.space import Space
from tilewright.schedule.target import Target, load_target
from tilewright.tune import board, records
from tilewright.tune.admit import admit
from tilewright.tune.estimate import estimate
from tilewright.tune.identity import sum_length
from tilewright.tune.library import default_trace, load_library, space_of
from tilewright.tune.measure import Job, measure
from tilewright.tune.tuner import Tuner

M4, M55, SM80 = (load_target(n) for n in ("cortex-m4", "cortex-m55", "cuda-sm80"))
HERE = shutil.which("arm-none-eabi-gcc") is not None and shutil.which(EMULATOR) is not None
emulated = pytest.mark.skipif(not HERE, reason=f"no {EMULATOR} or arm-none-eabi-gcc")


def int8_graph(depthwise: bool = False) -> Graph:
    """x -> int8 convolution -> requantize -> y."""
    rng = np.random.default_rng(0)
    g = Graph("layer", ["x"], ["y"])
    g.types["x"] = TensorType(I8, (1, 16, 8, 8))
    g.add_constant("w", rng.integers(-127, 128, (16, 1 if depthwise else 16, 3, 3)).astype(np.int8))
    g.add_constant("b", rng.integers(-999, 999, 16).astype(np.int32))
    g.add_constant("m", rng.integers(1 << 20, 1 << 22, (16, 1, 1)).astype(np.int32))
    attrs: Attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "pad_value": -3}
    op = "depthwise_conv2d" if depthwise else "conv2d"
    attrs = attrs if depthwise else {**attrs, "group": 1}
    scale: Attrs = {"shift": 0, "zero_point": -3, "low": -128, "high": 127, "to": "i8"}
    g.nodes = [
        Node("conv", op, ("x", "w", "b"), ("t",), attrs),
        Node("scale", "requantize", ("t", "m"), ("y",), scale),
    ]
    (g.types["t"],) = operator(op).infer([g.types[i] for i in ("x", "w", "b")], attrs)
    g.types["y"] = TensorType(I8, g.types["t"].shape)
    return g


GRAPHS = {
    "conv": conv_graph(), "matmul": matmul_graph(), "int8": int8_graph(), "int8-depthwise": int8_graph(True)
}  # fmt: skip


def _space(graph: Graph, op: str, target: Target) -> Space:
    found, raw = kernel_of(graph, op, target)
    space = space_of(found, raw, target)
    assert space is not None
    return space


@pytest.mark.parametrize(
    "target", [M4, M55, SM80, load_target("cuda-sm80+tf32")], ids=lambda t: t.name
)
@pytest.mark.parametrize("name", GRAPHS)
def test_default_is_a_point_and_others_are_legal(name: str, target: Target) -> None:
    rng = random.Random(name)
    found = 0
    for op, raw in kernels_of(GRAPHS[name], target):
        space = space_of(op, raw, target)
        if space is None:
            continue
        found += 1
        assert space.trace(space.default) == default_trace(op, raw, target)
        assert space.cost(space.default) < float("inf")
        for _ in range(12):
            choice = {n: rng.choice(v) for n, v in space.params.items()}
            if space.cost(choice) == float("inf"):
                continue
            try:
                admit(raw, space.trace(choice))
            except ScheduleError:
                continue
    assert found


def test_families() -> None:
    assert _space(GRAPHS["int8"], "conv2d", M4).family == "mcu-dot"
    assert _space(GRAPHS["int8"], "conv2d", M55).params["width"] == (1, 4, 8, 16)
    assert _space(GRAPHS["int8-depthwise"], "depthwise_conv2d", M4).family == "mcu-depthwise"
    assert _space(GRAPHS["int8"], "conv2d", SM80).family == "gpu-tensor-cores"
    assert _space(GRAPHS["conv"], "conv2d", SM80).family == "gpu-tiled"
    assert _space(GRAPHS["matmul"], "softmax", SM80).family in ("gpu-rows", "gpu-outputs")


@pytest.mark.parametrize("name", ["conv", "int8"])
def test_what_a_gpu_cannot_launch_is_never_made(name: str) -> None:
    """Points of finite cost keep within threads, registers and shared memory of a block."""
    space = _space(GRAPHS[name], "conv2d", SM80)
    _, raw = kernel_of(GRAPHS[name], "conv2d", SM80)
    rng = random.Random(0)
    impossible = 0
    for _ in range(60):
        choice = {n: rng.choice(v) for n, v in space.params.items()}
        if space.cost(choice) == float("inf"):
            impossible += 1
            with pytest.raises(ScheduleError):
                space.trace(choice)
            continue
        try:
            made = admit(raw, space.trace(choice))
        except ScheduleError:
            continue
        seconds, source = estimate(made, SM80)
        assert 0 < seconds < 1 and source == "gpu-model"
    assert impossible


def test_gpu_winners_are_run_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that the model likes is believed only if its results are right."""
    op, raw = kernel_of(GRAPHS["conv"], "conv2d", SM80)
    space = space_of(op, raw, SM80)
    assert space is not None
    slow = space.trace({**space.default, "oh_threads": 1, "ow_threads": 4})
    job = Job(
        raw, SM80, slow, (space.trace(space.default),), sum_length(raw), mode="estimate", check=True
    )
    (outcome,) = measure(job)
    assert outcome.verdict == "faster" and outcome.source == "gpu-model"
    assert "same results in the interpreter" in outcome.note

    def wrong(*args: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        written = run(*args)  # type: ignore[arg-type]
        for name in written:
            args[1][name] += 1  # type: ignore[index]
        return written

    run = simt.run
    monkeypatch.setattr(simt, "run", wrong)
    (outcome,) = measure(job)
    assert outcome.verdict == "wrong"


def test_tuning_for_a_gpu(tmp_path: Path) -> None:
    result = Tuner(GRAPHS["conv"], SM80, tmp_path, seed=0).run(3)
    assert result.state.source == "estimate" and result.comparison is None
    assert result.state.trials > 0 and not result.state.failures
    found = list(records.read(tmp_path, SM80.name))
    assert {r.source for r in found if r.ratio is not None} == {"gpu-model"}
    for r in found:
        if r.kind == "winner" and r.verdict == "faster":
            assert "estimate" in r.note
    program = build(GRAPHS["conv"], SM80, library=load_library(SM80, [tmp_path]))
    reasons = [r for r in program.reasons.values() if "log record" in r]
    assert all("estimated by gpu-model" in r for r in reasons)


def test_a_gpu_has_no_device(tmp_path: Path) -> None:
    with pytest.raises(TilewrightError, match="leave out the device `emulator`"):
        Tuner(GRAPHS["conv"], SM80, tmp_path, device="emulator")


@emulated
def test_instructions_on_a_board() -> None:
    """One run counts the default and all candidates, and compares what they computed."""
    op, raw = kernel_of(GRAPHS["int8"], "conv2d", M4)
    space = space_of(op, raw, M4)
    assert space is not None
    small = {**space.default, "pixels": 1, "channels": 1}
    traces = tuple(space.trace(c) for c in (space.default, small, {**small, "width": 1}))
    outcomes = measure(
        Job(raw, M4, space.trace(space.default), traces, sum_length(raw), mode="device")
    )
    assert [o.verdict for o in outcomes] == ["same", "slower", "slower"]
    assert all(o.source == "instructions" and o.note.startswith("estimate: ") for o in outcomes)
    counts = [int(o.note.split()[1]) for o in outcomes]
    assert 150_000 < counts[0] < counts[1] < counts[2], counts


@emulated
def test_a_wrong_candidate_is_found_on_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    op, raw = kernel_of(GRAPHS["int8"], "conv2d", M4)
    default = default_trace(op, raw, M4)
    run = board.run_on_emulator

    def off(*args: object) -> object:
        counts, outputs = run(*args)  # type: ignore[arg-type]
        return counts, [*outputs[:-1], [outputs[-1][0] ^ 1]]

    monkeypatch.setattr(board, "run_on_emulator", off)
    (outcome,) = board.measure_on_board(raw, M4, default, [default], 1)
    assert outcome.verdict == "wrong"


@emulated
def test_a_candidate_that_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    op, raw = kernel_of(GRAPHS["int8"], "conv2d", M4)
    default = default_trace(op, raw, M4)
    run = board.run_on_emulator

    def fails(kernels: list[object], *args: object) -> object:
        if any(k == bad for k in kernels):
            raise TilewrightError("the processor took a fault")
        return run(kernels, *args)  # type: ignore[arg-type]

    bad = admit(raw, ())
    monkeypatch.setattr(board, "run_on_emulator", fails)
    monkeypatch.setattr(board, "MAX_PLAIN", 0)
    found = board.measure_on_board(raw, M4, default, [default, ()], 1)
    assert [o.verdict for o in found] == ["same", "crash"]


@emulated
def test_tuning_for_a_microcontroller(tmp_path: Path) -> None:
    result = Tuner(GRAPHS["int8"], M4, tmp_path, seed=0).run(5)
    assert result.state.source == "estimate" and result.state.trials > 0
    assert any("instructions counted in an emulator" in n for n in result.state.notes)
    compared = [r for r in records.read(tmp_path, M4.name) if r.ratio is not None]
    assert compared and {r.source for r in compared} == {"instructions"}
