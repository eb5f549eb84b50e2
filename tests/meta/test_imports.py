"""The import rules of DESIGN.md §2, checked by parsing every import of the package.

A rule that fails names the file, the import and the rule: move the code, do not relax the rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "compiler" / "tilewright"
KERNELS = ROOT / "kernels"

#: package -> (what it may never import, why)
NEVER: dict[str, tuple[tuple[str, ...], str]] = {
    "core": (
        ("tilewright",),
        "core imports nothing of ours but core",
    ),
    "graph": (
        ("loop", "schedule", "codegen", "tune", "frontend"),
        "graph never imports loop, schedule, codegen, tune or frontend",
    ),
    "loop": (
        ("graph", "schedule", "codegen", "tune", "frontend", "registry", "kernels"),
        "loop never imports graph, schedule, codegen, tune or frontend, and knows no operator",
    ),
    "codegen": (
        ("graph", "frontend", "tune", "registry", "kernels", "artifact", "runtime"),
        "codegen gets finished loop IR and a Target, and knows no operator",
    ),
    "schedule": (
        ("graph", "frontend", "tune", "registry", "kernels", "codegen", "artifact", "runtime"),
        "schedule knows no operator and no graph",
    ),
    "frontend": (
        ("loop", "schedule", "codegen", "tune", "artifact", "runtime"),
        "a frontend only produces a Graph",
    ),
}

#: third-party module -> packages of ours that may import it
ONLY: dict[str, tuple[str, ...]] = {
    "onnx": ("frontend", "onnx_backend", "backend_suite", "testing"),
    "google": ("frontend", "testing"),
    "tflite": ("frontend",),
    "flatbuffers": ("frontend",),
    "llvmlite": ("codegen",),
    "hypothesis": ("testing",),
    "typer": ("cli", "commands"),
    "rich": ("cli", "commands"),
}

#: packages that a device uses without the compiler -> what of ours they may import
ALONE: dict[str, tuple[str, ...]] = {
    "runtime": ("errors", "runtime", "artifact"),
    "artifact": ("errors", "runtime", "artifact"),
}


def sources() -> list[Path]:
    return [*sorted(PACKAGE.rglob("*.py")), *sorted(KERNELS.glob("*.py"))]


def module_name(path: Path) -> str:
    """`tilewright.graph.ir` for compiler/tilewright/graph/ir.py, `tilewright.kernels.x` for kernels/x.py."""
    base = KERNELS if path.is_relative_to(KERNELS) else PACKAGE
    prefix = ["tilewright", "kernels"] if base is KERNELS else ["tilewright"]
    parts = [*prefix, *path.relative_to(base).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, at any depth; `from a import b` gives `a.b`."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def area(path: Path) -> str:
    """First part below the package: `graph`, `kernels`, or the module's name for top-level files."""
    parts = module_name(path).split(".")
    return parts[1] if len(parts) > 1 else ""


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


CASES = [pytest.param(p, id=str(p.relative_to(ROOT))) for p in sources()]


@pytest.mark.parametrize("path", CASES)
def test_layers(path: Path) -> None:
    own = area(path)
    forbidden, rule = NEVER.get(own, ((), ""))
    for name in imports(path):
        for other in forbidden:
            full = other if other == "tilewright" else f"tilewright.{other}"
            if inside(name, full) and not inside(name, f"tilewright.{own}"):
                pytest.fail(f"{path} imports {name}, but {rule} (DESIGN.md §2)")


@pytest.mark.parametrize("path", CASES)
def test_third_party(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        allowed = ONLY.get(top)
        if allowed is not None and area(path) not in allowed:
            pytest.fail(
                f"{path} imports {name}, but only {', '.join(allowed)} may import {top} (DESIGN.md §2)"
            )


@pytest.mark.parametrize("path", CASES)
def test_device_side_stands_alone(path: Path) -> None:
    own = ALONE.get(area(path))
    if own is None:
        return
    for name in imports(path):
        top = name.split(".")[0]
        ours = top == "tilewright" and any(inside(name, f"tilewright.{o}") for o in own)
        if not ours and top != "numpy" and top not in sys.stdlib_module_names:
            pytest.fail(
                f"{path} imports {name}, but {area(path)} may import only the standard library, NumPy and "
                f"{', '.join(own)}: a device has no compiler (DESIGN.md §2)"
            )


@pytest.mark.parametrize("path", CASES)
def test_operators_and_targets_are_discovered(path: Path) -> None:
    for name in imports(path):
        for found in ("tilewright.kernels", "tilewright.targets"):
            if not inside(name, found) or (inside(module_name(path), found) and name == found):
                continue
            pytest.fail(
                f"{path} imports {name}, but operators and targets are found by the registry, never "
                "imported by name; shared lowering helpers live in core, loop or schedule (DESIGN.md §2)"
            )
