"""The run of experiments.diffphy: nothing is made or judged twice, and what is wrong is said before anything slow."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.diffphy import Config, run
from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.physics.critic import Judgement
from jaxdiff.physics.endpoint import EndpointError
from jaxdiff.study import diffphy
from jaxdiff.study.diffphy import DiffPhy, run_diffphy, summary
from jaxdiff.study.diffphy_config import DiffPhyConfig
from jaxdiff.workdir import Workdir


class Family:
    name = "none"


class Model:
    """What a run asks of a pipeline, with a level that samples show and tuning raises."""

    text_encoder, family = None, Family()

    class transformer:
        class config:
            text_dim = 16

    def __init__(self, level):
        self.level = level

    def decode(self, latents):
        return latents


class Level:
    """A critic that likes bright clips, and fails after some."""

    def __init__(self, patience=10**9):
        self.patience, self.asked = patience, []

    def judge(self, videos, facts, prompts):
        if len(self.asked) + len(videos) > self.patience:
            raise EndpointError("the server is gone")
        self.asked += [*prompts]
        return [
            Judgement(dict.fromkeys(f, 0.0), 1 + v.mean() / 64, math.nan) for f, v in zip(facts, videos, strict=True)
        ]


@pytest.fixture
def world(monkeypatch):
    """A run with everything slow replaced; returns what was made, and the critics."""
    made, critics, weights = [], {"rules": Level(), "network": Level(), "endpoint": Level()}, []

    def generate(pipeline, texts, sampling, *, samples, todo, told):
        for i in todo:
            made.append((pipeline.level, texts[i], samples[i]))
            yield i, np.full((2, 4, 4, 3), pipeline.level + 10 * samples[i], np.uint8)

    def encode(pipeline, source, folder, embed, batch=1):
        assert [i for i, _ in source.read(range(len(source.names)), 1)] == [*range(len(source.names))]
        return source.names

    def finetune(pipeline, data, config, workdir, **_):
        weights.append(data.weights)
        return Model(pipeline.level + 50)

    monkeypatch.setattr(diffphy, "generate", generate)
    monkeypatch.setattr(diffphy, "encode_clips", encode)
    monkeypatch.setattr(diffphy, "finetune", finetune)
    monkeypatch.setattr(diffphy, "embed_prompts", lambda texts, embed: dict.fromkeys(texts, Conditioning(jnp.zeros(1))))
    monkeypatch.setattr(DiffPhy, "critic", lambda self, name: critics[name])
    monkeypatch.setattr(DiffPhy, "validity", lambda self, name: {"auc": 1.0, "auc_shuffled": 0.5})
    return made, critics, weights


CONFIG = DiffPhyConfig("nano", "world", limit=3, samples=4, scored=2, beta=0.05)


def test_samples_are_weighted_by_their_rewards_and_both_critics_are_asked_before_and_after(world, tmp_path):
    made, critics, weights = world
    with Workdir(tmp_path, {}) as work:
        tuned = run_diffphy(CONFIG, Model(10), work)
    assert tuned.level == 60
    assert len(made) == 3 * (2 + 4 + 2)
    trained, scored = ({k for level, _, k in made if level == 10 and (k < 4) == which} for which in (True, False))
    assert (trained, scored) == ({0, 1, 2, 3}, {4, 5})  # those that are scored are not those that are trained on
    brightness = np.arange(4) * 10 / 64 / 4 / 2  # of the two parts that could be told
    expected = np.exp(brightness / 0.05)
    np.testing.assert_allclose(weights[0].reshape(3, 4), np.tile(4 * expected / expected.sum(), (3, 1)), rtol=1e-4)
    result = json.loads((tmp_path / "result.json").read_text())
    for name in ("rules", "network"):
        assert result["critics"][name]["difference"] == pytest.approx(50 / 64 / 4 / 2, abs=1e-5)
    assert result["confirmed"] is True
    assert result["tuned_on"]["effective_sample_size"] == pytest.approx(
        expected.sum() ** 2 / (expected**2).sum(), rel=1e-4
    )
    assert "effective sample size 3" in summary(result) and "(held out; AUC 1.000" in summary(result)
    assert len(critics["network"].asked) == 12 and len(critics["rules"].asked) == 24


def test_a_gain_that_the_held_out_critic_does_not_see_is_called_so(world, tmp_path):
    world[1]["network"].judge = lambda videos, facts, prompts: [Judgement({}, 3.0, 3.0)] * len(videos)
    with Workdir(tmp_path, {}) as work:
        run_diffphy(CONFIG, Model(10), work)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["confirmed"] is False
    assert result["critics"]["network"] | {"low": None, "high": None, "difference": 0.0} == result["critics"]["network"]
    assert "reward hacking" in summary(result)


def test_an_interrupted_run_asks_and_makes_nothing_twice(world, tmp_path):
    made, critics, _ = world
    config = dataclasses.replace(CONFIG, critic="endpoint", held_out="none", endpoint="http://a/v1", endpoint_model="m")
    critics["endpoint"].patience = 8
    with Workdir(tmp_path, {}) as work, pytest.raises(EndpointError):
        run_diffphy(config, Model(10), work)
    plan = (tmp_path / "plans" / "0001.json").stat().st_mtime_ns
    critics["endpoint"].patience = 10**9
    with Workdir(tmp_path, {}) as work:
        run_diffphy(config, Model(10), work)
    assert len(made) == 3 * 8
    assert len(critics["endpoint"].asked) == 3 * 8
    assert (tmp_path / "plans" / "0001.json").stat().st_mtime_ns == plan
    (tmp_path / "plans" / "0001.json").write_text("red disc, please")
    with Workdir(tmp_path, {}) as work, pytest.raises(ConfigError, match=r"0001\.json is not JSON.*remove it"):
        run_diffphy(config, Model(10), work)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None, "model": "somewhere"}, "--config=None: say whose"),
        ({"beta": 0.0}, "--beta=0"),
        ({"samples": 0}, "--samples=0"),
        ({"critic": "rules", "held_out": "rules"}, "hold another one out"),
        ({"tune": "objective"}, "--critic=network, not rules"),
        ({"threshold": 2.0}, "--threshold=2"),
        ({"phenomena": -1.0}, "must not be negative"),
        ({"critic": "endpoint"}, "--endpoint='' is no address"),
        ({"critic": "endpoint", "endpoint": "http://localhost:9/v1"}, "--endpoint_model is missing"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_read(change, message):
    with pytest.raises(ConfigError, match=message):
        DiffPhyConfig(**{"model": "nano", "prompts": "world", **change})


def test_wrong_prompts_an_unreachable_endpoint_and_a_wrong_critic_are_said_before_a_weight_is_read(
    tmp_path, monkeypatch
):
    import jaxdiff.pipeline

    monkeypatch.setattr(jaxdiff.pipeline, "load", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "p.txt").write_text("a ball falls\n")
    base = Config("nano", "world", limit=2)
    with pytest.raises(ConfigError, match="'a ball falls' is none of the generated world"):
        run(dataclasses.replace(base, prompts=str(tmp_path / "p.txt")), tmp_path / "a")
    server = {"critic": "endpoint", "endpoint": "http://127.0.0.1:9/v1", "endpoint_model": "m"}
    with pytest.raises(ConfigError, match=r"does not answer.*Is the server started"):
        run(dataclasses.replace(base, **server), tmp_path / "b")
    (tmp_path / "critic.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no critic"):
        run(dataclasses.replace(base, critic_file=tmp_path / "critic.npz"), tmp_path / "c")
