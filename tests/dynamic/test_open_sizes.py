"""Models with open sizes give what the same model compiled for each size gives."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from open_models import CASES, attention, model, rows

import tilewright
from tilewright.errors import ModelError
from tilewright.frontend.onnx import load_onnx
from tilewright.graph.interp import run
from tilewright.runtime.model import Model


def shapes_at(made: Model, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return made.spec.inputs_at(sizes)[0].shape


def some(low: int, high: int, step: int, seed: int) -> list[int]:
    """Both ends, their neighbours, and a few between."""
    rng = np.random.default_rng(seed)
    all_ = list(range(low, high + 1, step))
    return sorted({*all_[:2], *all_[-2:], *rng.choice(all_, 3).tolist()})


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", CASES)
def test_every_size_is_the_reference(name: str, target: str) -> None:
    make, ranges = CASES[name]
    source = make()
    made = tilewright.compile(source, target, ranges)
    assert isinstance(made, tilewright.CompiledModel)
    assert not [r for r in made.program.reasons.values() if "as they are" in r]
    grid = [some(s.low, s.high, s.step, i) for i, s in enumerate(made.spec.sizes)]
    points = list(itertools.product(*grid))
    rng = np.random.default_rng(0)
    for sizes in points if len(points) < 20 else rng.permutation(points)[:12].tolist():
        x = rng.standard_normal(shapes_at(made, tuple(sizes))).astype(np.float32)
        graph = load_onnx(source, {"x": x.shape})
        want = list(run(graph, {"x": x}).values())
        got = made(x)
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, sizes
            scale = max(float(np.abs(b).max()), 1e-30)
            assert float(np.abs(a - b).max()) / scale < 2e-5, sizes


def test_threads_change_nothing() -> None:
    one = tilewright.compile(attention(), shapes={"tokens": "1..200"})
    two = tilewright.compile(attention(), shapes={"tokens": "1..200"}, threads=2)
    for n in (1, 9, 150, 200):
        x = np.random.default_rng(n).standard_normal((1, n, 24)).astype(np.float32)
        for a, b in zip(one(x), two(x), strict=True):
            assert np.array_equal(a, b)


def test_memory_is_that_of_the_largest_sizes_and_content_elsewhere_does_not_matter() -> None:
    made = tilewright.compile(CASES["picture"][0](), shapes=CASES["picture"][1])
    assert isinstance(made, tilewright.CompiledModel)
    x = np.random.default_rng(1).standard_normal((1, 3, 24, 36)).astype(np.float32)
    first = made(x)
    made(np.full((1, 3, 64, 48), np.nan, np.float32))  # leaves NaN in the arena
    for a, b in zip(first, made(x), strict=True):
        assert np.array_equal(a, b)


def test_sizes_may_be_named_in_place() -> None:
    source = rows()
    a = tilewright.compile(source, shapes={"x": ("n", 33), "n": "1..5"})
    b = tilewright.compile(source, shapes={"x": ("1..5", 33)})
    x = np.ones((3, 33), np.float32)
    assert [s.name for s in a.spec.sizes] == ["n"] and [s.name for s in b.spec.sizes] == ["x_0"]
    assert all(np.array_equal(p, q) for p, q in zip(a(x), b(x), strict=True))


def test_wrong_shapes_are_refused_before_anything_runs() -> None:
    made = tilewright.compile(CASES["picture"][0](), shapes=CASES["picture"][1])
    for shape, words in (
        ((1, 3, 68, 8), "height is 68, compiled for height=8..64:4"),
        ((1, 3, 4, 8), "height is 4"),
        ((1, 3, 10, 8), "no input says what `height` is"),
        ((1, 4, 8, 8), r"float32\[1, 3, height, width\]"),
    ):
        with pytest.raises(ValueError, match=words):
            made(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="open sizes"):
        made.bind([np.zeros((1, 3, 8, 8), np.float32)], [])


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"tokens": "5..5"}, "goes from at least 1"),
        ({"tokens": "2..9:2"}, "multiples of 2"),
        ({"tokens": "many"}, "LOW..HIGH"),
        ({"toks": "1..9"}, "no symbolic dimension of this name .it has: tokens"),
        ({"x": (1, "n", 24)}, "nothing says what `n` is"),
        ({"x": (1, "1..9", 25)}, "24"),
    ],
)
def test_bad_requests_are_one_clear_sentence(shapes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tilewright.compile(attention(), shapes=shapes)  # type: ignore[arg-type]


def test_what_no_form_of_the_sizes_expresses_is_refused_by_name() -> None:
    flat = model(
        [helper.make_node("Reshape", ["x", "s"], ["y"], name="flatten")],
        [1, 4, "h", "w"], ["y"], {"s": np.array([1, 4, -1])},
    )  # fmt: skip
    one = tilewright.compile(flat, shapes={"h": "2..9", "x": (1, 4, "h", 6)})
    x = np.arange(1 * 4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    assert np.array_equal(one(x)[0], x.reshape(1, 4, 30))
    with pytest.raises(ModelError, match=r"h=2\.\.9, w=2\.\.9: a dim of what node `flatten`"):
        tilewright.compile(flat, shapes={"h": "2..9", "w": "2..9"})


def test_a_model_that_differs_at_small_sizes_names_the_size() -> None:
    last = model(
        [helper.make_node("Slice", ["x", "from", "to", "axis"], ["y"])],
        [1, "n"], ["y"],
        {"from": np.array([-4]), "to": np.array([1 << 40]), "axis": np.array([1])},
    )  # fmt: skip
    with pytest.raises(ModelError, match="at n=1"):
        tilewright.compile(last, shapes={"n": "1..20"})
    made = tilewright.compile(last, shapes={"n": "4..20"})
    for n in (4, 5, 20):
        x = np.arange(n, dtype=np.float32)[None]
        assert np.array_equal(made(x)[0], x[:, -4:])


def test_artifacts_keep_their_sizes(tmp_path: Path) -> None:
    path = tmp_path / "att.onnx"
    path.write_bytes(attention())
    assert onnx.load(path).graph.input[0].name == "x"
    made = tilewright.compile(path, shapes={"tokens": "1..70"})
    assert isinstance(made, tilewright.CompiledModel)
    written = made.save(tmp_path / "out")
    if "att.so" not in written.files:
        pytest.skip("no C compiler to link att.so with")
    loaded = tilewright.load(tmp_path / "out")
    assert loaded.spec == made.spec
    for n in (1, 33, 70):
        x = np.random.default_rng(n).standard_normal((1, n, 24)).astype(np.float32)
        for a, b in zip(loaded(x), made(x), strict=True):
            assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="tokens is 71"):
        loaded(np.zeros((1, 71, 24), np.float32))
    text = (tmp_path / "out" / "att.h").read_text()
    assert "x[1, tokens, 24]" in text and "#define ATT_SIZES_LARGEST {70}" in text
