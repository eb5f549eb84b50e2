"""`tilewright explain`: schedules, reasons and figures of a model, of an artifact, of one kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tilewright.codegen.spills import calls, function_text, stack_accesses
from tilewright.report import in_words

from .conftest import DATA, Cli

MODEL = DATA / "mlperftiny_autoencoder_ad_fp32_randw.onnx"


def test_a_model_here(cli: Cli) -> None:
    code, out, err = cli("explain", MODEL, "--json")
    assert code == 0, err
    steps = json.loads(out)["steps"]
    dense = [s for s in steps if "matmul" in s["label"]]
    assert len(dense) == 10
    for s in dense:
        assert s["flops"] > 0 and s["bytes"] > 0 and s["intensity"] > 0 and s["seconds"] > 0
        assert 0 < s["roofline"] < 3
        assert s["code_bytes"] > 0 and s["stack_accesses"] >= 0
        assert s["reason"] and s["schedule"] and "vectors along" in s["words"]


@pytest.mark.parametrize("target", ["cortex-m4", "cortex-a76", "cuda-sm80"])
def test_a_model_elsewhere_is_an_estimate(cli: Cli, target: str) -> None:
    code, out, err = cli("explain", MODEL, "-t", target)
    assert code == 0, err
    assert "least" in out and "default rule" in out
    _, out, _ = cli("explain", MODEL, "-t", target, "--json")
    assert all(s["seconds"] is None for s in json.loads(out)["steps"])


@pytest.mark.parametrize("target", ["host", "cortex-m4"])
def test_an_artifact_says_the_same(cli: Cli, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "out"
    code, out, _ = cli("compile", MODEL, "-o", folder, "-t", target, "--flash", "2M") if (
        target == "cortex-m4"
    ) else cli("compile", MODEL, "-o", folder)  # fmt: skip
    assert code == 0, out
    assert "schedules:" in out
    _, theirs, _ = cli("explain", folder, "--json")
    _, ours, _ = cli("explain", MODEL, "-t", target, "--json")
    for a, b in zip(json.loads(theirs)["steps"], json.loads(ours)["steps"], strict=True):
        for key in ("label", "flops", "bytes", "reason", "schedule", "code_bytes"):
            assert a[key] == b[key]


def test_one_kernel(cli: Cli) -> None:
    _, out, _ = cli("explain", MODEL, "--json")
    name = next(s["kernel"] for s in json.loads(out)["steps"] if "matmul" in s["label"])
    for target, instruction in (("x86-64-v3", "vfmadd"), ("cuda-sm80", "fma.rn.f32")):
        code, out, err = cli("explain", MODEL, "-t", target, "--kernel", name)
        assert code == 0, err
        assert "kernel " in out and "default rule" in out and instruction in out
    code, _, err = cli("explain", MODEL, "--kernel", "nothing")
    assert code == 1 and "there is no kernel `nothing`" in err


def test_what_is_no_artifact(cli: Cli, tmp_path: Path) -> None:
    assert cli("explain", tmp_path)[0] == 1
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    code, _, err = cli("explain", tmp_path)
    assert code == 1 and "damaged" in err


def test_words() -> None:
    trace = [
        ["pack", "w1", []], ["split", "ow", 7, "owo", "owi"], ["stage", ["owi", "co"]],
        ["vectorize", "co"], ["parallelize", "oh"],
    ]  # fmt: skip
    assert in_words(trace) == (
        "a tile of owi 7 x co stays in registers; vectors along co; w1 packed; threads share out oh"
    )
    assert in_words([]) == "plain loops"


ASSEMBLY = """
f:
\tpushq\t%rbx
\tmovq\t%rdi, 8(%rsp)
.LBB0_1:
\tvmovups\t(%rsp), %zmm1
\tcallq\texpf@PLT
\tjne\t.LBB0_1
\tretq
g:
\tsub\tsp, sp, #8
.LBB1_1:
\tldr\tr0, [sp, #4]
\tbl\t__aeabi_dmul
\tbne\t.LBB1_1
\tb\tmemset
"""


def test_assembly_is_read() -> None:
    assert stack_accesses(ASSEMBLY) == {"f": 1, "g": 1}
    assert calls(ASSEMBLY) == {"f": {"expf"}, "g": {"__aeabi_dmul", "memset"}}
    assert function_text(ASSEMBLY, "g").startswith("g:\n\tsub")
    assert function_text(ASSEMBLY, "h") == ""
