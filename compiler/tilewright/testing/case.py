"""One test of one schedule, complete in itself: what a failure is written down as.

In: a kernel, a trace, a target, data. Out: a `Case`, and the JSON that makes the same case anywhere.
Invariant: a case depends on nothing but this package: the kernel is loop-IR text (which holds layouts as
strides), a target is a name or the text of its file, data are kinds and seeds or the values themselves.
"""

from __future__ import annotations

import base64
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from tilewright.core.index import bounds
from tilewright.errors import TargetError, TilewrightError
from tilewright.loop.ir import Binary, Block, Buffer, Expr, For, If, Kernel
from tilewright.loop.parse import parse
from tilewright.loop.rewrite import children, expressions, loads
from tilewright.loop.text import to_text
from tilewright.schedule.target import Target, load_target, target_from_table
from tilewright.schedule.trace import Trace, trace_from_json, trace_to_json
from tilewright.testing.data import Kind, make

SCHEMA = 1
#: Larger than any case of ours.
MAX_BYTES = 16 << 20
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Data:
    """Values of one parameter: `kind` and `seed`, or `values` (bytes of a dense array) where given."""

    kind: Kind = "integers"
    seed: int = 0
    values: bytes | None = None

    def array(self, buffer: Buffer) -> Array:
        """Values of shape `buffer.shape`; raises `TilewrightError` if there are too few bytes."""
        if self.values is None:
            return make(self.kind, buffer, self.seed)
        want = int(np.prod(buffer.shape)) * buffer.dtype.bytes
        if len(self.values) != want:
            raise TilewrightError(
                f"the case holds {len(self.values)} bytes for {buffer.name}, which has {want}"
            )
        return np.frombuffer(self.values, buffer.dtype.numpy).reshape(buffer.shape).copy()


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: the oracle that saw it, one sentence, where."""

    oracle: str
    message: str
    buffer: str = ""
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        at = f" at {self.buffer}{list(self.index)}" if self.buffer else ""
        return f"{self.oracle}: {self.message}{at}"


@dataclass(frozen=True, slots=True, repr=False)
class Case:
    """A kernel, its schedule, the target it is compiled for, and the data it runs on.

    `operator` says where the kernel came from, `guilty` which step or pass the bisection blames.
    """

    kernel: Kernel
    trace: Trace
    target: str
    data: Mapping[str, Data] = field(default_factory=dict[str, Data])
    oracles: tuple[str, ...] = ()
    operator: str = ""
    guilty: str = ""
    failure: Failure | None = None

    def __repr__(self) -> str:
        steps = ", ".join(map(str, self.trace))
        return (
            f"<case of {self.operator or self.kernel.name} on {self.target.split()[0]}: [{steps}]>"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What Hypothesis prints of a counterexample: not every field of every expression."""
        printer.text("\n".join(summary(self)))

    def with_(self, **changes: Any) -> Case:
        """A copy with some fields replaced."""
        return replace(self, **changes)

    def machine(self) -> Target:
        """The target; raises `TargetError` if it is unknown or malformed."""
        if "\n" in self.target:
            try:
                return target_from_table("custom", tomllib.loads(self.target))
            except tomllib.TOMLDecodeError as err:
                raise TargetError(f"the case's target is not TOML: {err}") from None
        return load_target(self.target)

    def arrays(self) -> dict[str, Array]:
        """Values of all parameters that the kernel reads; numbers of places to shift by are below a word's bits."""
        made = {
            p.buffer.name: self.data.get(p.buffer.name, Data()).array(p.buffer)
            for p in self.kernel.params
            if p.role != "out"
        }
        for name in _places(self.kernel) & made.keys():
            made[name] %= 8 * made[name].itemsize - 1
        return made

    @property
    def size(self) -> tuple[int, int, int]:
        """What shrinking makes smaller: steps, iterations, text."""
        return len(self.trace), iterations(self.kernel), len(to_text(self.kernel))


def _places(kernel: Kernel) -> set[str]:
    """Parameters by whose values something is shifted as they are, which only works below a word's bits."""
    found: set[str] = set()
    seen: set[int] = set()
    stack = list(expressions(kernel.body))
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        stack.extend(children(e))
        if isinstance(e, Binary) and e.op in ("shl", "shr") and not _compared(e.b):
            found |= {x.buffer for x in loads(e.b)}
    return found


def _compared(amount: Expr) -> bool:
    """Whether the amount is held against an upper end."""
    upper = isinstance(amount, Binary) and amount.op == "lt"
    return upper or any(map(_compared, children(amount)))


def iterations(kernel: Kernel) -> int:
    """Times that innermost statements run, roughly: the product of extents along each path, summed."""

    def count(block: Block, ranges: dict[str, tuple[int, int]]) -> int:
        total = 0
        for s in block:
            match s:
                case For(var, extent, body, _):
                    _, hi = bounds(extent, ranges)
                    n = max(hi or 0, 0)
                    total += n * count(body, {**ranges, var: (0, max(n - 1, 0))})
                case If(_, then, orelse):
                    total += count(then, ranges) + count(orelse, ranges)
                case _:
                    total += 1
        return total

    return count(kernel.body, {})


def summary(case: Case) -> list[str]:
    """A case in under 25 lines; what is long is cut, which only its file holds whole."""
    name = case.operator or case.kernel.name
    lines = [f"failure of {name}: {case.failure}" if case.failure else repr(case)]
    if case.guilty:
        lines.append(f"  guilty: {case.guilty}")
    kernel = to_text(case.kernel).rstrip().splitlines()
    shown = kernel if len(kernel) <= 12 else [*kernel[:11], f"  ... {len(kernel) - 11} more lines"]
    lines += [f"  {line}" for line in (*shown, *map(str, case.trace[:6]))]
    if len(case.trace) > 6:
        lines.append(f"  ... {len(case.trace) - 6} more steps")
    return lines


# ---------------------------------------------------------------- JSON


def to_json(case: Case) -> str:
    """The case as JSON, readable: the kernel is a list of lines."""
    table = {
        "schema": SCHEMA,
        "tilewright": metadata.version("tilewright"),
        "operator": case.operator,
        "target": case.target,
        "kernel": to_text(case.kernel).splitlines(),
        "trace": trace_to_json(case.trace),
        "data": {
            name: {"kind": d.kind, "seed": d.seed}
            if d.values is None
            else {"values": base64.b64encode(d.values).decode()}
            for name, d in sorted(case.data.items())
        },
        "oracles": list(case.oracles),
        "guilty": case.guilty,
        "failure": None
        if case.failure is None
        else {
            "oracle": case.failure.oracle,
            "message": case.failure.message,
            "buffer": case.failure.buffer,
            "index": list(case.failure.index),
        },
    }
    return json.dumps(table, indent=1) + "\n"


def from_json(text: str | bytes) -> Case:
    """The case of a JSON text from anywhere; `TilewrightError` says what is wrong with it."""
    if len(text) > MAX_BYTES:
        raise TilewrightError(f"the case is larger than {MAX_BYTES} bytes")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise TilewrightError(f"the case is not JSON: {err}") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise TilewrightError("the file is not a case of `tilewright fuzz` (no schema 1)")
    kernel = parse("\n".join(_strings(table, "kernel")))
    names = {p.buffer.name for p in kernel.params}
    data: dict[str, Data] = {}
    for name, item in _field(table, "data", dict).items():
        if name not in names or not isinstance(item, dict):
            raise TilewrightError(f"the case has data for `{name}`, which the kernel has not")
        data[name] = _data(name, item)
    failure = table.get("failure")
    return Case(
        kernel, trace_from_json(table.get("trace")), _field(table, "target", str), data,
        tuple(_strings(table, "oracles")), _field(table, "operator", str),
        _field(table, "guilty", str), _failure(failure) if isinstance(failure, dict) else None,
    )  # fmt: skip


def read(path: Path) -> Case:
    """The case in a file; `TilewrightError` if it cannot be read."""
    try:
        return from_json(path.read_bytes())
    except OSError as err:
        raise TilewrightError(f"{path} cannot be read: {err.strerror or err}") from None
    except TilewrightError as err:
        raise TilewrightError(f"{path}: {err}") from None


def _data(name: str, item: Mapping[str, Any]) -> Data:
    if "values" in item:
        try:
            return Data(values=base64.b64decode(str(item["values"]), validate=True))
        except ValueError:
            raise TilewrightError(f"the values of `{name}` are not base64") from None
    kind, seed = item.get("kind"), item.get("seed")
    if kind not in get_args(Kind) or not isinstance(seed, int) or seed < 0:
        raise TilewrightError(f"the data of `{name}` are of kind {kind!r}, seed {seed!r}")
    return Data(cast(Kind, kind), seed)


def _failure(item: Mapping[str, Any]) -> Failure:
    index = item.get("index")
    whole = isinstance(index, list) and all(isinstance(i, int) for i in index)
    return Failure(
        str(item.get("oracle", "")), str(item.get("message", "")), str(item.get("buffer", "")),
        tuple(index) if whole and isinstance(index, list) else (),
    )  # fmt: skip


def _field(table: Mapping[str, Any], key: str, kind: type) -> Any:
    value = table.get(key)
    if not isinstance(value, kind):
        raise TilewrightError(f"`{key}` of the case is no {kind.__name__}")
    return value


def _strings(table: Mapping[str, Any], key: str) -> Sequence[str]:
    value = _field(table, key, list)
    if not all(isinstance(v, str) for v in value):
        raise TilewrightError(f"`{key}` of the case holds something that is no string")
    return [str(v) for v in value]
