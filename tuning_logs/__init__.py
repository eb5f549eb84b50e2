"""Tuned schedules that ship: <target>/<kernel>.jsonl (empty until the autotuner lands)."""
