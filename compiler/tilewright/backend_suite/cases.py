"""The backend tests of the installed `onnx` package, and the verdict on one of them.

In: a kind of cases. Out: `Case`s, a `Verdict` for each.
Invariant: results are judged by onnx's own comparison with the case's own tolerances.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.backend.test
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from tilewright.errors import TilewrightError
from tilewright.onnx_backend import Backend

#: Kinds of cases as onnx calls them; `light` are its `real` models with weights of one value.
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "light")

Outcome = Literal["pass", "refused", "wrong", "crash", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how to judge its results; `source` is onnx's own description."""

    kind: str
    name: str
    source: Any

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` says why a case does not pass; `operators` are the model's; `fixed` the inputs whose values
    were compiled in, `constant` says that no input is left: the results are constants."""

    key: str
    outcome: Outcome
    reason: str = ""
    operators: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    constant: bool = False
    seconds: float = 0.0


def load_cases(kinds: Sequence[str] = KINDS) -> list[Case]:
    """All cases of these kinds, by kind and name."""
    out: list[Case] = []
    for kind in kinds:
        with warnings.catch_warnings():  # onnx computes infinities on purpose
            warnings.simplefilter("ignore")
            found = load_model_tests(kind="real" if kind == "light" else kind)
        out += [Case(kind, t.name, t) for t in sorted(found, key=lambda t: t.name)]
    return out


def judge(case: Case) -> Verdict:
    """Compile and run a case in this process. Never raises for what a model does."""
    start = time.perf_counter()
    outcome: Outcome = "pass"
    reason = ""
    prepared = None
    model: Any = None
    try:
        model = _model(case)
        prepared = Backend.prepare(model)
        for inputs, wanted in _data(case, model):
            got = prepared.run(inputs)
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _compare(wanted, got, case.source.rtol, case.source.atol)
    except TilewrightError as err:
        outcome, reason = "refused", str(err)
    except AssertionError as err:
        outcome, reason = "wrong", _short(err)
    except Exception as err:
        outcome, reason = "error", f"{type(err).__name__}: {_short(err)}"
    return Verdict(
        case.key,
        outcome,
        reason,
        tuple(dict.fromkeys(n.op_type for n in model.graph.node)) if model is not None else (),
        prepared.fixed if prepared is not None else (),
        prepared.constant if prepared is not None else False,
        time.perf_counter() - start,
    )


def _compare(wanted: Sequence[Any], got: Sequence[Any], rtol: float, atol: float) -> None:
    """Raise `AssertionError` unless results agree; lists are compared member by member."""
    assert len(wanted) == len(got), f"{len(got)} results, not {len(wanted)}"
    for w, g in zip(wanted, got, strict=True):
        if isinstance(w, list | tuple) and isinstance(g, list | tuple):
            _compare(w, g, rtol, atol)
        elif w is None or g is None:
            assert w is g, f"{type(g).__name__}, not {type(w).__name__}"
        else:
            Runner.assert_similar_outputs([w], [g], rtol, max(atol, _noise(w)))


def _noise(wanted: Any) -> float:
    """Two steps of f32 at the largest element: what expected values that should be 0 are off by."""
    single = isinstance(wanted, np.ndarray) and wanted.dtype == np.float32 and wanted.size > 0
    return (
        float(2.0**-22 * np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0)) if single else 0.0
    )


def _short(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return "; ".join(lines[:6])[:300]


# ---------------------------------------------------------------- models and data


def _model(case: Case) -> onnx.ModelProto:
    if case.kind == "node":
        model: onnx.ModelProto = case.source.model
        return model
    if case.kind == "light":
        return onnx.load(_light(case))
    return onnx.load(Path(case.source.model_dir) / "model.onnx")


def _light(case: Case) -> Path:
    """The file of a light model, inside the onnx package."""
    root = Path(onnx.backend.test.__file__).parent
    return root / str(case.source.url).removeprefix("onnx/backend/test/")


def _data(case: Case, model: onnx.ModelProto) -> Iterator[tuple[list[Any], list[Any]]]:
    """Inputs and wanted outputs, set by set."""
    if case.kind == "node":
        for inputs, wanted in case.source.data_sets:
            yield [_array(x) for x in inputs], [_array(x) for x in wanted]
    elif case.kind == "light":
        stored = {t.name for t in model.graph.initializer}
        given = [i for i in model.graph.input if i.name not in stored]
        path = _light(case)
        outputs = range(len(model.graph.output))
        wanted = [path.with_name(f"{path.stem}_output_{i}.pb") for i in outputs]
        yield (
            [Runner.generate_dummy_data(i) for i in given],
            [_read(p, o) for p, o in zip(wanted, model.graph.output, strict=True)],
        )
    else:
        for folder in sorted(Path(case.source.model_dir).glob("test_data_set*")):
            yield (
                _read_all(folder, "input", model.graph.input),
                _read_all(folder, "output", model.graph.output),
            )


def _array(x: Any) -> Any:
    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


def _read_all(folder: Path, what: str, infos: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return [_read(folder / f"{what}_{i}.pb", infos[i]) for i in range(count)]


def _read(path: Path, info: onnx.ValueInfoProto) -> Any:
    """A stored value of the type that the model declares."""
    data = path.read_bytes()
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(data)
        return onnx.numpy_helper.to_list(sequence)
    if kind == "optional_type":
        optional = onnx.OptionalProto()
        optional.ParseFromString(data)
        return onnx.numpy_helper.to_optional(optional)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(data)
    return onnx.numpy_helper.to_array(tensor)
