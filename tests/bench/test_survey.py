"""survey: a row for every model, whatever happens to it; what counts as agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_helpers import Builder

from tilewright.bench.survey import Distance, Row, agreement, survey
from tilewright.bench.verify import NOISE, is_noise
from tilewright.bench.zoo import ZooError, fetch, zoo
from tilewright.cli import main
from tilewright.commands.survey import markdown

DATA = Path(__file__).parents[1] / "data"


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    good = str(DATA / "mlperftiny_autoencoder_ad_fp32_randw.onnx")
    assert survey(str(tmp_path / "broken.onnx")).outcome == "refused"
    row = survey(good, seeds=2)
    assert (row.outcome, row.runs, row.states) == ("agrees", 2, 0)
    assert row.distance.error <= 1e-4 and row.arena_bytes > 0 and row.artifact_bytes > 1 << 18
    assert row.operators["matmul"] == 10
    assert survey(good, seeds=1, tolerance=0.0).outcome == "differs"
    assert survey(good, limit=0.01).outcome == "timeout"
    table = markdown([row])
    assert len(table.splitlines()) == 3 and "matmul·10" in table


def test_units() -> None:
    d = Distance()
    d.add(np.array([3, 5], np.int8), np.array([3, 4], np.int8), None)
    assert (d.units, d.within_one, d.error) == (1, 1.0, 0.0)
    assert d.within(0.0)
    d.add(np.float32([0.5, 1.25]), np.float32([0.5, 0.5]), 0.25)
    assert (d.units, d.within_one) == (3, 0.5)
    assert not d.within(1.0)
    row = Row("m", "restless", distance=d, usual=d, spread=Distance(units=2))
    three = "3 units, 50.00% within 1"
    assert (
        agreement(row)
        == f"**restless**; {three}; as it comes {three}; itself 2 units, 100.00% within 1"
    )
    d.add(np.zeros(3, np.float32), np.zeros(4, np.float32), None)
    assert d.error == float("inf")


def test_noise_of_bounded_operators() -> None:
    """A tiny probability may be a few roundings of 1 off, a tiny sum may not."""
    for op, quiet in (("sigmoid", True), ("neg", False)):
        b = Builder(x=(2,))
        graph = b.done(b.node(op, "y", "x"))
        ours, theirs = np.float32([1e-9, 0.5]), np.float32([1e-9 + NOISE / 2, 0.5])
        assert is_noise(graph, "y", ours, theirs) == quiet
        assert not is_noise(graph, "y", ours, theirs + np.float32(1e-5))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(SystemExit) as end:
        main(["survey", str(tmp_path)])
    assert end.value.code == 1
    assert "0 of 1 models agree" in capsys.readouterr().out


def test_a_model_with_states_runs_on_from_each_run() -> None:
    try:
        fetch(zoo()["microwakeword_okay_nabu_int8"])
    except ZooError as err:
        pytest.skip(str(err))
    row = survey("microwakeword_okay_nabu_int8", seeds=2)
    assert (row.outcome, row.runs, row.states, row.distance.units) == ("agrees", 100, 6, 0)
