"""A search ends when its time is over, also while it makes a failure small."""

from __future__ import annotations

import time

import pytest

from tilewright.testing import fuzz as search
from tilewright.testing.case import Case, Failure


def always_wrong(case: Case) -> Failure:
    """Every case fails, after a while."""
    time.sleep(0.02)
    return Failure("test", "wrong")


def test_shrinking_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "GRACE", 1.0)
    begin = time.monotonic()
    found = search.fuzz(["conv2d"], "x86-64-v3", 2.0, test=always_wrong, shrink=1.0)
    assert time.monotonic() - begin < 2.0 + 2 * 1.0 + 8.0  # and one example
    (case,) = found.failures
    assert case.failure is not None and case.failure.message == "wrong"


def test_the_search_stops_within_a_round() -> None:
    seen: list[float] = []

    def slow(case: Case) -> None:
        seen.append(time.monotonic())
        time.sleep(0.3)

    found = search.fuzz(["add"], "x86-64-v3", 1.0, test=slow)
    assert found.examples == len(seen) < search.ROUND
    assert not found.failures
