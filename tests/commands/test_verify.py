"""`tilewright verify DIR`: an artifact that is sound, and one that somebody touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import DATA, Cli

MODEL = DATA / "mlperftiny_autoencoder_ad_int8_qdq.onnx"


@pytest.mark.parametrize("target", ["host", "cortex-m4"])
def test_an_artifact(cli: Cli, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "out"
    assert cli("compile", MODEL, "-o", folder, "-t", target)[0] == 0
    code, out, err = cli("verify", folder)
    assert code == 0, out + err
    assert "sound" in out and f"{MODEL.stem}.o" in out
    header = folder / f"{MODEL.stem}.h"
    header.write_text(header.read_text() + "/* touched */\n")
    (folder / f"{MODEL.stem}.a").unlink()
    code, out, _ = cli("verify", folder)
    assert code == 1
    assert "does not match its hash" in out and "cannot be read" in out


def test_a_folder_that_is_none(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("verify", tmp_path)
    assert code == 1
    assert "not an artifact" in out
