"""`tilewright ops`: the table of the docs is what the registry says."""

from __future__ import annotations

from pathlib import Path

from tilewright.catalogue import element_types, shown
from tilewright.commands.ops import page
from tilewright.frontend.catalogue import onnx_operators, tflite_operators
from tilewright.registry import operator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operator_table.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "write it anew: tilewright ops --markdown > docs/operator_table.md"
    )


def test_types_are_found_by_asking() -> None:
    assert {t.name for t in element_types(operator("xor"))} >= {"bool", "i8", "u64"}
    assert "f32" not in {t.name for t in element_types(operator("xor"))}
    assert {t.name for t in element_types(operator("where"))} >= {"f32", "i64", "bool"}
    assert shown(element_types(operator("copy"))) == "all"


def test_every_operator_of_the_formats_is_listed() -> None:
    onnx = onnx_operators()
    assert onnx["Relu"] == "compiled"
    assert onnx["CenterCropPad"].startswith("compiled, by")
    assert onnx["RandomNormal"].startswith("not supported: random numbers")
    lite = tflite_operators()
    assert lite["CONV_2D"].startswith("compiled (float, int8")
    assert lite["HASHTABLE"].startswith("not supported: strings")
