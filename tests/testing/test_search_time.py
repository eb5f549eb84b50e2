"""A search ends when its time is over, whatever an example does, also while it makes a failure small."""

from __future__ import annotations

import sys
import time

import pytest

from tilewright.testing import fuzz as search
from tilewright.testing import strategies
from tilewright.testing.case import Case, Failure
from tilewright.testing.minimise import minimise
from tilewright.testing.subjects import subject
from tilewright.testing.watch import Over, Slow, Watch
from tilewright.testing.worker import Worker

needs_timers = pytest.mark.skipif(sys.platform == "win32", reason="no interval timers there")


def always_wrong(case: Case) -> Failure:
    """Every case fails, after a while."""
    time.sleep(0.02)
    return Failure("test", "wrong")


def test_shrinking_is_bounded() -> None:
    begun: list[float] = []

    def wrong(case: Case) -> Failure:
        begun.append(time.monotonic())
        return always_wrong(case)

    found = search.fuzz(["conv2d"], "x86-64-v3", float("inf"), test=wrong, enough=1, shrink=1.0)
    assert (
        time.monotonic() - begun[0] < 2 * 1.0 + 8.0
    )  # by Hypothesis, by us, and what is under way
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


def endless(*whatever: object) -> None:
    while True:
        pass


@needs_timers
def test_an_example_may_not_end() -> None:
    begin = time.monotonic()
    found = search.fuzz(["add"], "x86-64-v3", 1.5, test=endless)
    assert time.monotonic() - begin < 6.0
    assert found.examples == 1 and not found.failures


@needs_timers
@pytest.mark.parametrize("target", ["x86-64-v3", "cuda-sm80", "cortex-m4"])
def test_drawing_may_not_end(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(strategies, "statements", endless)
    begin = time.monotonic()
    assert not search.fuzz(["add"], target, 1.5).failures
    assert time.monotonic() - begin < 6.0


@needs_timers
def test_slow_examples_are_counted_and_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.testing.rounds.Watch", lambda end: Watch(end, 0.6))
    turns = iter(range(100))

    def sometimes(case: Case) -> None:
        if next(turns) % 3 == 1:
            endless()

    found = search.fuzz(["add"], "x86-64-v3", float("inf"), test=sometimes, most=6)
    assert found.examples == 6 and found.unjudged >= 2 and not found.failures


@needs_timers
def test_making_small_and_blaming_may_not_end() -> None:
    kernel = subject("add", 0, {}, constants=True).kernel
    tried: list[Case] = []

    def first_only(case: Case) -> Failure | None:
        tried.append(case)
        return Failure("test", "wrong") if len(tried) == 1 else endless()

    begin = time.monotonic()
    small = minimise(Case(kernel, (), "x86-64-v3"), first_only, seconds=1.0)
    assert time.monotonic() - begin < 3.0 and small.failure is not None


@needs_timers
def test_waiting_for_a_worker_is_interrupted() -> None:
    with Worker(60.0) as worker:
        with pytest.raises(Over), Watch(time.monotonic() + 1.0):
            worker.call(time.sleep, 50)
        begin = time.monotonic()
        assert worker.call(max, 3, 4) == 4, "another process took its place"
        assert time.monotonic() - begin < 20.0


@needs_timers
def test_watches_nest() -> None:
    with Watch(time.monotonic() + 60.0, 0.5):
        with pytest.raises(Over), Watch(time.monotonic() + 0.3):
            endless()
        with pytest.raises(Slow):
            endless()
