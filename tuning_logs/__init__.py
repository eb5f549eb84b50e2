"""Tuned schedules that ship: `<target>/<operator>.jsonl` (see docs/tuning.md)."""
