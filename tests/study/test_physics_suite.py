"""The suite's bookkeeping: equal budgets, clips and what covers them, and what is wrong is said first."""

import dataclasses

import numpy as np
import pytest

from experiments import physics_suite
from jaxdiff.data.worlds import WorldConfig, prompts
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.physics.rewards import check_masks
from jaxdiff.study import physics_suite_clips
from jaxdiff.study.methods import clips_of
from jaxdiff.study.physics_suite_clips import prompted_scenes, scenes
from jaxdiff.study.physics_suite_config import BESIDE, METHODS, VARIANTS, PhysicsSuiteConfig
from jaxdiff.study.physics_suite_costs import Cost, table
from jaxdiff.train.latents import WorldClips


def test_every_variant_has_the_same_budget_and_only_told_methods_are_compared_with_told_ones():
    config = PhysicsSuiteConfig("nano", steps=7, batch=3)
    recipes = [config.fine_tuning(2, {}), config.control_training(2), config.reward_tuning(2)]
    assert {(r.recipe.steps, r.batch, r.recipe.seed, r.recipe.ema) for r in recipes} == {(7, 3, 2, 0.99)}
    assert set(VARIANTS) == {m.trained for m in METHODS.values()} - {None}
    told = {name for name, method in METHODS.items() if method.told != "prompt"}
    assert set(BESIDE) | set(BESIDE.values()) == told and set(BESIDE.values()) == {"plain-frame"}
    few = dataclasses.replace(config, variants=("plain", "oro"))
    assert list(few.methods) == ["base", "plain", "oro", "plain-frame", "oro-frame"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variants": ("plain", "pdim")}, "'pdim' is unknown; did you mean pidm"),
        ({"variants": ("drift",)}, "plain among them"),
        ({"variants": ("plain", "plain")}, "each once"),
        ({"seeds": ()}, "--seeds="),
        ({"steps": 0}, "--steps=0 must be at least 1"),
        ({"scenes": 0}, "--scenes=0 must be at least 1"),
        ({"limit": 0}, "--limit=0"),
        ({"beta": 0.0}, "--beta=0.0"),
        ({"reward": "speed"}, "--reward=speed"),
        ({"backward": "last", "backward_steps": None}, "need a number of steps"),
        ({"threshold": 2.0}, "--threshold=2.0"),
        ({"pidm_weight": -1.0}, "--pidm_weight=-1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        PhysicsSuiteConfig("nano", **given)


def test_the_binary_knows_the_flags_of_the_suite_and_says_what_is_wrong_before_anything_is_made(tmp_path):
    theirs = {f.name for f in dataclasses.fields(physics_suite.Config)} - {"config"}
    assert theirs == {f.name for f in dataclasses.fields(PhysicsSuiteConfig)}
    named = PhysicsSuiteConfig("nano", **physics_suite.NAMED["nano"])
    assert named == PhysicsSuiteConfig("nano")  # the defaults are those of the named configuration
    with pytest.raises(ConfigError, match="a branch of 9 blocks"):
        physics_suite.run(physics_suite.Config(blocks=9), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        physics_suite.run(physics_suite.Config(model=str(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scenes_are_the_training_clips_with_what_covers_them_and_are_found_by_prompt(monkeypatch):
    world, source = WorldConfig(), WorldClips(64, 1)
    drawn = scenes(world, 1, 64)
    assert [prompts.as_text(row) for row in drawn.words] == list(source.captions)
    np.testing.assert_array_equal(drawn.video, np.stack([video for _, video in source.read(range(64), 1)]))
    shown = drawn.object[:, 0].any((1, 2))
    assert (shown == (np.array(source.captions) != "nothing nothing nothing")).all()  # the first frame shows the thing
    check_masks(drawn[shown].object[..., None])
    half = drawn.screen[:, world.switch]
    assert (half.mean((1, 2)) > 0.5).all() and not drawn.screen[:, 0].any()  # up in the middle, down at first
    names, counts = np.unique(np.array(source.captions)[shown], return_counts=True)
    caption = str(names[counts.argmax()])
    rows = np.flatnonzero(np.array(source.captions) == caption)
    monkeypatch.setattr(physics_suite_clips, "MOST", 1)
    found = prompted_scenes(world, 1, [caption, caption], [1, 0])
    np.testing.assert_array_equal(found.video, drawn.video[rows[[1, 0]]])
    with pytest.raises(ConfigError, match="do not show"):
        prompted_scenes(world, 1, ["red disc flies"], [0])


def test_the_table_of_budgets_shows_what_equal_steps_cost():
    cost = Cost(120, 3840, 3840, 0, 1_000_000, 4 * 10**12, 0)
    dear = dataclasses.replace(cost, evaluations=30720, decoded=3840, operations=10**13)
    found = table({"plain": cost, "oro": dear}, {"plain": "plain", "oro": "ORO"})
    assert [row[1:3] for row in found.rows] == [("120", "3,840")] * 2
    assert found.rows[1][6:8] == ("10.00", "2.5")


def test_fewer_prompts_are_the_first_ones():
    assert clips_of(2, 3) == (clips_of(2)[0][:6], [0, 1] * 3)
