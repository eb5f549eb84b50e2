"""Which operators of which format are imported, and how; for tables.

In: the registry and the frontends' own tables. Out: operator -> what becomes of it.
Invariant: every operator of the formats is listed, refused ones with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx.defs
import tflite

from tilewright.frontend.composed import COMPOSED
from tilewright.frontend.constants import CONSTANTS
from tilewright.frontend.control import CONTROL
from tilewright.frontend.domains import OTHER_DOMAINS
from tilewright.frontend.qoperator import QOPERATORS
from tilewright.frontend.schema import MICROSOFT
from tilewright.frontend.structural import REFUSED, STRUCTURAL
from tilewright.frontend.tflite import operators as lite
from tilewright.frontend.tflite.nested import NESTED
from tilewright.frontend.tflite.state import VARIABLES
from tilewright.registry import onnx_importers

COMPILED = "compiled"
BY_FUNCTION = "compiled, by ONNX's function body"
CONSTANT = "computed at compile time"
MISSING = "not supported"
#: Names of TFLite's list that are not operators of its own.
_SKIPPED = ("STABLEHLO_", "PLACEHOLDER_")


def onnx_operators() -> Mapping[str, str]:
    """ONNX operator (with its domain, but for the standard one) -> what becomes of it."""
    out: dict[str, str] = {}
    for schema in onnx.defs.get_all_schemas():
        name = f"{schema.domain}::{schema.name}" if schema.domain else str(schema.name)
        if not schema.deprecated:
            out[name] = _onnx(schema.domain, schema.name, _has_function(schema))
    out.update({f"com.microsoft::{name}": COMPILED for name in MICROSOFT})
    return dict(sorted(out.items()))


def _onnx(domain: str, name: str, function: bool) -> str:
    if (domain, name) in OTHER_DOMAINS:
        return COMPILED
    if domain == "" and name in REFUSED:
        return f"{MISSING}: {REFUSED[name]}"
    if domain == "" and (name in {*CONSTANTS, "Constant", "Range", "Shape", "Size"}):
        return CONSTANT
    if domain == "" and (
        name in {*onnx_importers(), *STRUCTURAL, *QOPERATORS, *COMPOSED, *CONTROL}
    ):
        return COMPILED
    return BY_FUNCTION if function else MISSING


def _has_function(schema: Any) -> bool:
    return bool(schema.has_function or schema.has_context_dependent_function)


def tflite_operators() -> Mapping[str, str]:
    """TFLite operator -> the number formats it is compiled for, or why it is refused."""
    builtin = [
        n for n in vars(tflite.BuiltinOperator) if n.isupper() and not n.startswith(_SKIPPED)
    ]
    tables = {
        "float": {*lite.FLOAT, *lite.BYTES, *lite.RECURRENT, *NESTED, *VARIABLES},
        "int8": {*lite.INTEGER, *lite.BYTES},
        "int8 weights": {*lite.HYBRID},
    }
    out: dict[str, str] = {}
    for name in sorted(builtin):
        known = [kind for kind, names in tables.items() if name in names]
        reason = lite.REFUSED.get(name)
        said = f"{MISSING}: {reason}" if reason else MISSING
        out[name] = f"{COMPILED} ({', '.join(known)})" if known else said
    return out
