"""Compilation uses the log: own records, near ones, other ways to compute; bad ones cannot do harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tune_helpers import V3, conv_graph, kernel_of, matmul_graph

from tilewright import api
from tilewright.errors import ScheduleError
from tilewright.graph.ir import Graph
from tilewright.pipeline import build, resolve_target
from tilewright.schedule.target import Target
from tilewright.schedule.trace import Trace, step
from tilewright.tune.admit import admit
from tilewright.tune.identity import extents, kernel_hash, node_extents, node_hash, target_hash
from tilewright.tune.library import Library, load_library, node_choice, space_of
from tilewright.tune.records import Record, append


def tuned(graph: Graph, op: str, target: Target = V3, **changes: int) -> Record:
    """A winner for the graph's kernel of `op`: the default with some parameters changed."""
    o, raw = kernel_of(graph, op, target)
    space = space_of(o, raw, target)
    assert space is not None
    choice = {**space.default, **changes}
    return Record(
        kind="winner", kernel=kernel_hash(raw), target=target_hash(target), operator=op,
        verdict="faster", family=space.family, extents=extents(raw), choice=choice,
        trace=space.trace(choice), seconds=1e-5, default=2e-5, ratio=0.5,
    )  # fmt: skip


def library(*records: Record, target: Target = V3) -> Library:
    out = Library(target_hash(target))
    for r in records:
        out.add(r)
    return out


def reason_of(graph: Graph, lib: Library, op: str = "conv2d") -> tuple[str, Trace]:
    program = build(graph, V3, library=lib, without={"variants"})
    symbol = next(s.kernel for s in program.steps if s.op == op)
    return program.reasons[symbol], program.traces[symbol]


def test_no_log() -> None:
    assert reason_of(conv_graph(), library())[0] == "default rule"


def test_own_record() -> None:
    record = tuned(conv_graph(), "conv2d", band=1, steps=2)
    reason, trace = reason_of(conv_graph(), library(record))
    assert reason == "log record: 2.00 times the default"
    assert trace == record.trace


def test_estimates_are_labelled() -> None:
    record = replace(tuned(conv_graph(), "conv2d", steps=2), source="llvm-mca")
    assert "estimated by llvm-mca" in reason_of(conv_graph(), library(record))[0]


def test_hash_does_not_depend_on_names() -> None:
    a, b = conv_graph(), conv_graph()
    b.name = "other"
    b.nodes = [n.with_(name=f"other_{n.name}") for n in b.nodes]
    assert kernel_hash(kernel_of(a, "conv2d")[1]) == kernel_hash(kernel_of(b, "conv2d")[1])
    wider = conv_graph(filters=32)
    assert kernel_hash(kernel_of(a, "conv2d")[1]) != kernel_hash(kernel_of(wider, "conv2d")[1])


def test_nearest_shape_serves() -> None:
    record = tuned(conv_graph(), "conv2d", band=1, steps=2)
    reason, trace = reason_of(conv_graph(size=14), library(record))
    assert reason.startswith("transferred from the nearest tuned shape (oh=12 ow=12 co=24")
    assert ("unroll", ("ciu",)) in [(s.primitive, s.args) for s in trace]
    far = conv_graph(size=96, channels=64, filters=256)
    assert reason_of(far, library(record))[0] == "default rule"


def test_retracted_and_default_records_stop_transfers() -> None:
    record = tuned(conv_graph(), "conv2d", steps=2)
    settled = replace(record, verdict="default")
    reason, _ = reason_of(conv_graph(), library(record, settled))
    assert reason == "default rule: tuning found nothing better"
    assert reason_of(conv_graph(size=14), library(settled))[0] == "default rule"


@pytest.mark.parametrize(
    "trace",
    [
        (step("split", "nothing", 2, "a", "b"),),
        (step("split", "co", "two", "a", "b"),),
        (step("split", "co"),),
        (step("pack", "w1", [[0, 0, "whole"]]),),
        (step("pack", "w1", [[0, 8, "outer"], [1, 0, "whole"], [2, 0, "whole"], [3, 0, "whole"]]),),
        (step("pack", "w1", 5),),
        (step("vectorize", "ci"),),
        (step("reorder", ["kw", "kh"]),),
    ],
)
def test_bad_traces_count_as_absent(trace: Trace) -> None:
    record = replace(tuned(conv_graph(), "conv2d"), trace=trace)
    with pytest.raises(ScheduleError):
        admit(kernel_of(conv_graph(), "conv2d")[1], trace)
    reason, _ = reason_of(conv_graph(), library(record))
    assert reason == "default rule: the record in the log cannot be applied any more"


def test_scratch_and_code_are_limited() -> None:
    _, raw = kernel_of(conv_graph(size=200, filters=64), "conv2d")
    with pytest.raises(ScheduleError, match="bytes of scratch"):
        admit(raw, (step("stage", ["oh", "ow", "co"]),))
    _, raw = kernel_of(matmul_graph(200, 200, 200), "matmul")
    with pytest.raises(ScheduleError, match="spells out"):
        admit(raw, tuple(step("unroll", v) for v in ("m", "n", "k")))


def test_logged_way_to_compute_is_used() -> None:
    g = conv_graph(size=16, channels=16, filters=16)
    target = resolve_target("host")
    node = g.nodes[0]
    record = Record(
        kind="variant", kernel=node_hash(g, node), target=target_hash(target), operator="conv2d",
        verdict="faster", variant="winograd2", extents=node_extents(g, node),
        choice=node_choice(g, node), ratio=0.5,
    )  # fmt: skip
    ops = [s.op for s in build(g, target, library=library(record, target=target)).steps]
    assert "winograd_output" in ops
    near = conv_graph(size=18, channels=16, filters=16)
    ops = [s.op for s in build(near, target, library=library(record, target=target)).steps]
    assert "winograd_output" in ops
    far = conv_graph(size=16, channels=3, filters=16, kernel=5)
    ops = [s.op for s in build(far, target, library=library(record, target=target)).steps]
    assert "winograd_output" not in ops


def test_compile_reads_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve_target("host")
    record = tuned(conv_graph(channels=2, filters=16), "conv2d", target, steps=2)
    append(tmp_path, target.name, record)
    monkeypatch.setenv("TILEWRIGHT_LOGS", str(tmp_path))
    assert load_library(target).winners[record.kernel] == record
    compiled = api.compile(conv_graph(channels=2, filters=16), target)
    assert any(r.startswith("log record") for r in compiled.program.reasons.values())
    x = np.random.default_rng(0).standard_normal((1, 2, 12, 12)).astype(np.float32)
    plain = api.CompiledModel(
        build(conv_graph(channels=2, filters=16), target, library=library(target=target))
    )
    np.testing.assert_allclose(compiled(x)[0], plain(x)[0], rtol=1e-4, atol=1e-4)


def test_another_target_file_is_another_target() -> None:
    record = tuned(conv_graph(), "conv2d", steps=2)
    lib = Library(target_hash(replace(V3, l2_bytes=V3.l2_bytes * 2)))
    lib.add(record)
    assert not lib.winners
