"""The number of scenes that fits a time budget is chosen once."""

import json

import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.study import budget
from jaxdiff.study.config import StudyConfig
from jaxdiff.study.study import control_levels, evaluations
from jaxdiff.workdir import Workdir


def config(**changes):
    return StudyConfig("nano", steps=20, **{"time_budget": 160.0, "scenes": 60, "error_steps": 5, **changes})


@pytest.mark.parametrize(
    ("seconds", "each", "scenes"),
    [(100, 1.0, 100), (103, 1.0, 100), (10, 1.0, 60), (-5, 1.0, 60), (10_000, 1.0, 160)],
)
def test_as_many_scenes_as_fit_in_steps_of_five_between_least_and_most(seconds, each, scenes):
    assert budget.fitting(seconds, each, 60) == scenes


def test_a_least_number_above_the_most_wins():
    assert budget.fitting(10_000, 1.0, 200) == 200


def test_a_run_that_goes_on_keeps_the_number_whatever_the_machine_does_now(tmp_path, monkeypatch):
    with Workdir(tmp_path, {}) as work:
        monkeypatch.setattr(budget, "seconds_per_clip", lambda *_: 0.02)
        first = budget.choose_scenes(work, config(), None, None, 4.0, 5.0)
        assert 60 < first < 160
        assert json.loads((tmp_path / "scenes.json").read_bytes())["scenes"] == first
        monkeypatch.setattr(budget, "seconds_per_clip", lambda *_: pytest.fail("timed again"))
        assert budget.choose_scenes(work, config(), None, None, 4.0, 50.0) == first
        (tmp_path / "scenes.json").write_text("{}")
        with pytest.raises(MissingDataError, match="scenes"):
            budget.choose_scenes(work, config(), None, None, 4.0, 5.0)


def test_without_a_budget_nothing_is_timed_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "seconds_per_clip", lambda *_: pytest.fail("timed"))
    with Workdir(tmp_path, {}) as work:
        assert budget.choose_scenes(work, config(time_budget=0.0, scenes=7), None, None, 4.0, 5.0) == 7
    assert not (tmp_path / "scenes.json").exists()


def test_a_budget_needs_scenes_to_choose(tmp_path):
    with pytest.raises(ConfigError, match="time_budget"):
        config(dataset="intphys", data_dir=tmp_path)


def test_effort_counts_every_pass_of_every_network():
    levels = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert control_levels(levels) == (0.3, 0.7)
    # three inversions of 20, 5 coarse steps, ten levels of the model and four of each of two controls
    assert evaluations(config(capture_sigmas=levels), 3) == (60 + 5 + 10 + 4) / 20
    assert evaluations(config(capture_sigmas=levels, controls=("untrained",), error_steps=0), 2) == 2.0
    assert evaluations(config(capture_sigmas=levels, controls=("reversed", "flow"), error_steps=0), 1) == 2.0
