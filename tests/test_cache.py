"""The cache on disk: what comes out is what went in, whatever happens to its files."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.cache import SUFFIX, Cache, default_folder, default_limit, key_of
from tilewright.cli import main

DATA = Path(__file__).resolve().parent / "data"
MODEL = DATA / "mlperftiny_resnet8_ic_fp32_randw.onnx"


def stored(cache: Cache, key: str) -> dict[str, bytes] | None:
    entry = cache.get(key)
    return None if entry is None else {n: b"".join(p) for n, p in entry.files.items()}


def test_round_trip(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    weights = os.urandom(10_000)
    files = {"a.o": b"head" + weights + b"tail", "a.so": b"x" + weights, "a.h": b"", "n": b"none"}
    assert cache.put("k", files, {"notes": ["one"]}, weights)
    assert stored(cache, "k") == files
    entry = cache.get("k")
    assert entry is not None and entry.facts == {"notes": ["one"]}
    assert (tmp_path / f"k{SUFFIX}").stat().st_size < 11_000  # the weights are there once
    assert cache.get("other") is None


@pytest.mark.parametrize("at", [0, 20, 60, 100, 5_000, -1])
def test_damaged_entry_is_dropped(tmp_path: Path, at: int) -> None:
    cache = Cache(tmp_path)
    cache.put("k", {"f": bytes(10_000)}, {})
    path = tmp_path / f"k{SUFFIX}"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert cache.get("k") is None
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 5, 30, 55, 70, 9_000])
def test_short_entry_is_dropped(tmp_path: Path, length: int) -> None:
    cache = Cache(tmp_path)
    cache.put("k", {"f": bytes(10_000)}, {})
    path = tmp_path / f"k{SUFFIX}"
    path.write_bytes(path.read_bytes()[:length])
    assert cache.get("k") is None


def test_limit_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 35_000)
    for i in range(3):
        cache.put(str(i), {"f": bytes([i]) * 10_000}, {})
        os.utime(tmp_path / f"{i}{SUFFIX}", (i, i))
    assert cache.get("0") is not None  # used now
    cache.put("3", {"f": b"3" * 10_000}, {})
    assert [cache.get(k) is not None for k in "0123"] == [True, False, True, True]
    assert not cache.put("large", {"f": os.urandom(20_000)}, {})
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 35_000


def test_abandoned_files_go(tmp_path: Path) -> None:
    left = tmp_path / "writing-dead"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    young = tmp_path / "writing-alive"
    young.write_bytes(b"half")
    Cache(tmp_path).put("k", {"f": b"x"}, {})
    assert not left.exists() and young.exists()


def test_no_folder_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for cache in (Cache(None), Cache(tmp_path / "file" / "below")):
        assert not cache.put("k", {"f": b"x"}, {})
        assert cache.get("k") is None


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "/somewhere")
    assert default_folder() == Path("/somewhere")
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    assert default_folder() is None
    monkeypatch.delenv("TILEWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_folder() == Path("/x/tilewright/compiled")
    for text, limit in (("500M", 500 << 20), ("3g", 3 << 30), ("77", 77), ("much", 2 << 30)):
        monkeypatch.setenv("TILEWRIGHT_CACHE_SIZE", text)
        assert default_limit() == limit


def test_keys_are_of_names_and_values() -> None:
    assert key_of([("a", "b"), ("c", "")]) != key_of([("a", ""), ("c", "b")])


def _writer(folder: Path, seed: int) -> None:
    cache = Cache(folder, 200_000)
    for i in range(60):
        cache.put(f"{i % 4}", {"f": bytes([i % 4]) * 20_000}, {})
        found = cache.get(f"{(i + seed) % 4}")
        assert found is None or b"".join(found.files["f"]) == bytes([(i + seed) % 4]) * 20_000


def test_concurrent_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_writer, args=(tmp_path, seed)) for seed in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert [w.exitcode for w in workers] == [0] * 4
    assert not [p for p in tmp_path.iterdir() if p.suffix != SUFFIX]


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compiled(out: Path, *more: str, model: Path = MODEL) -> dict[str, bytes]:
    with pytest.raises(SystemExit) as end:
        main(["compile", str(model), "-o", str(out), *more])
    assert not end.value.code
    return {p.name: p.read_bytes() for p in out.iterdir()}


def test_compile_again_gives_the_same_bytes(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = compiled(tmp_path / "a", "--name", "m")
    said = capfd.readouterr().out
    assert "compiled in" in said
    again = compiled(tmp_path / "b", "--name", "m")
    assert "taken from the cache" in capfd.readouterr().out
    (tmp_path / "b" / "m.h").write_text("edited")
    restored = compiled(tmp_path / "b", "--name", "m")
    without = compiled(tmp_path / "c", "--name", "m", "--no-cache")
    assert "compiled in" in capfd.readouterr().out
    assert first == again == restored == without
    assert len(list(folder.iterdir())) == 1
    compiled(tmp_path / "d", "--name", "other")
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_entry_is_compiled_again(folder: Path, tmp_path: Path) -> None:
    first = compiled(tmp_path / "a")
    for entry in folder.iterdir():
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 8
        entry.write_bytes(data)
    assert compiled(tmp_path / "b") == first
    assert len(list(folder.iterdir())) == 1


def test_tensors_beside_the_model_count(folder: Path, tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.arange(64, dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    first = compiled(tmp_path / "a", model=path)
    assert compiled(tmp_path / "b", model=path) == first
    (tmp_path / "w.bin").write_bytes(np.ones(64, np.float32).tobytes())
    assert compiled(tmp_path / "c", model=path) != first


def test_from_the_cache_without_the_compiler(folder: Path, tmp_path: Path) -> None:
    """The second time no compiler is imported, which is what makes it quick."""
    compiled(tmp_path / "a")
    code = (
        "import sys; from tilewright.cli import main\n"
        f"try: main(['compile', {str(MODEL)!r}, '-o', {str(tmp_path / 'b')!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'llvmlite', 'onnx', 'tilewright.pipeline', 'tilewright.api', 'tilewright.codegen.kernel'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    assert best < 4, f"{best:.1f} s"  # 0.4 s on an idle machine
