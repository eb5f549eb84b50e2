"""Whether an artifact is what its model compiles to.

In: an artifact directory, the model file. Out: problems, one sentence each; none if compiling the model
again gives the same bytes.
Invariant: what the artifact says about itself decides how it is compiled again (target, name, shapes);
nothing in it is run, and nothing in its directory changes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tilewright import api
from tilewright.artifact import manifest as manifests
from tilewright.artifact.manifest import Manifest
from tilewright.errors import TilewrightError
from tilewright.frontend.models import is_tflite
from tilewright.pipeline import Shapes, build
from tilewright.schedule.target import Target


def check_rebuilt(directory: Path, model: Path, target: str | Target | None = None) -> list[str]:
    """Compile `model` as the artifact in `directory` was and compare every file.

    `target` is needed for a target file of one's own, which the artifact knows by name only. Tuned
    schedules count: the same logs must be there. Raises `ArtifactError` for a damaged manifest.
    """
    manifest = manifests.read(directory)
    found = api.source_hash(model)
    recorded = str(manifest.facts.get("model_sha256", ""))
    if found != recorded:
        return [
            f"{model} is not the model that {directory} was compiled from: its SHA-256 is "
            f"{found[:12]}.., the manifest says {recorded[:12] or 'nothing'}.."
        ]
    spec = manifest.spec
    try:
        source, shapes = api.with_states(model, _shapes(manifest), _states(manifest, model))
        winograd = "direct" not in manifest.facts
        program = build(
            source, target or spec.target, shapes, name=spec.name, winograd=winograd,
            arena=manifest.facts.get("arena", {}).get("limit"),
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="tilewright-rebuild-") as folder:
            again = Path(folder) / spec.name
            api.write(program, again, found, selftest="selftest" in manifest.facts)
            return _compared(manifest, manifests.read(again))
    except TilewrightError as err:
        return [f"{model} cannot be compiled again: {err}"]


def _shapes(manifest: Manifest) -> Shapes:
    """What the model was compiled for: the shapes of inputs without open dims, ranges of open sizes."""
    sizes = {s.name: str(s).partition("=")[2] for s in manifest.spec.sizes}
    return {**{t.name: t.shape for t in manifest.spec.inputs if not t.dims}, **sizes}


def _states(manifest: Manifest, model: Path) -> dict[str, str]:
    """States that were declared when the model was compiled; those that a TFLite file has are its own."""
    spec = manifest.spec
    if is_tflite(model):
        return {}
    return {spec.inputs[s.input].name: spec.outputs[s.output].name for s in spec.states}


def _compared(old: Manifest, new: Manifest) -> list[str]:
    """Files that differ, or that only one of both has."""
    problems = [
        f"{name} {why}"
        for name in sorted({*old.files, *new.files})
        for why in [_difference(name, old, new)]
        if why
    ]
    if problems:
        tools, ours = old.facts.get("tools"), new.facts.get("tools")
        if isinstance(tools, Mapping) and isinstance(ours, Mapping) and tools != ours:
            changed = [f"{k} {tools.get(k)} (here {ours.get(k)})" for k in sorted({*tools, *ours}) if tools.get(k) != ours.get(k)]  # fmt: skip
            problems.append(f"other tools compiled it: {', '.join(changed)}")
    elif old.spec != new.spec:
        problems.append("the manifest describes another interface than the one that is compiled")
    return problems


def _difference(name: str, old: Manifest, new: Manifest) -> str:
    if name not in new.files:
        return "is not among the files that the model compiles to"
    if name not in old.files:
        return "is missing from the artifact"
    return "" if old.files[name] == new.files[name] else "differs from what the model compiles to"
