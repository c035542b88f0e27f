"""Tests mirror the tree of the project; `tests/parity` compares with torch, `tests/long` takes a minute a test; both run by name only."""
