"""The binary experiments.pidm on its toy example: a run, its scores, and what it may be compared with."""

import json

import pytest

from experiments.pidm import Config, plain_scores, run
from jaxdiff.errors import ConfigError, MissingDataError


def test_a_run_leaves_scores_that_only_the_same_experiment_is_compared_with(tmp_path, capsys):
    plain = Config("circle", "none", steps=2)
    with pytest.raises(MissingDataError, match="no finished run"):
        plain_scores(tmp_path, plain)
    run(plain, tmp_path)
    (scores,) = json.loads((tmp_path / "result.json").read_text())["scores"].values()
    assert scores["median"] > 0 and scores["mean"] > 0 and 0 <= scores["resultant"] <= 1
    assert f"median {scores['median']:.4g}" in capsys.readouterr().out
    run(plain, tmp_path)
    assert "complete" in capsys.readouterr().out
    assert plain_scores(tmp_path, Config("circle", "mean", steps=2)) == {"raw": scores}
    with pytest.raises(ConfigError, match="--steps=2, this is 3"):
        plain_scores(tmp_path, Config("circle", "mean", steps=3))
    with pytest.raises(ConfigError, match="its own points"):
        Config("circle", batch=3)
