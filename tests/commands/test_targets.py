"""`tilewright targets`: families in the list; every field of a target with unit and meaning."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tilewright.commands.targets import EXPLAINED, readable
from tilewright.schedule.target import target_names

from .conftest import Cli


def test_every_field_is_explained() -> None:
    for kind, texts in EXPLAINED.items():
        assert set(texts) == {f.name for f in fields(kind)}


def test_the_list_names_families(cli: Cli) -> None:
    code, out, _ = cli("targets")
    assert code == 0
    assert "(host)" in out and "microcontroller" in out and "GPU" in out
    _, out, _ = cli("targets", "--json")
    assert {r["name"] for r in json.loads(out)} == set(target_names())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("x86-64-v4", ["l1_bytes", "32 KiB", "64 bytes", "first-level data cache"]),
        ("cortex-m4", ["[board]", "board.flash_bytes", "512 KiB", "mps2-an386", "smlad"]),
        (
            "cuda-sm87",
            ["[gpu]", "gpu.shared_sm", "204.8 GB/s", "5.3 TFLOP/s", "compute capability"],
        ),
    ],
)
def test_a_target_is_shown_in_units(cli: Cli, name: str, says: list[str]) -> None:
    code, out, err = cli("targets", name)
    assert code == 0, err
    for text in says:
        assert text in out
    _, out, _ = cli("targets", name, "--json")
    assert json.loads(out)["name"] == name


def test_units() -> None:
    assert readable("l1_bytes", 49152) == "48 KiB"
    assert readable("l1_bytes", 1000) == "1000 bytes"
    assert readable("masked", True) == "yes"
    assert readable("abi", "") == "none"
    assert readable("dot", ()) == "none"
