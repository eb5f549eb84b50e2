"""Cases on disk: those that failed once pass for ever; `replay` says what is wrong in few lines."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tilewright.cli import app
from tilewright.errors import ScheduleError, TilewrightError
from tilewright.loop.parse import parse
from tilewright.schedule.trace import Step
from tilewright.testing import case as cases
from tilewright.testing import graphs
from tilewright.testing.case import Case, Data
from tilewright.testing.minimise import minimise
from tilewright.testing.oracles import judge

REPROS = sorted((Path(__file__).parents[1] / "repros").glob("*.json"))

#: Writes 7 of 8 elements: what the output held before shows.
FORGETS = """kernel forgets(x: f32[8], out y: f32[8])
  for i in 7:
    y[i] = (x[i]:f32 + 1.0:f32)
"""


def forgetful() -> Case:
    kernel = parse(FORGETS)
    trace = (Step("split", ("i", 2, "io", "ii")), Step("unroll", ("ii",)))
    return Case(kernel, trace, "x86-64-v3", {"x": Data("integers", 3)}, ("same",))


@pytest.mark.parametrize("file", REPROS, ids=[f.stem for f in REPROS])
def test_what_failed_once_passes(file: Path) -> None:
    if graphs.is_graph_case(json.loads(file.read_text())):
        assert graphs.judge(graphs.from_json(file.read_bytes())) is None
        return
    case = cases.read(file)
    with contextlib.suppress(ScheduleError):  # mended by refusing the step
        assert judge(case) is None


def test_a_failing_case_becomes_small() -> None:
    small = minimise(forgetful(), judge, seconds=20)
    assert small.failure is not None and small.failure.buffer == "y"
    assert not small.trace


def test_replay_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(cases.to_json(forgetful()))
    done = CliRunner().invoke(app, ["replay", str(path), "--checked"])
    assert done.exit_code == 1
    assert "every index is inside its buffer" in done.output
    assert "elements differ" in done.output and len(done.output.splitlines()) < 25


def test_emit(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    path.write_text(cases.to_json(forgetful()))
    plain = CliRunner().invoke(app, ["replay", str(path), "--emit", "ir,ll,asm"]).output
    assert "kernel forgets" in plain and "define internal void @forgets" in plain
    assert ".text" in plain and "icmp ult" not in plain
    assert CliRunner().invoke(app, ["replay", str(path), "--emit", "exe"]).exit_code == 2


def test_replay_of_graphs(tmp_path: Path) -> None:
    g = graphs.from_json(
        json.dumps({
            "schema": cases.SCHEMA, "kind": "graph", "target": "x86-64-v3", "seed": 1,
            "graph": ["graph g", "input x: f32[3]", "y: f32[3] = neg(x) {} # 'n'", "output y"],
        })
    )  # fmt: skip
    path = tmp_path / "graph.json"
    path.write_text(graphs.to_json(g))
    done = CliRunner().invoke(app, ["replay", str(path)])
    assert done.exit_code == 0 and "computes what it should" in done.output


def test_malformed_cases_are_refused() -> None:
    good = json.loads(cases.to_json(forgetful()))
    assert cases.from_json(json.dumps(good)).trace == forgetful().trace
    for key in good:
        for value in (None, 3, "x", [], {}, [[]], -1, ["kernel f(x: f32[i])"], {"x": {"kind": "?"}}):  # fmt: skip
            try:
                cases.from_json(json.dumps({**good, key: value}))
            except TilewrightError as err:
                assert "\n" not in str(err)
