"""Operators: one file per operator family, found by file name."""
