"""ONNX's own backend tests: a fixed tenth by default, all of them with `-m slow`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tilewright.backend_suite import workers
from tilewright.backend_suite.cases import KINDS, Case, Verdict, load_cases
from tilewright.backend_suite.status import differences, read_status, write_status
from tilewright.backend_suite.workers import judge_all
from tilewright.commands.backend_suite import markdown

STATUS = Path(__file__).parent / "status.toml"


def check(cases: list[Case]) -> None:
    verdicts = list(judge_all(cases, jobs=2, limit=300))
    assert sorted(v.key for v in verdicts) == sorted(c.key for c in cases)
    assert not differences(read_status(STATUS), verdicts)


def test_a_tenth_of_the_suite() -> None:
    check(load_cases([k for k in KINDS if k != "light"])[::10])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_suite(kind: str) -> None:
    check(load_cases([kind]))


@pytest.mark.slow
def test_the_status_file_names_cases_that_exist() -> None:
    known = {c.key for c in load_cases()}
    assert set(read_status(STATUS)) <= known


def test_every_refusal_has_a_reason() -> None:
    for key, reason in read_status(STATUS).items():
        assert len(reason) > 20, f"{key}: {reason}"


# ---------------------------------------------------------------- the driver


def fake(name: str) -> Case:
    return Case("node", name, None)


def misbehave(case: Case) -> Verdict:
    if case.name == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    while case.name == "spins":
        pass
    if case.name == "hangs":
        time.sleep(600)
    return Verdict(case.key, "pass")


def test_crashes_and_hangs_are_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "judge", misbehave)
    monkeypatch.setattr(workers, "PATIENCE", 3.0)
    names = ["a", "crashes", "b", "hangs", "c", "crashes too", "spins", "d"]
    ends = {"crashes": "crash", "hangs": "timeout", "spins": "timeout"}
    found = {v.key: v.outcome for v in judge_all([fake(n) for n in names], jobs=2, limit=1.0)}
    assert found == {f"node/{n}": ends.get(n, "pass") for n in names}


def test_status_files(tmp_path: Path) -> None:
    path = tmp_path / "status.toml"
    verdicts = [
        Verdict("node/test_a", "pass"), Verdict("node/test_b", "refused", "it has a \"reason\""),
        Verdict("simple/test_c", "refused", "another"), Verdict("node/test_d", "wrong", "1 != 2"),
    ]  # fmt: skip
    write_status(path, verdicts)
    status = read_status(path)
    assert status == {"node/test_b": 'it has a "reason"', "simple/test_c": "another"}
    assert differences(status, verdicts) == ["node/test_d: wrong (1 != 2)"]
    changed = [Verdict("node/test_b", "pass"), Verdict("node/test_a", "refused", "new")]
    assert [d.partition(":")[0] for d in differences(status, changed)] == [
        "node/test_b",
        "node/test_a",
    ]


def test_table() -> None:
    verdicts = [
        Verdict("node/test_a", "pass", fixed=("s",)),
        Verdict("node/test_b", "pass", fixed=("s",), constant=True),
        Verdict("node/test_c", "refused", "node `x` (Op): reason: what to do"),
        Verdict("node/test_d", "refused", "node `y` (Op): reason: what to do"),
    ]
    text = markdown(verdicts)
    assert "| node | 4 | 2 | 2 | 0 | 0 | 1 | 1 |" in text
    assert "| 2 | Op | reason: what to do |" in text
