"""Estimates for devices that are not at hand, and candidates on devices that are."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from tune_helpers import conv_graph, kernel_of, matmul_graph

from tilewright.pipeline import resolve_target
from tilewright.schedule.target import load_target
from tilewright.schedule.trace import step
from tilewright.tune import estimate as module
from tilewright.tune.admit import finish
from tilewright.tune.estimate import estimate
from tilewright.tune.identity import sum_length
from tilewright.tune.library import default_trace, space_of
from tilewright.tune.measure import Job, measure

A76 = load_target("cortex-a76")


@pytest.mark.parametrize("target", ["cortex-a76", "cortex-a53", "x86-64-v3"])
@pytest.mark.parametrize("mca", [True, False])
def test_small_tiles_are_worse(target: str, mca: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if mca and shutil.which("llvm-mca") is None:
        pytest.skip("needs llvm-mca (apt-get install llvm)")
    monkeypatch.setattr(module, "_mca_command", lambda: shutil.which("llvm-mca") if mca else None)
    machine = load_target(target)
    op, raw = kernel_of(conv_graph(size=16, channels=32, filters=48), "conv2d", machine)
    space = space_of(op, raw, machine)
    assert space is not None
    good, source = estimate(finish(raw, default_trace(op, raw, machine)), machine)
    poor = {**space.default, "tile0": 1, "tile1": 1, "vectors": 1}
    bad, _ = estimate(finish(raw, space.trace(poor)), machine)
    plain, _ = estimate(finish(raw, ()), machine)
    assert source == ("llvm-mca" if mca else "instructions")
    assert good < 0.8 * bad < 0.8 * plain


def test_time_grows_with_the_work() -> None:
    times = []
    for k in (64, 128, 256):
        op, raw = kernel_of(matmul_graph(64, 64, k), "matmul", A76)
        times.append(estimate(finish(raw, default_trace(op, raw, A76)), A76)[0])
    assert times[1] == pytest.approx(2 * times[0], rel=0.25)
    assert times[2] == pytest.approx(2 * times[1], rel=0.25)


def test_gpu_model_sees_waves_and_traffic() -> None:
    """More threads per block and coalesced operands are estimated to be faster; only the IR is needed."""
    from tilewright.core.dtypes import F32
    from tilewright.core.index import Ix, ix
    from tilewright.loop.ir import Binary, For, Kernel, Load, Param, Store, dense

    gpu = load_target("cuda-sm80").gpu
    assert gpu is not None
    n = 1 << 20

    def copy(threads: int) -> Kernel:
        at = (ix("b") * threads + ix("t"),)
        x = Load("x", at, F32)
        body = For("t", Ix(threads), (Store("y", at, Binary("add", x, x)),), "thread")
        params = (Param(dense("x", F32, (n,)), "in"), Param(dense("y", F32, (n,)), "out"))
        return Kernel("copy", params, (For("b", Ix(n // threads), (body,), "block"),))

    narrow, wide = module.gpu_seconds(copy(8), gpu), module.gpu_seconds(copy(256), gpu)
    assert wide < narrow
    assert wide >= 8 * n / gpu.bandwidth


def job_for(address: str | None, target: str) -> Job:
    machine = load_target(target) if target != "host" else resolve_target("host")
    op, raw = kernel_of(conv_graph(), "conv2d", machine)
    space = space_of(op, raw, machine)
    assert space is not None
    poor = {**space.default, "tile0": 1, "tile1": 1, "vectors": 1}
    traces = (space.trace(poor), (step("split", "none", 2, "a", "b"),))
    return Job(
        raw, machine, default_trace(op, raw, machine), traces, sum_length(raw),
        mode="device", address=address,
    )  # fmt: skip


def test_candidates_on_a_device() -> None:
    """`local` is a device like any other: one program, results compared, times interleaved."""
    if shutil.which("gcc") is None and shutil.which("clang") is None:
        pytest.skip("needs a C compiler to link the program for the device")
    outcomes = measure(job_for("local", "host"))
    assert outcomes[0].source == "measured" and outcomes[0].ratio is not None
    assert outcomes[0].verdict in ("slower", "same", "faster")
    assert outcomes[1].verdict == "illegal" and "no loop `none`" in outcomes[1].note


def test_candidates_in_an_emulator() -> None:
    if shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs qemu-user and aarch64-linux-gnu-gcc")
    outcomes = measure(job_for("emulator", "cortex-a76"))
    assert outcomes[0].verdict == "slower" and outcomes[0].source == "instructions"
    assert "estimate" in outcomes[0].note


def test_winning_estimates_are_checked_in_the_emulator() -> None:
    if shutil.which("qemu-aarch64") is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs qemu-user and aarch64-linux-gnu-gcc")
    job = job_for(None, "cortex-a76")
    # the default against a poor schedule: the estimate calls it faster, the emulator agrees on results
    turned = replace(
        job, default=job.candidates[0], candidates=(job.default,), mode="estimate", check=True
    )
    (outcome,) = measure(turned)
    assert outcome.verdict == "faster" and "same results in the emulator" in outcome.note
