"""Every command as a user calls it: exit codes, one clear line for what is wrong, files written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tilewright.bench import references, verify
from tilewright.cli import main

DATA = Path(__file__).resolve().parent / "data"
MODEL = str(DATA / "mlperftiny_dscnn_kws_fp32_randw.onnx")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def model(
    nodes: list[Any], inputs: dict[str, list[Any]], output: str = "y", **more: Any
) -> onnx.ModelProto:
    """A small float model; `more` goes to make_graph."""
    ins = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", ins, [out], **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def one_line(err: str) -> str:
    """The only error line; fails if there is a traceback or more than one."""
    assert "Traceback" not in err, err
    lines = [s for s in err.splitlines() if s.startswith("error:")]
    assert len(lines) == 1, err
    return lines[0]


# ---------------------------------------------------------------- compile and run


def test_compile_writes_an_artifact_that_runs(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code, out, err = cli("compile", MODEL, "-o", folder, "--dump-ir", tmp_path / "ir")
    assert code == 0, err
    name = "mlperftiny_dscnn_kws_fp32_randw"
    names = {p.name for p in folder.iterdir()}
    assert {f"{name}.o", f"{name}.a", f"{name}.h", "manifest.json", "example.c"} <= names
    assert "arena" in out and "weights" in out and f"{name}.o" in out
    dumped = {p.name for p in (tmp_path / "ir").iterdir()}
    assert {"1_imported.graph", "2_optimised.graph", "3_groups.txt", "6_assembly.s"} <= dumped
    if f"{name}.so" not in names:
        pytest.skip("no C compiler here: no shared library to run")
    results: list[Any] = []
    for source in (MODEL, folder):
        target = tmp_path / f"results{len(results)}"
        code, out, err = cli("run", source, "--random", 3, "--output", target, "--repeat", 1)
        assert code == 0, err
        results.append([np.load(p) for p in sorted(target.iterdir())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_run_reads_inputs_and_profiles(cli: Cli, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1, 1, 49, 10), np.float32)
    np.save(tmp_path / "x.npy", x)
    code, out, err = cli("run", MODEL, "--input", f"input={tmp_path / 'x.npy'}", "--profile")
    assert code == 0, err
    assert "GFLOP/s" in out and "roofline" in out and "conv2d" in out


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("nope={x}", "nope"),
        ("input={wrong}", "float32"),
        ("input={missing}", "missing.npy"),
    ],
)
def test_run_refuses_wrong_inputs(cli: Cli, tmp_path: Path, option: str, says: str) -> None:
    files = {k: tmp_path / f"{k}.npy" for k in ("x", "wrong", "missing")}
    np.save(files["x"], np.zeros((1, 1, 49, 10), np.float32))
    np.save(files["wrong"], np.zeros((2, 2), np.float64))
    code, _, err = cli("run", MODEL, "--input", option.format(**files))
    assert code == 1
    assert says in one_line(err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", MODEL],
        ["compile", MODEL, "-o", "x", "--shape", "input"],
        ["compile", MODEL, "-o", "x", "--shape", "input=1,-3"],
        ["run", MODEL, "--threads", "0"],
        ["bench", MODEL, "--against", "abacus"],
        ["bench"],
        ["nonsense"],
    ],
)
def test_wrong_usage_exits_2(cli: Cli, arguments: list[str]) -> None:
    code, _, err = cli(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_unwritable_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = cli("compile", MODEL, "-o", tmp_path / "file")
    assert code == 1
    assert "file" in one_line(err)


def test_unknown_target(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("compile", MODEL, "-o", tmp_path, "--target", "abacus")
    assert code == 1
    assert "abacus" in one_line(err)


# ---------------------------------------------------------------- broken models


def truncated(folder: Path) -> Path:
    path = folder / "truncated.onnx"
    path.write_bytes(Path(MODEL).read_bytes()[:5000])
    return path


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def unknown_operator(folder: Path) -> Path:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Frobnicate", ["a"], ["y"], "frob"),
    ]
    return saved(folder, model(nodes, {"x": [1, 4]}))


def dangling(folder: Path) -> Path:
    return saved(folder, model([helper.make_node("Relu", ["ghost"], ["y"])], {"x": [1, 4]}))


def negative(folder: Path) -> Path:
    return saved(folder, model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, -4]}))


def outside(folder: Path) -> Path:
    (folder.parent / "secret.bin").write_bytes(bytes(16))
    w = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    w.external_data.add(key="location", value="../secret.bin")
    return saved(
        folder, model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [1, 4]}, initializer=[w])
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (truncated, "truncated"),
        (unknown_operator, "Frobnicate"),
        (dangling, "ghost"),
        (negative, "-4"),
        (outside, "secret.bin"),
        (lambda folder: folder / "absent.onnx", "absent.onnx"),
    ],
)
@pytest.mark.parametrize("command", ["compile", "verify"])
def test_broken_models_give_one_line(
    cli: Cli, tmp_path: Path, make: Callable[[Path], Path], says: str, command: str
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    extra = ["-o", tmp_path / "out"] if command == "compile" else []
    code, _, err = cli(command, make(folder), *extra)
    assert code == 1
    assert says in one_line(err)


def test_check(cli: Cli, tmp_path: Path) -> None:
    assert cli("check", MODEL)[0] == 0
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], "first"),
        helper.make_node("Defenestrate", ["a"], ["y"], "second"),
    ]
    code, out, _ = cli("check", saved(tmp_path, model(nodes, {"x": [1, 4]})))
    assert code == 1
    assert "Frobnicate" in out and "Defenestrate" in out and "second" in out


# ---------------------------------------------------------------- verify, bench, demo


def test_verify_passes(cli: Cli) -> None:
    code, out, err = cli("verify", MODEL, "--seeds", 1)
    assert code == 0, err
    assert "verified" in out


def test_verify_without_onnxruntime(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "onnxruntime_reference", lambda source, inner: None)
    code, out, _ = cli("verify", MODEL, "--seeds", 1)
    assert code == 0
    assert "interpreter" in out


def test_verify_names_the_first_layer_that_departs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the compiled weights of the third step is found there, not at the output."""
    original = verify.Verifier.__init__

    def sabotage(self: verify.Verifier, source: Any, compiled: Any, tolerance: float) -> None:
        original(self, source, compiled, tolerance)
        session = compiled.session()
        step = compiled.program.steps[3]
        place = next(p for p in step.places if p.base == "weights")
        session.weights[place.offset : place.offset + 64].view(np.float32)[...] += 0.5
        self.sabotaged = step.nodes[0]  # type: ignore[attr-defined]
        seen.append(step.nodes[0])

    seen: list[str] = []
    monkeypatch.setattr(verify.Verifier, "__init__", sabotage)
    code, out, _ = cli("verify", MODEL, "--seeds", 1)
    assert code == 1
    line = next(s for s in out.splitlines() if "first layer that departs" in s)
    assert f"`{seen[0]}`" in line


def test_bench(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = tmp_path / "bench.json"
    code, out, err = cli(
        "bench", MODEL, "--against", "onnxruntime", "--repeat", 2, "--json", target
    )
    assert code == 0, err
    assert "geometric mean" in out
    data = json.loads(target.read_text(encoding="utf-8"))
    (row,) = data["models"]
    assert set(row["minimum"]) == {"tilewright", "onnxruntime"}
    assert row["error"]["onnxruntime"] < 1e-4
    assert row["ratio"] == row["minimum"]["onnxruntime"] / row["minimum"]["tilewright"]
    assert data["machine"]["cpus"] and data["versions"]["tilewright"]


def test_bench_reports_a_peer_that_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.bench import peers

    def broken(case: peers.Case) -> peers.Runner:
        raise RuntimeError("this peer is out of order")

    monkeypatch.setitem(peers.PEERS, "onnxruntime", broken)
    monkeypatch.setattr("tilewright.commands.bench.version", lambda peer: "1")
    code, out, err = cli("bench", MODEL, "--against", "onnxruntime", "--repeat", 1)
    assert code == 0
    assert "out of order" in err
    assert "geometric mean" not in out


def test_bench_marks_a_peer_that_computes_something_else(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is marked and stays in the ratio: leaving it out could only flatter us."""
    from tilewright.bench import peers

    monkeypatch.setitem(peers.PEERS, "onnxruntime", lambda case: lambda: [np.ones((1, 12))])
    monkeypatch.setattr("tilewright.commands.bench.version", lambda peer: "1")
    target = tmp_path / "bench.json"
    code, out, err = cli(
        "bench", MODEL, "--against", "onnxruntime", "--repeat", 1, "--json", target
    )
    assert code == 0
    assert "differ from ours" in err and "* outputs differ" in out
    assert json.loads(target.read_text(encoding="utf-8"))["models"][0]["ratio"] is not None


def test_demo(cli: Cli, tmp_path: Path) -> None:
    script = tmp_path / "hello.py"
    script.write_text("import sys\n\n\ndef main() -> None:\n    print('hello', sys.argv)\n" * 8)
    code, out, err = cli("demo", script, "-o", tmp_path / "out")
    assert code == 0, err
    assert "Python source" in out and "agrees" in out and "latency" in out and "arena" in out


# ---------------------------------------------------------------- lists


def test_lists(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_ZOO", str(tmp_path))
    for arguments, says in [
        (["targets"], "x86-64-v3"),
        (["targets", "x86-64-v4"], "vector_bytes"),
        (["ops"], "matmul"),
        (["ops", "--markdown"], "| matmul |"),
        (["models"], "onnx_light_resnet50"),
        (["models", "--suite", "tiny"], "mlperftiny_resnet8"),
        (["--help"], "compile"),
        (["--version"], "tilewright"),
    ]:
        code, out, err = cli(*arguments)
        assert code == 0, err
        assert says in out


def test_a_closed_pipe_is_no_traceback() -> None:
    program = "from tilewright.cli import main; main(['ops', '--markdown'])"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode != 0
    assert done.stderr == ""
