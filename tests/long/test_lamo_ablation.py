"""The ablation's bookkeeping: equal prompts and noise, paired differences, nothing made twice."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.physics import METRICS
from jaxdiff.study import lamo_ablation, methods, methods_report
from jaxdiff.study.lamo_ablation import (
    LOSSES,
    METHODS,
    Ablation,
    LamoAblationConfig,
    LatentEdit,
    run_lamo_ablation,
)
from jaxdiff.study.methods import clips_of
from jaxdiff.study.methods_report import Tally
from tests.physics.test_tracking import drawn, known


def test_methods_differ_in_one_thing_at_a_time():
    plain, drift = METHODS["plain"], METHODS["drift"]
    assert (METHODS["guidance"].trained, METHODS["both"].trained) == (plain.trained, drift.trained)
    assert METHODS["guidance"].field == METHODS["both"].field is not None
    assert {m.trained for m in METHODS.values()} == {None, *LOSSES}
    config, others = LamoAblationConfig("nano"), {}
    for name, loss in LOSSES.items():
        others[name] = config.fine_tuning(3, {} if loss is None else {"drift": loss})
    assert len({str((t.recipe, t.batch, t.prompt_dropout, t.logit_mean)) for t in others.values()}) == 1


def test_every_prompt_is_sampled_equally_often():
    prompts, samples = clips_of(2)
    assert len(set(prompts)) == 72
    assert len(set(zip(prompts, samples, strict=True))) == len(prompts) == 144


def test_differences_are_paired_and_leave_out_clips_that_one_of_the_two_has_no_number_for():
    rng = np.random.default_rng(0)
    base = 10 * rng.random((3, 40))  # clips differ much more than methods do
    scores = {(s, "plain"): {"velocity": base[s]} for s in range(3)}
    scores |= {(s, "drift"): {"velocity": base[s] - 0.1 + 0.01 * rng.standard_normal(40)} for s in range(3)}
    scores[0, "drift"]["velocity"][:5] = np.nan
    tally = Tally(scores, np.arange(40) // 2, (0, 1, 2))
    found = tally.difference("drift", "velocity", "plain")
    assert found.value == pytest.approx(-0.1, abs=0.01)
    assert -0.12 < found.low < found.high < -0.08
    there = np.concatenate([scores[s, "drift"]["velocity"] for s in range(3)])
    assert tally.value("drift", "velocity").value == pytest.approx(np.nanmean(there))


def test_a_number_that_no_clip_has_is_none():
    tally = Tally({(1, "plain"): {"bounce": np.full(4, np.nan)}}, np.arange(4), (1,))
    assert np.isnan(tally.value("plain", "bounce").value)


def test_an_edit_of_the_latent_moves_all_noise_levels_alike():
    class Guidance:  # what MotionGuidance does in velocity space, with the gradient 2
        def __call__(self, x, velocity, sigma, done, cond):
            return velocity + sigma * 2.0, {"change": sigma}

    for sigma in (0.9, 0.1):
        moved, _ = LatentEdit(Guidance())(jnp.zeros(3), jnp.ones(3), sigma, 0.5, None)  # type: ignore[arg-type]
        np.testing.assert_allclose(moved, 3.0, rtol=1e-6)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """An ablation whose networks and clips are drawn by hand; returns what was made, and the workdir."""
    made = []

    def network(self, seed, trained):
        made.append((seed, trained))
        return trained

    def clips(self, seed, name, pipeline):
        made.append((seed, name, pipeline))
        rng = np.random.default_rng([seed, len(name)])
        wobble = rng.standard_normal((len(self.prompts), 17)) * (0.2 if name == "both" else 0.6)
        return np.concatenate([drawn(np.linspace(10, 20, 17) + row) for row in wobble])

    def init(self, config, pipeline, store, fields, work):
        self.config, self.pipeline, self.store, self.work = config, pipeline, range(64), work
        self.prompts, self.samples = ["red disc slides-right", "red disc slides-left"] * 3, [0, 0, 1, 1, 2, 2]

    true = known(np.linspace(10, 20, 17))
    few = {name: METHODS[name] for name in ("base", "plain", "guidance", "both")}
    monkeypatch.setattr(lamo_ablation, "METHODS", few)
    monkeypatch.setattr(lamo_ablation, "LOSSES", {name: LOSSES[name] for name in ("plain", "drift")})
    for name, value in (("network", network), ("clips", clips), ("__init__", init)):
        monkeypatch.setattr(Ablation, name, value)
    monkeypatch.setattr(methods_report, "two_level", functools.partial(methods_report.two_level, draws=100))
    monkeypatch.setattr(methods, "references", lambda *_: (true, true))

    def start():
        made.clear()
        run_lamo_ablation(LamoAblationConfig("nano", seeds=(1, 2)), None, None, {}, tmp_path)
        return made

    return start, tmp_path


def test_a_run_goes_on_where_it_stopped_and_answers_by_paired_differences(run):
    start, folder = run
    made = list(start())
    assert made.count((1, "plain")) == made.count((1, "plain", "plain")) == made.count((1, "guidance", "plain")) == 1
    assert len(made) == 2 * (4 + 3)  # clips, and networks, the checkpoint among them
    result = json.loads((folder / "result.json").read_text())
    assert result["differences"]["both"]["velocity"]["high"] < 0
    assert result["reference"]["true"]["velocity"]["value"] < result["scores"]["both"]["velocity"]["value"]
    assert result["tracker"]["true"]["missed"] == 0
    assert set(result["scores"]["plain"]) == set(METRICS)
    page = (folder / "report.html").read_text()
    assert page.count('class="moving"') == 2  # of two prompts, a row each
    assert "velocity residual" in page
    assert "| + drift loss and guidance |" in (folder / "README.md").read_text()
    assert not start()  # DONE
    (folder / "DONE").unlink()
    (folder / "seed2" / "both.npy").unlink()
    assert start() == [(2, "drift"), (2, "both", "drift")]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="--seeds=1,1"):
        LamoAblationConfig("nano", seeds=(1, 1))
    with pytest.raises(ConfigError, match="--steps=0"):
        LamoAblationConfig("nano", steps=0)
