"""probe.csv: the same rows give the same bytes, in columns that do not move."""

import csv

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.report import PROBE_COLUMNS, probe_csv


def test_the_bytes_are_fixed(tmp_path):
    rows = [
        {"protocol": "corrected", "model": "trained", "site": "block_out", "pooling": "mean", "block": 4,
         "sigma": 0.1, "metric": "accuracy", "value": np.float32(2) / np.float32(3),
         "low": float("nan"), "high": None, "clips": 720},
        {"value": np.float64(1) / 3, "sigma": 0.1 + 0.2, "low": -0.0, "metric": "a,b"},
    ]  # fmt: skip
    probe_csv(tmp_path / "probe.csv", rows)
    head, first, second = (tmp_path / "probe.csv").read_bytes().split(b"\n")[:3]
    assert head.decode() == ",".join(PROBE_COLUMNS)
    assert first == b"corrected,trained,,block_out,mean,4,,0.1,,,,,accuracy,0.666666687,,,720,,"
    assert second == b',,,,,,,0.3,,,,,"a,b",0.333333333,0,,,,'
    probe_csv(tmp_path / "again.csv", (dict(reversed(r.items())) for r in rows))
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "probe.csv").read_bytes()


def test_float32_comes_back_exactly(tmp_path):
    values = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    probe_csv(tmp_path / "p.csv", ({"value": v} for v in values))
    with open(tmp_path / "p.csv", newline="") as file:
        back = np.array([np.float32(row["value"]) for row in csv.DictReader(file)])
    np.testing.assert_array_equal(back, values)


def test_an_unknown_column_is_refused_with_the_closest_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError, match="no column 'accuracy_'"):
        probe_csv(tmp_path / "p.csv", [{"accuracy_": 1}])
    with pytest.raises(ConfigError, match="did you mean 'pooling'"):
        probe_csv(tmp_path / "p.csv", [{"poling": "mean"}])
    assert not list(tmp_path.iterdir())
