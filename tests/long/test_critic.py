"""Rules read tracks: they tell broken clips from whole ones by the law that was broken, and nothing from shuffled labels."""

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError
from jaxdiff.physics.critic import Judgement, RuleCritic, Weights, probability, reward
from jaxdiff.physics.planner import WorldPlanner
from jaxdiff.physics.rules import LIMIT, Body, logit_of, parse_fact
from jaxdiff.physics.violations import LAWS, VIOLATIONS, clips
from jaxdiff.probes.statistics import auc

CONFIG = WorldConfig()
TIME = np.arange(17)


@pytest.fixture(scope="module")
def drawn():
    return clips(CONFIG, seed=5, count=256)


@pytest.fixture(scope="module")
def judged(drawn):
    facts = [WorldPlanner().plan(caption).facts for caption in drawn.captions]
    return RuleCritic().judge(drawn.video, facts, drawn.captions)


# -------------------------------------------------------------------------------------------------------- violations


def test_clips_before_the_break_are_those_of_a_whole_clip_and_after_it_another(drawn):
    assert [np.sum(drawn.kinds == k) for k in range(len(VIOLATIONS))] == [32] * 8
    whole = clips(CONFIG, 5, 64, ("nothing",))  # a scene has the same number whatever happens in it
    for kind in ("vanish", "recolour", "shrink", "teleport", "kick"):
        same = (drawn.video[:64] == whole.video).all((2, 3, 4))[drawn.kinds[:64] == [*VIOLATIONS].index(kind)]
        assert same[:, :4].all()
        assert not same.all(1).any(), kind


def test_laws_say_what_each_kind_breaks(drawn):
    assert drawn.laws[drawn.kinds == 0].all()
    assert all(np.sum(~drawn.laws[drawn.kinds == k], 1).min() >= 1 for k in range(1, 8))
    assert {law for broken in VIOLATIONS.values() for law in broken} == {*LAWS}
    with pytest.raises(ConfigError, match="explode"):
        clips(CONFIG, 0, 4, ("explode",))


# ------------------------------------------------------------------------------------------------------- rule critic


def test_the_rule_critic_tells_broken_clips_from_whole_ones_and_shuffled_labels_from_nothing(drawn, judged):
    scores = {
        "commonsense": np.array([one.commonsense for one in judged]),
        "reward": np.array([reward(one) for one in judged]),
    }
    right = drawn.kinds == 0
    assert auc(scores["commonsense"], right) >= 0.95
    assert auc(scores["reward"], right) >= 0.85  # two thirds of it are not about broken laws
    for kind, name in enumerate(VIOLATIONS):
        if kind:
            of = right | (drawn.kinds == kind)
            assert auc(scores["commonsense"][of], right[of]) >= 0.9, name  # 32 clips against 32: sd .03 at .95
    shuffles = [np.random.default_rng(s).permutation(right) for s in range(20)]
    areas = [auc(scores["commonsense"], labels) for labels in shuffles]
    assert abs(np.mean(areas) - 0.5) < 4 * 0.053 / math.sqrt(20)  # sd of one: sqrt(257 / (12 * 32 * 224))


def test_the_broken_law_is_the_fact_that_is_denied(drawn, judged):
    spoken = {"persists": "persists", "recolour": "keeps its colour", "kick": "moves steadily", "vanish": "persists"}
    for name in ("vanish", "recolour", "kick"):
        which = np.flatnonzero(drawn.kinds == [*VIOLATIONS].index(name))
        broken, whole = (
            np.array([next(v for f, v in judged[i].facts.items() if f.endswith(spoken[name])) for i in rows])
            for rows in (which, np.flatnonzero(drawn.kinds == 0))
        )
        assert np.mean(broken < 0) > 0.8 and np.mean(whole > 0) > 0.9, name


def test_showing_nothing_earns_nothing_and_another_prompt_less(drawn):
    empty = np.full((1, 17, 32, 32, 3), 128, np.uint8)
    plan = WorldPlanner().plan("red disc slides-left")
    (found,) = RuleCritic().judge(empty, [plan.facts], ["red disc slides-left"])
    assert (found.facts["the red disc persists"], found.semantic) == (-LIMIT, 1.0)
    assert found.commonsense < 1.02
    assert reward(found) < 0.01
    i = int(np.flatnonzero(drawn.kinds == 0)[0])
    told = drawn.captions[i]
    other = next(p for p in drawn.captions if not {*p.split()} & {*told.split()})
    video = drawn.video[i : i + 1].repeat(2, 0)
    right, wrong = RuleCritic().judge(video, [WorldPlanner().plan(p).facts for p in (told, other)], [told, other])
    assert right.semantic == 5.0
    assert wrong.semantic < 2.5
    assert reward(right) > reward(wrong) + 0.2
    with pytest.raises(ConfigError, match="none of the generated world"):
        RuleCritic().judge(empty, [()], ["a ball falls"])


# ------------------------------------------------------------------------------------------------------------- rules


def path(x, y):
    return np.stack([np.broadcast_to(x, 17), np.broadcast_to(y, 17)], -1).astype(float)


STILL, LEVEL = np.full(17, 0.5), 0.5
PARABOLA = 0.2 + 0.002 * TIME**2
HOPS = 0.8 - 0.3 * np.abs(np.cos(np.pi * TIME / 8))


@pytest.mark.parametrize(
    ("fact", "yes", "no"),
    [
        ("the ball falls", path(0.5, PARABOLA), path(0.5, PARABOLA[::-1])),
        ("the ball falls", path(0.5, PARABOLA), path(0.5, LEVEL)),
        (
            "the ball falls",
            path(0.5, PARABOLA),
            path(0.5, 0.8 - 0.002 * (16 - TIME) ** 2),
        ),  # it floats down ever slower
        ("the ball bounces", path(0.5, HOPS), path(0.5, PARABOLA)),
        ("The ball moves left.", path(0.9 - 0.02 * TIME, 0.5), path(0.1 + 0.02 * TIME, 0.5)),
    ],
)
def test_motions_are_told_from_their_opposites(fact, yes, no):
    assert logit_of(fact, {"ball": Body(yes)}) > 2
    assert logit_of(fact, {"ball": Body(no)}) < -2


def test_an_effect_before_its_cause_is_denied():
    fact = "the cue hits the ball before the ball moves"
    cue = Body(path(np.minimum(0.1 + 0.04 * TIME, 0.42), 0.5), radius=0.04)  # touches at frame 8
    after = Body(path(0.5 + 0.03 * np.maximum(TIME - 8, 0), 0.5), radius=0.04)
    early = Body(path(0.5 + 0.03 * np.maximum(TIME - 4, 0), 0.5), radius=0.04)
    for ball, logit in ((after, LIMIT), (early, -LIMIT), (Body(path(0.5, 0.5), 0.04), -LIMIT)):
        assert logit_of(fact, {"cue": cue, "ball": ball}) == logit
    far = dataclasses.replace(cue, position=cue.position - [0, 0.4])
    assert logit_of(fact, {"cue": far, "ball": after}) == -LIMIT  # it moves by itself
    assert math.isnan(logit_of(fact, {"ball": after}))


def test_what_no_rule_knows_cannot_be_told():
    assert parse_fact("the ball dreams").kind == ""
    assert parse_fact("the red disc is a disc") == parse_fact("The red disc is disc.")
    for fact in ("the ball dreams", "the cup persists", "the ball persists", "the ball is red"):
        assert math.isnan(logit_of(fact, {"ball": Body(path(0.5, 0.5))}))


# ------------------------------------------------------------------------------------------------------- judgements


def test_a_reward_leaves_out_what_cannot_be_told():
    full = Judgement({"a": 0.0, "b": math.nan}, 5.0, 3.0)
    assert reward(full) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert reward(full, Weights(2, 1, 0)) == pytest.approx((2 * 0.5 + 1) / 3)
    assert reward(Judgement({}, math.nan, 2.0)) == pytest.approx(0.25)
    assert math.isnan(reward(Judgement({"a": math.nan}, math.nan, math.nan)))
    assert probability(-1e9) == pytest.approx(0) and probability(1e9) == 1.0
    for weights in ((0, 0, 0), (-1, 1, 1)):
        with pytest.raises(ConfigError, match="weights"):
            Weights(*weights)


def test_a_judgement_survives_json():
    first = Judgement({"a": 1.5, "b": math.nan}, 2.25, math.nan, ("slow",))
    again = Judgement.from_json(json.loads(json.dumps(first.to_json())))
    assert str(again) == str(first)
    with pytest.raises(ConfigError, match="no judgement"):
        Judgement.from_json({"facts": {}})
