"""What a failure says: a few lines and a file, whoever asks."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from hypothesis.vendor.pretty import pretty

from tilewright.loop.parse import parse
from tilewright.schedule.trace import step
from tilewright.testing import api
from tilewright.testing.case import Case, Failure, read, summary
from tilewright.testing.fuzz import fuzz
from tilewright.testing.minimise import minimise
from tilewright.testing.subjects import subject


def always_wrong(case: Case) -> Failure:
    return Failure("test", "wrong")


def case(steps: int) -> Case:
    kernel = subject("conv2d", 0, {}, constants=True).kernel
    trace = tuple(step("split", "co", 4, f"o{i}", f"i{i}") for i in range(steps))
    return Case(kernel, trace, "x86-64-v4", {}, (), "conv2d")


def test_a_summary_is_short() -> None:
    failed = case(40).with_(failure=Failure("ring", "wrong"), guilty="step 1")
    lines = summary(failed)
    assert len(lines) < 25 and lines[0] == "failure of conv2d: ring: wrong"
    assert "34 more steps" in lines[-1]


def test_hypothesis_prints_the_summary() -> None:
    """Of a counterexample to a property, not thousands of lines of expressions."""
    assert pretty(case(1)).splitlines() == summary(case(1))


def test_check_says_where_the_case_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = functools.partial(fuzz, test=always_wrong, shrink=1.0)
    monkeypatch.setattr(api, "fuzz", wrong)
    for save in (None, tmp_path / "case.json"):
        with pytest.raises(AssertionError, match="replay it") as caught:
            api.check("add", "x86-64-v3", examples=1, save=save)
        text = str(caught.value)
        assert len(text.splitlines()) < 25
        path = re.search(r"tilewright replay (.*)", text)
        assert path is not None and read(Path(path[1])).operator == "add"


def test_remainders_survive_shrinking() -> None:
    """A failure that needs a piece shorter than the others ends at three iterations in pieces of two."""

    def tail(c: Case) -> Failure | None:
        if not c.trace:
            return None
        n, factor = c.kernel.params[0].buffer.shape[0], c.trace[0].args[1]
        assert isinstance(factor, int)
        return Failure("test", "tail") if n > factor and n % factor else None

    kernel = parse(
        "kernel k(x: f32[33], out y: f32[33])\n  for i in 33:\n    y[i] = neg(x[i]:f32)\n"
    )
    found = Case(kernel, (step("split", "i", 16, "o", "j"),), "x86-64-v3")
    small = minimise(found, tail, 20.0)
    assert small.kernel.params[0].buffer.shape == (3,) and small.trace[0].args[1] == 2
