"""House rules that a linter does not know."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("compiler", "kernels", "targets", "tests", "docs", "tuning_logs")
SOURCES = sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.py") if ".egg-info" not in str(p))
MAX_LINES = 500


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in SOURCES])
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_LINES, (
        f"{path} has {lines} lines, at most {MAX_LINES}: split it by what changes together"
    )
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), (
            f"{path} does not open with a docstring: what comes in, what goes out"
        )
    left = re.search(r"#\s*(TODO|FIXME|XXX|HACK)\b", text)
    assert left is None, (
        f"{path} leaves `{left and left.group(0)}`: do it, or say in an issue what is missing"
    )


def test_every_package_is_installed() -> None:
    """A package that pyproject.toml does not list works from a checkout and is missing in a wheel."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "setuptools"
    ]
    found = {
        ".".join(p.parent.relative_to(ROOT / "compiler").parts)
        for p in (ROOT / "compiler").rglob("__init__.py")
    }
    found |= {"tilewright.kernels", "tilewright.targets", "tilewright.tuning_logs"}
    assert found == set(tool["packages"]), (
        "pyproject.toml's list of packages and the folders differ"
    )


def test_every_operator_explains_itself() -> None:
    from tilewright.registry import operators

    silent = sorted(op.name for op in operators().values() if not op.doc.strip())
    assert not silent, f"operators without a `doc` (shown by `tilewright ops`): {', '.join(silent)}"


def test_every_operator_has_one_file() -> None:
    from tilewright.registry import operators

    homes: dict[str, set[str]] = {}
    for op in operators().values():
        for f in (op.infer, op.reference):
            if f.__module__.startswith("tilewright.kernels."):
                homes.setdefault(op.name, set()).add(f.__module__)
    spread = {name: sorted(h) for name, h in homes.items() if len(h) > 1}
    assert not spread, f"operators that live in more than one file: {spread}"
