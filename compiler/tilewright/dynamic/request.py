"""What a user asks for when sizes stay open.

In: shapes with names and ranges (`tokens=1..512`), the model's own symbolic dims. Out: a `Request`.
Invariant: every name in a shape is a size with a range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tilewright.core.sizes import Point, Size, parse_size, values_at
from tilewright.errors import ModelError

#: A dim of an input: a number, or the name of a size.
Dim = int | str
Shapes = Mapping[str, Sequence[Dim]]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for: shapes with names in them, and what the names stand for."""

    shapes: Mapping[str, tuple[Dim, ...]] = field(default_factory=dict[str, tuple[Dim, ...]])
    sizes: tuple[Size, ...] = ()

    def at(self, point: Point) -> dict[str, tuple[int, ...]]:
        """Shapes at a point of the sizes' variables."""
        values = values_at(self.sizes, point)
        return {
            name: tuple(values[d] if isinstance(d, str) else d for d in dims)
            for name, dims in self.shapes.items()
        }


def requested(
    shapes: Mapping[str, Sequence[Dim] | str] | None, declared: Callable[[], Shapes]
) -> Request:
    """Sort out shapes as users write them.

    Entries are shapes of inputs, whose dims are numbers, names of sizes or ranges (`"1..512"`), or what a name
    stands for: a range (`{"tokens": "1..512"}`) or one number (`{"tokens": (77,)}`). A name that no shape
    mentions is a symbolic dim of the model, whose inputs `declared()` gives; where an input has the same name,
    that is meant. Raises `ModelError` for a name that means nothing or a bad range.
    """
    sizes: dict[str, Size] = {}
    given: dict[str, tuple[Dim, ...]] = {}
    try:
        for name, value in (shapes or {}).items():
            found = parse_size(name, value) if isinstance(value, str) else None
            if found is not None:
                sizes[name] = found
            elif isinstance(value, str):
                raise ValueError(f"{name}={value}: write LOW..HIGH or LOW..HIGH:STEP")
            else:
                given[name] = tuple(_named(name, i, d, sizes) for i, d in enumerate(value))
    except ValueError as err:
        raise ModelError(f"--shape {err}") from None
    given, fixed = _fixed(given, declared)
    _add_declared(given, sizes, fixed, declared)
    numbered = tuple(replace(s, var=f"size{i}") for i, s in enumerate(sizes.values()))
    for name, dims in given.items():
        unknown = [d for d in dims if isinstance(d, str) and d not in sizes]
        if unknown:
            raise ModelError(
                f"--shape {name}: nothing says what `{unknown[0]}` is: add --shape {unknown[0]}=LOW..HIGH"
            )
    return Request(given, numbered)


def _named(name: str, i: int, d: Dim, sizes: dict[str, Size]) -> Dim:
    """A dim as a number or a name; a range in place gets a name of its own."""
    if isinstance(d, int) or d.lstrip("-").isdigit():
        return int(d)
    own = f"{name}_{i}"
    found = parse_size(own, d)
    if found is None:
        return d
    sizes[own] = found
    return own


def _fixed(
    given: Mapping[str, tuple[Dim, ...]], declared: Callable[[], Shapes]
) -> tuple[dict[str, tuple[Dim, ...]], dict[str, int]]:
    """Entries that say what number a name stands for, apart from the shapes, where it is put in."""
    lone = {n: d[0] for n, d in given.items() if len(d) == 1 and isinstance(d[0], int)}
    if not lone:
        return dict(given), {}
    inputs = declared()
    names = {d for n in (inputs, given) for dims in n.values() for d in dims if isinstance(d, str)}
    fixed = {n: d for n, d in lone.items() if n in names and n not in inputs and d > 0}
    shapes = {
        n: tuple(fixed.get(d, d) if isinstance(d, str) else d for d in dims)
        for n, dims in given.items()
        if n not in fixed
    }
    return shapes, fixed


def _add_declared(
    given: dict[str, tuple[Dim, ...]],
    sizes: Mapping[str, Size],
    fixed: Mapping[str, int],
    declared: Callable[[], Shapes],
) -> None:
    """Put sizes and numbers where the model's own symbolic dims have their names."""
    mentioned = {d for dims in given.values() for d in dims if isinstance(d, str)} | set(fixed)
    missing = set(sizes) - mentioned
    if not missing and not mentioned:
        return
    known: set[str] = set()
    for name, dims in declared().items():
        names = {d for d in dims if isinstance(d, str)}
        known |= names
        if name not in given and names & {*sizes, *fixed}:
            given[name] = tuple(
                d if isinstance(d, int) and d > 0 else fixed.get(str(d), d if d in sizes else -1)
                for d in dims
            )
    lost = sorted(missing - known)
    if lost:
        listed = ", ".join(sorted(known)) or "none"
        raise ModelError(
            f"--shape {lost[0]}: the model has no symbolic dimension of this name (it has: {listed}); write "
            f"--shape INPUT=1,{lost[0]} where it belongs"
        )
