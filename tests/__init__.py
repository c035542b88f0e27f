"""Tests mirror the tree of the project; `tests/parity` compares with torch and runs by name only."""
