"""Work that is left to one block of a GPU says why; what is spread, or small, says nothing."""

from __future__ import annotations

import importlib

import pytest
from graph_helpers import Builder

from tilewright import api
from tilewright.loop.parse import parse
from tilewright.pipeline import build
from tilewright.schedule.grid import one_block

NEST = """\
kernel k(a: f32[{blocks}, 256], out c: f32[{blocks}, 256])
  {kind} block0 in {blocks}:
    thread thread0 in 256:
      c[{where}, thread0] = {value}
"""


@pytest.mark.parametrize(
    ("kind", "blocks", "where", "value", "said"),
    [
        ("block", 64, "block0", "a[block0, thread0]:f32", ""),
        ("for", 4, "block0", "a[block0, thread0]:f32", ""),
        ("for", 64, "block0", "a[block0, thread0]:f32", "nothing binds `block0`"),
        ("for", 64, "0", "(c[0, thread0]:f32 + a[block0, thread0]:f32)", "it runs in one block: "),
    ],
)
def test_reasons(kind: str, blocks: int, where: str, value: str, said: str) -> None:
    found = one_block(parse(NEST.format(kind=kind, blocks=blocks, where=where, value=value)))
    assert said in found and bool(found) == bool(said)


def test_one_thread() -> None:
    alone = parse("""\
kernel k(a: f32[8192], out c: f32[8192])
  for i in 8192:
    c[i] = a[i]:f32
""")
    assert "one thread" in one_block(alone)


def test_a_grid_that_is_refused_is_in_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when independence cannot be proved any more: the program is right, and says that it is slow."""
    b = Builder(x=(64, 1024))
    b.node("relu", "y", "x")
    graph = b.done("y")
    (reason,) = build(graph, "cuda-sm80").reasons.values()
    assert reason == "default rule"
    module = importlib.import_module("tilewright.schedule.primitives.bind")
    monkeypatch.setattr(module, "meeting", lambda kernel, var: "nobody can tell blocks apart")
    program = build(graph, "cuda-sm80")
    (reason,) = program.reasons.values()
    assert reason == "default rule; it runs in one block: nobody can tell blocks apart"
    (fact,) = api.facts_of(program)
    assert fact.reason == reason
