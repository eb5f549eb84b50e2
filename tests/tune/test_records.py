"""The log: what is written is read back; what is torn, malformed or hostile is stepped over."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.errors import TilewrightError
from tilewright.schedule.target import load_target
from tilewright.schedule.trace import step
from tilewright.tune.identity import target_hash
from tilewright.tune.records import Record, append, log_file, parse, read
from tilewright.tune.ship import ship

RECORD = Record(
    kind="winner", kernel="0123456789abcdef", target="fedcba9876543210", operator="conv2d",
    verdict="faster", family="contraction", extents={"oh": 7, "co": 32}, choice={"tile0": 2, "u": "all"},
    trace=(step("split", "oh", 2, "oho", "ohi"), step("pack", "w1", [[0, 8, "outer"], [0, 8, "inner"]])),
    seconds=1e-5, default=2e-5, ratio=0.5, error=0.01, rounds=12, modelled=0.9,
)  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    append(tmp_path, "t", RECORD)
    append(tmp_path, "t", replace(RECORD, kind="trial", verdict="crash", seconds=None))
    found = list(read(tmp_path, "t"))
    assert found[0] == RECORD
    assert found[1].verdict == "crash" and found[1].seconds is None


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_torn_last_line(tmp_path: Path, cut: int) -> None:
    """A writer killed in the middle costs its own record, and the next writer starts a line of its own."""
    append(tmp_path, "t", RECORD)
    append(tmp_path, "t", RECORD)
    path = log_file(tmp_path, "t", "conv2d")
    path.write_bytes(path.read_bytes()[:-cut])
    problems: list[str] = []
    left = len(list(read(tmp_path, "t", problems)))
    assert (left, len(problems)) == ((2, 0) if cut == 1 else (1, 1))
    append(tmp_path, "t", RECORD)
    assert len(list(read(tmp_path, "t"))) == left + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "another version"),
        ({"kind": "best"}, "`kind` must be one of"),
        ({"verdict": ["faster"]}, "`verdict`"),
        ({"kernel": "../../etc/passwd"}, "`kernel` is malformed"),
        ({"operator": "a/b"}, "`operator`"),
        ({"extents": {"oh": 0}}, "extent 0"),
        ({"extents": {"oh": True}}, "malformed at 'oh'"),
        ({"choice": {"a": 1.5}}, "malformed at 'a'"),
        ({"choice": {"a": 1 << 70}}, "malformed at 'a'"),
        ({"seconds": -1}, "`seconds`"),
        ({"seconds": "1"}, "`seconds`"),
        ({"rounds": 1.5}, "`rounds`"),
        ({"trace": [["system", "rm"]]}, "unknown step"),
        ({"trace": [["split", "i", 2, "o", "l"]] * 200}, "200 steps"),
        ({"trace": [[["split"]]]}, "unknown step|unhashable"),
        ({"note": "a\u0007b"}, "`note`"),
        ({"extra": 1}, "unknown fields"),
    ],
)
def test_hostile_fields(change: dict[str, object], message: str) -> None:
    line = json.dumps({**json.loads(RECORD.to_line()), **change}).encode()
    with pytest.raises(TilewrightError, match=message):
        parse(line)


def test_any_bytes(tmp_path: Path) -> None:
    """Damaged lines raise nothing but `TilewrightError`."""
    rng = random.Random(0)
    good = RECORD.to_line()
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.choice(b'0"{}[],:x\xff\n')
        with contextlib.suppress(TilewrightError):
            parse(bytes(bad))
    for line in (b"[" * 100_000, b"NaN", b'{"v":1,"seconds":Infinity}', b"\0" * 10):
        with pytest.raises(TilewrightError):
            parse(line)


def test_shipped_logs_hold_the_last_word_only(tmp_path: Path) -> None:
    target = target_hash(load_target("x86-64-v4"))
    winner = replace(RECORD, target=target)
    source, destination = tmp_path / "a", tmp_path / "b"
    for r in (replace(winner, kind="trial"), winner, replace(winner, verdict="retracted")):
        append(source, "x86-64-v4", r)
    append(source, "x86-64-v4", replace(winner, target="0" * 16, kernel="0" * 16))
    assert ship(source, destination, "x86-64-v4") == 1
    assert [r.verdict for r in read(destination, "x86-64-v4")] == ["retracted"]
    before = log_file(destination, "x86-64-v4", "conv2d").read_bytes()
    assert ship(source, destination, "x86-64-v4") == 1
    assert log_file(destination, "x86-64-v4", "conv2d").read_bytes() == before
