"""Every solver against a fine reference, on a field that traces in milliseconds."""

import json

import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import SOLVERS, invert
from jaxdiff.flow.plan import make_plan
from jaxdiff.study import solvers
from jaxdiff.study.solvers import (
    Measured,
    SolverStudy,
    Walked,
    best,
    errors,
    report_study,
    run_solvers,
    steps_for,
    walk,
)
from tests.flow.pipelines import ROUNDING, WAN, inputs, toy

LEVELS = (0.3, 0.6)


@pytest.fixture(scope="module")
def parts():
    """Three clips in batches of two, the last one padded."""
    latents, text = inputs(4)
    return [(latents[:2], Conditioning(text=text[:2]), 2), (latents[2:], Conditioning(text=text[2:]), 1)]


@pytest.fixture(scope="module")
def reference(parts):
    return walk(toy(), parts, "midpoint", 64, LEVELS)


def test_a_walk_is_the_inversion_of_every_clip_without_the_padding(parts, reference):
    latents, text = inputs(4)
    run = invert(toy(), latents[:2], text[:2], steps=64, solver="midpoint", taps=(solvers.TAP,), capture_sigmas=LEVELS)
    assert reference.end.shape == (3, *latents.shape[1:]) and reference.features.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(reference.end[:2], run.latents, **ROUNDING)
    np.testing.assert_allclose(reference.features[:, :, :2], run.captured["block_out.mean"], **ROUNDING)
    assert reference.evaluations == run.evaluations
    again = Walked.unpack(reference.pack())
    np.testing.assert_array_equal(again.features, reference.features)
    assert again.evaluations == reference.evaluations


def test_errors_are_zero_for_the_reference_and_smaller_for_a_higher_order(parts, reference):
    assert all(np.abs(values).max() < 1e-9 for values in errors(reference, reference).values())
    euler, heun = (
        errors(walk(toy(), parts, name, steps_for(SOLVERS[name], 18, len(LEVELS)), LEVELS), reference)
        for name in ("euler", "heun")
    )
    for metric in solvers.METRICS:
        assert euler[metric].shape == (3,)
        assert np.all(heun[metric] < euler[metric]) and euler[metric].min() > 1e-7


def test_what_all_clips_share_does_not_count_for_the_contrast(reference):
    shared = reference.features.mean(2, keepdims=True)
    # Twice as far apart in the same directions: the cosine of what differs is still one.
    shifted = Walked(reference.end, (shared + 2 * (reference.features - shared)).astype(np.float32), 1)
    found = errors(shifted, reference)
    assert np.abs(found["contrast_error"]).max() < 1e-6 and found["feature_error"].max() > 1e-5


def test_a_clip_that_diverged_is_nan_and_its_solver_is_not_the_best(reference):
    broken = Walked(reference.end * np.array([1, np.inf, 1])[:, None, None, None, None], reference.features, 1)
    found = errors(broken, reference)
    assert np.isnan(found["end_error"]).tolist() == [False, True, False]
    good = errors(Walked(reference.end * 1.1, reference.features, 1), reference)
    runs = [Measured("a", 8, 8, 8, found), Measured("b", 8, 8, 8, good)]
    assert best(runs, "end_error") == {8: "b"}
    half = Measured("half", 0, 4, 8, good)
    report = report_study(runs, half, SolverStudy("m", "real"), 3)
    assert [panel.title for panel in report.panels] == ["Where the inversion ends", "What a probe would read"]
    assert solvers.result_json(runs, half, 3)["solvers"][0]["end_error"] is None


@pytest.mark.parametrize(
    ("name", "budget", "steps"),
    [("euler", 8, 6), ("heun", 9, 2), ("fireflow", 8, 3), ("fixed_point", 22, 0), ("fixed_point", 52, 3)],
)
def test_a_budget_buys_the_steps_that_it_pays_for(name, budget, steps):
    assert steps_for(SOLVERS[name], budget, len(LEVELS)) == steps
    if steps:
        plan = make_plan(WAN, steps=steps, sigmas=None, up=True, rounded=False, reads=True, capture_sigmas=LEVELS)
        assert plan.evaluations(SOLVERS[name]) <= budget < plan.evaluations(SOLVERS[name]) + SOLVERS[name].evaluations


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"solvers": ("eulr",)}, "did you mean 'euler'"), ({"solvers": ("dpmpp_2m_sde",)}, "only goes down"),
     ({"clips": 1}, "at least 2"), ({"evaluations": ()}, "2 or more"), ({"levels": ()}, "no noise level")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SolverStudy("nano", "nano", **settings)


def test_every_solver_and_budget_is_reported_and_nothing_is_run_twice(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(solvers, "prepare", lambda config, workdir: (toy(), parts))
    config = SolverStudy("m", "real", solvers=("euler", "fixed_point"), evaluations=(5, 22), reference=2, levels=(0.5,))
    run_solvers(config, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_bytes())
    assert [(r["solver"], r["budget"], r["steps"]) for r in result["solvers"]] == [
        ("euler", 5, 4), ("euler", 22, 21), ("fixed_point", 22, 1)
    ]  # fmt: skip
    assert result["clips"] == 3 and result["solvers"][1]["end_error"] < result["solvers"][0]["end_error"]
    assert "What a probe would read" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "run/DONE").unlink()
    before = (tmp_path / "run/fidelity.csv").read_bytes()
    monkeypatch.delattr(solvers, "walk")
    run_solvers(config, tmp_path / "run")
    assert (tmp_path / "run/fidelity.csv").read_bytes() == before
