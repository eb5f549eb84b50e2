"""The picture of a benchmark, and what is said where there can be none."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench.plot import Bar, geometric_mean, plot
from tilewright.cli import main

BARS = [
    Bar("slow", 0.8, "onnxruntime"),
    Bar("fast", 2.5, "mnn", True),
    Bar("same", 1.0, "openvino"),
]


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == 1.0
    assert geometric_mean([]) == 1.0


@pytest.mark.parametrize("name", ["ratios", "ratios.png", "v1.2"])
def test_png_and_svg(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = plot(tmp_path / name, BARS, "a title")
    stem = name.removesuffix(".png")
    assert [p.name for p in made] == [f"{stem}.png", f"{stem}.svg"]
    png, svg = (p.read_bytes() for p in made)
    assert png.startswith(b"\x89PNG")
    text = svg.decode()
    for wanted in ("a title", "slow", "2.50 mnn*", "1.260"):
        assert wanted in text
    assert plot(tmp_path / name, BARS, "a title")[1].read_bytes() == svg


def test_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SystemExit) as end:
        main(["bench", "mlperftiny_dscnn_kws_fp32_randw", "--plot", str(tmp_path / "p")])
    assert end.value.code == 1
    assert "pip install 'tilewright[plot]'" in capfd.readouterr().err
