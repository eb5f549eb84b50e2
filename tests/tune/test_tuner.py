"""Tuning from end to end on small graphs: it ends, it resumes, it loses nothing."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tune_helpers import conv_graph, kernel_of, matmul_graph

import tilewright
from tilewright.pipeline import resolve_target
from tilewright.schedule.target import load_target
from tilewright.tune import measure as measuring
from tilewright.tune import records
from tilewright.tune.identity import extents, kernel_hash, target_hash
from tilewright.tune.library import load_library, space_of
from tilewright.tune.records import Record
from tilewright.tune.state import Result, State
from tilewright.tune.tuner import Tuner
from tilewright.tune.ways import unmeasured

HOST = resolve_target("host")
#: Seconds that a test which waits for trials gives a busy machine.
PATIENCE = 600


def tune(folder: Path, seconds: float = 3.0, **options: Any) -> Result:
    graph = options.pop("graph", None) or matmul_graph()
    return Tuner(graph, options.pop("target", HOST), folder, seed=0, **options).run(seconds)


def until(trials: int) -> Callable[[State], None]:
    """A report that ends the search after so many trials, however long this machine takes for them."""

    def report(state: State) -> None:
        if state.trials >= trials:
            state.deadline = time.monotonic()

    return report


def tune_until(folder: Path, trials: int, **options: Any) -> Result:
    return tune(folder, PATIENCE, report=until(trials), **options)


def logged(folder: Path, kind: str = "trial", target: str = HOST.name) -> list[Record]:
    problems: list[str] = []
    found = [r for r in records.read(folder, target, problems) if r.kind == kind]
    assert not problems
    return found


def test_finds_logs_and_resumes(tmp_path: Path) -> None:
    first = tune_until(tmp_path, 1)
    trials = logged(tmp_path)
    assert first.state.trials == len(trials) > 0
    assert all(r.verdict in ("faster", "slower", "same") and r.source == "measured" for r in trials)
    assert first.comparison is not None and first.comparison.ratio > 0.1
    second = tune_until(tmp_path, 1)
    more = logged(tmp_path)
    assert len(more) == len(trials) + second.state.trials > len(trials)
    keys = [(r.kernel, str(r.trace)) for r in more]
    assert len(set(keys)) == len(keys), "a candidate was measured twice"


def test_ways_to_compute_a_node_come_first(tmp_path: Path) -> None:
    graph = conv_graph(size=8, channels=16, filters=16)
    result = tune(tmp_path, 1, graph=graph)
    (record,) = logged(tmp_path, "variant")
    assert set(result.ways[0].seconds) == {"", "winograd2", "winograd4"}
    assert max(result.ways[0].errors.values()) < 1e-4
    assert record.operator == "conv2d" and "winograd4" in record.note
    assert not unmeasured(graph, HOST, load_library(HOST, [tmp_path]))


def test_api_and_any_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = tilewright.tune(matmul_graph(), HOST, 2 / 60, logs=tmp_path, executor=pool, seed=1)
    assert len(logged(tmp_path)) == result.state.trials > 0


def test_interrupt_keeps_everything(tmp_path: Path) -> None:
    def report(state: State) -> None:
        if state.trials and state.stage == "search":
            raise KeyboardInterrupt

    result = tune(tmp_path, 30, report=report)
    assert result.interrupted and result.comparison is None
    assert len(logged(tmp_path)) == result.state.trials > 0


def test_estimates_for_other_machines(tmp_path: Path) -> None:
    target = load_target("cortex-a76")
    result = tune_until(tmp_path, 1, target=target)
    trials = logged(tmp_path, target=target.name)
    assert trials and all(r.source in ("llvm-mca", "instructions") for r in trials)
    assert result.comparison is None and result.state.source == "estimate"
    assert any("ranked by estimates" in n for n in result.state.notes)


def test_candidates_are_checked_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that stores something else is caught, also where the difference is one element."""
    from tilewright.loop.ir import Binary, Const, Store
    from tilewright.loop.rewrite import map_block
    from tilewright.tune.admit import admit
    from tilewright.tune.library import default_trace

    op, raw = kernel_of(matmul_graph(), "matmul", HOST)
    trace = default_trace(op, raw, HOST)

    def off_by_one(kernel: Any, trace: Any) -> Any:
        made = admit(kernel, trace)
        outputs = {p.buffer.name for p in kernel.params if p.role == "out"}

        def stmt(s: Any) -> Any:
            if isinstance(s, Store) and s.buffer in outputs:
                value = s.value
                return replace(s, value=Binary("add", value, Const(1.0, value.dtype)))
            return s

        return replace(made, body=map_block(made.body, stmt=stmt))

    monkeypatch.setattr(measuring, "admit", off_by_one)
    outcome = measuring.measure(measuring.Job(raw, HOST, trace, (trace,), 32))[0]
    assert outcome.verdict == "wrong" and outcome.seconds is None


def test_lost_workers_are_recorded(tmp_path: Path) -> None:
    """Every job ends its process: each candidate is tried alone and recorded as a crash."""
    tuner = Tuner(matmul_graph(), HOST, tmp_path, seed=0, report=until(1))
    submit = tuner.executor.submit

    def crash(fn: Any, *args: Any) -> Any:
        return submit(os._exit, 7)

    tuner.executor.submit = crash  # type: ignore[method-assign]
    result = tuner.run(PATIENCE)
    trials = logged(tmp_path)
    assert trials and {r.verdict for r in trials} == {"crash"}
    assert "exit code 7" in trials[0].note
    assert result.state.failures == len(trials)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tune_helpers import matmul_graph
from tilewright.pipeline import resolve_target
from tilewright.tune.tuner import Tuner
print("ready", flush=True)
def report(state):
    print(state.trials, flush=True)
Tuner(matmul_graph(), resolve_target("host"), Path(sys.argv[2]), report=report).run(600)
"""


def kill_at_random_moments(folder: Path, kills: int) -> None:
    helpers = str(Path(__file__).parents[1] / "helpers")
    rng = random.Random(0)
    before = 0
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, helpers, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        seen = 0
        assert process.stdout.readline() == "ready\n"
        end = time.monotonic() + rng.uniform(0.0, 2.0)
        # every other process dies soon after its first trial has ended, however long that takes here
        while time.monotonic() < end or (kill % 2 and not seen):
            line = process.stdout.readline().strip()
            if line and not seen and int(line) and kill % 2:
                end = time.monotonic() + rng.uniform(0.0, 0.5)
            seen = int(line) if line else seen
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        process.wait()
        problems: list[str] = []
        found = [r for r in records.read(folder, HOST.name, problems) if r.kind == "trial"]
        assert len(found) >= before + seen, "a finished trial was lost"
        assert len(problems) <= kills
        before = len(found)
    keys = [(r.kernel, str(r.trace)) for r in found]
    assert len(set(keys)) == len(keys)


def test_kill_loses_only_what_is_in_flight(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 3)
    assert tune(tmp_path, 1, graph=matmul_graph()).state.stage == "done"


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path) -> None:
    kill_at_random_moments(tmp_path, 20)
    assert logged(tmp_path)


def test_dask_cluster_with_a_killed_worker(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra `dask`")
    from tilewright.tune.executors import client_executor

    cluster = distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None,
        resources={"DEVICE": 1},
    )  # fmt: skip
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        executor, slots = client_executor(client, "DEVICE")
        assert slots == 3
        killed: list[int] = []
        enough: list[Callable[[State], None]] = []

        def watch(state: State) -> None:
            if state.trials and not killed:
                pid = next(iter(client.run(os.getpid).values()))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                enough.append(until(state.trials + 10))
            for report in enough:
                report(state)

        result = tune(
            tmp_path, PATIENCE, graph=matmul_graph(64, 64, 64), executor=executor, slots=slots,
            label="DEVICE", report=watch,
        )  # fmt: skip
    assert killed and result.state.stage == "done"
    trials = logged(tmp_path)
    assert len(trials) == result.state.trials > 0
    assert {r.verdict for r in trials} <= {"faster", "slower", "same"}
    assert all(r.device == "DEVICE" for r in trials)


def test_tuned_model_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = matmul_graph()
    x = np.random.default_rng(1).standard_normal((24, 32)).astype(np.float32)
    want = tilewright.compile(graph, HOST)(x)[0]
    tune_until(tmp_path, 1, graph=graph)
    monkeypatch.setenv("TILEWRIGHT_LOGS", str(tmp_path))
    tuned = tilewright.compile(graph, HOST)
    np.testing.assert_allclose(tuned(x)[0], want, rtol=1e-5, atol=1e-6)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tilewright import cli

    model = Path(__file__).parents[1] / "data" / "mlperftiny_autoencoder_ad_fp32_randw.onnx"
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", str(model), "--minutes", "0.05", "--logs", str(tmp_path)])
    assert not end.value.code
    said = capsys.readouterr()
    assert "trials" in said.out and "ratio" in said.out
    assert "search: " in said.err
    assert logged(tmp_path)


def test_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tilewright import cli

    for arguments, code, message in (
        (["--resource", "BOARD"], 2, "--dask"),
        (["--dask", "tcp://127.0.0.1:1"], 1, "no Dask scheduler answers|Dask is not installed"),
        (["--target", "cortex-a76", "--device", "local"], 1, "cannot run on this machine"),
    ):
        model = Path(__file__).parents[1] / "data" / "mlperftiny_autoencoder_ad_fp32_randw.onnx"
        with pytest.raises(SystemExit) as end:
            cli.main(["tune", str(model), "--logs", str(tmp_path), *arguments])
        assert end.value.code == code
        assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_what_loses_in_the_model_is_taken_back(tmp_path: Path) -> None:
    """A record that claims a poor schedule is faster survives the log, but not the whole model."""
    graph = matmul_graph(128, 128, 128)
    op, raw = kernel_of(graph, "matmul", HOST)
    space = space_of(op, raw, HOST)
    assert space is not None
    choice = {**space.default, "tile0": 1, "vectors": 1}
    bad = Record(
        kind="winner", kernel=kernel_hash(raw), target=target_hash(HOST), operator="matmul",
        verdict="faster", family=space.family, extents=extents(raw), choice=choice,
        trace=space.trace(choice), seconds=1e-6, default=1e-5, ratio=0.1,
    )  # fmt: skip
    records.append(tmp_path, HOST.name, bad)
    result = tune(tmp_path, 1, graph=graph)
    assert result.comparison is not None and result.comparison.losers == (bad.kernel,)
    assert logged(tmp_path, "winner")[-1].verdict == "retracted"
    assert result.comparison.ratio > 0.1
