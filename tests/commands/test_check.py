"""`tilewright check`: everything at once, with the node, the reason and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tilewright import pipeline
from tilewright.errors import ScheduleError
from tilewright.tune.library import Library

from .conftest import DATA, Cli

INT8 = DATA / "mlperftiny_resnet8_ic_int8_qdq.onnx"
FLOAT = DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx"
Save = Callable[..., Path]


def test_all_problems_of_a_model_in_one_go(cli: Cli, saved: Save) -> None:
    """In the main graph, in a branch and in a function; nodes behind them that nobody can check."""
    branch = helper.make_graph(
        [helper.make_node("Inner", ["x"], ["t"], "inside")], "b", [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"],
        [helper.make_node("Hidden", ["a"], ["m"], "deep"), helper.make_node("Relu", ["m"], ["b"], "after")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    path = saved(
        [
            helper.make_node("First", ["x"], ["a"], "first"),
            helper.make_node("Relu", ["a"], ["r"], "behind"),
            helper.make_node("Greater", ["x", "x"], ["g"], "compare"),
            helper.make_node("ReduceMax", ["g0"], ["c"], "condition", keepdims=0),
            helper.make_node("Cast", ["g"], ["g0"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Cast", ["c"], ["k"], "bool", to=TensorProto.BOOL),
            helper.make_node("If", ["k"], ["i"], "if", then_branch=branch, else_branch=branch),
            helper.make_node("Twice", ["x"], ["f"], "call", domain="own"),
        ],
        {"x": [1, 4]},
        ["r", "i", "f"],
        functions=[function],
    )
    code, out, _ = cli("check", path, "--json")
    assert code == 1
    found = json.loads(out)
    assert {p["operator"] for p in found["problems"]} == {"First", "Inner", "Hidden"}
    names = {p["node"] for p in found["problems"]}
    assert (
        "first" in names and any("inside" in n for n in names) and any("deep" in n for n in names)
    )
    assert all(p["reason"] and p["advice"] for p in found["problems"])
    assert ["behind", "Relu"] in found["unchecked"]
    code, out, _ = cli("check", path)
    assert code == 1
    assert "Hidden" in out and "could not be checked" in out and "behind (Relu)" in out


def test_a_broken_initializer_does_not_hide_other_problems(cli: Cli, saved: Save) -> None:
    broken = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=b"123")
    path = saved(
        [
            helper.make_node("Mul", ["x", "w"], ["a"], "reader"),
            helper.make_node("Frobnicate", ["x"], ["b"], "unknown"),
        ],
        {"x": [1, 4]},
        ["a", "b"],
        [broken],
    )
    code, out, _ = cli("check", path, "--json")
    found = json.loads(out)
    assert code == 1
    assert any("`w`" in p["reason"] for p in found["problems"])
    assert any(p["node"] == "unknown" for p in found["problems"])
    assert ["reader", "Mul"] in found["unchecked"]


@pytest.mark.parametrize("target", ["host", "cortex-m4", "cortex-a76"])
def test_a_model_that_fits(cli: Cli, target: str) -> None:
    code, out, _ = cli("check", INT8, "--target", target)
    assert code == 0
    assert "every node is supported" in out


def test_what_a_board_has_too_little_of_comes_with_numbers(cli: Cli) -> None:
    code, out, _ = cli("check", INT8, "-t", "cortex-m4", "--ram", "16K", "--flash", "20K", "--json")
    assert code == 1
    reasons = [p["reason"] for p in json.loads(out)["problems"]]
    assert len(reasons) == 2
    assert "of flash and 20480 are available" in reasons[0]
    assert "of RAM and 16384 are available" in reasons[1]
    assert cli("check", FLOAT, "-t", "host", "--ram", "16K")[0] == 2


def test_types_in_software_are_a_note(cli: Cli, saved: Save) -> None:
    path = saved(
        [helper.make_node("Mul", ["x", "x"], ["y"], "square")], {"x": [1, 4]}, ["y"],
        kind=TensorProto.DOUBLE,
    )  # fmt: skip
    code, out, _ = cli("check", path, "-t", "cortex-m4", "--json")
    assert code == 0, out
    (note,) = json.loads(out)["notes"]
    assert note["node"] == "square" and "64-bit floats" in note["reason"]


def test_every_kernel_that_cannot_be_made_is_listed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pipeline.lower_group

    def refuse(place: object, group: object) -> object:
        if group.anchor.op == "conv2d":  # type: ignore[attr-defined]
            raise ScheduleError("no schedule fits")
        return original(place, group)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "lower_group", refuse)
    monkeypatch.setattr(
        Library, "chooser", lambda *args: lambda graph, node: None
    )  # every convolution is one
    code, out, _ = cli("check", FLOAT, "-t", "x86-64-v3", "--json")
    problems = json.loads(out)["problems"]
    assert code == 1
    assert len(problems) == 9
    assert all("no schedule fits" in p["reason"] and "conv2d" in p["operator"] for p in problems)
