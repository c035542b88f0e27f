"""Tests mirror the tree of the project; `tests/parity` compares with torch, `tests/long` holds whole runs, kills
and trainings; both run by name only."""
