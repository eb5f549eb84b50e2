"""From a folder of logs to the logs that ship: only what compilation uses.

In: a folder as `tilewright tune --logs` writes it. Out: `<destination>/<target>/<operator>.jsonl` with the
last winner of every kernel and the last choice between ways of every node, sorted, without trials. A
winner that gained less than 3 % keeps the default: other machines of the same target differ by as much.
Usage: python -m tilewright.tune.ship LOGS DESTINATION TARGET
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tilewright.schedule.target import load_target
from tilewright.tune import records
from tilewright.tune.identity import target_hash
from tilewright.tune.library import Library
from tilewright.tune.records import Record

#: What a schedule must gain to ship.
MIN_GAIN = 0.03


def ship(source: Path, destination: Path, target: str) -> int:
    """Write the shipped form of a target's logs, next to what is there for other kernels; their number."""
    library = Library(target_hash(load_target(target)))
    for folder in (destination, source):
        for record in records.read(folder, target):
            library.add(record)
    kept = [*map(_worth_shipping, library.winners.values()), *library.ways.values()]
    files: dict[Path, list[bytes]] = {}
    for r in sorted(kept, key=lambda r: (r.operator, r.kind, r.kernel)):
        files.setdefault(records.log_file(destination, target, r.operator), []).append(r.to_line())
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(lines))
    return len(kept)


def _worth_shipping(record: Record) -> Record:
    least = (record.seconds or 0) / record.default if record.default else 0
    small = max(record.ratio or 0, least) > 1 - MIN_GAIN
    if record.verdict != "faster" or not small:
        return record
    return replace(record, verdict="default", choice={}, trace=(), note="gain too small to ship")


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 4:
        sys.exit("usage: python -m tilewright.tune.ship LOGS DESTINATION TARGET")
    source, destination, target = sys.argv[1:]
    print(f"{ship(Path(source), Path(destination), target)} records in {destination}/{target}")


if __name__ == "__main__":
    main()
