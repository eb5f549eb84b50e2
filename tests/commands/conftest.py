"""Commands run in this process: `cli(*arguments)` gives exit code, stdout and stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from tilewright.cli import main

Cli = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
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


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """`saved(nodes, inputs, outputs, initializers, type)` writes a small model and returns its path."""

    def save(
        nodes: list[Any],
        inputs: dict[str, list[int]],
        outputs: list[str],
        initializers: list[onnx.TensorProto] | None = None,
        kind: int = TensorProto.FLOAT,
        functions: list[onnx.FunctionProto] | None = None,
    ) -> Path:
        ins = [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()]
        outs = [helper.make_tensor_value_info(n, kind, None) for n in outputs]
        graph = helper.make_graph(nodes, "g", ins, outs, initializers or [])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        made = helper.make_model(
            graph, opset_imports=opsets, ir_version=8, functions=functions or []
        )
        path = tmp_path / "model.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    return save
