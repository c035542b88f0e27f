"""Reward-weighted regression against its closed form, the three-term objective, and the critic that a gradient passes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.prompts import encode_all
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.network import Network
from jaxdiff.physics import measure, track
from jaxdiff.physics.critic import Weights
from jaxdiff.physics.network_critic import (
    ClipCriticConfig,
    load_critic,
    save_critic,
    train_critic,
    varied,
)
from jaxdiff.physics.objectives import (
    PhysicsObjective,
    Ratings,
    WeightedClips,
    effective_sample_size,
    reward_weights,
)
from jaxdiff.physics.planner import WorldPlanner
from jaxdiff.physics.violations import LAWS, clips
from jaxdiff.pipeline import Pipeline
from jaxdiff.probes.statistics import auc
from jaxdiff.store import LatentBatch
from jaxdiff.train.finetune import FineTuning, denoising_losses, finetune
from jaxdiff.train.loop import Recipe

# --------------------------------------------------------------------------------------- reward-weighted regression

MEAN, SD, SLOPE, BETA, COUNT = 0.3, 0.7, 1.5, 0.9, 40000


def gaussian_samples():
    x = np.random.default_rng(0).normal(MEAN, SD, COUNT)
    return x, reward_weights(SLOPE * x[None], BETA)[0]


def test_weighted_samples_of_a_gaussian_have_the_moments_of_the_tilted_one():
    x, w = gaussian_samples()
    tilted = MEAN + SLOPE * SD**2 / BETA
    size = float(effective_sample_size(w))
    mean = np.average(x, weights=w)
    error = 4 * SD / math.sqrt(size)  # four standard errors, of as many samples as these weights are worth
    assert abs(mean - tilted) < error < 0.1 * (tilted - MEAN)
    assert abs(np.average((x - mean) ** 2, weights=w) - SD**2) < 4 * SD**2 * math.sqrt(2 / size)
    # E[w]^2 / E[w^2] of exp(a x / beta) over a Gaussian
    assert size / COUNT == pytest.approx(math.exp(-((SLOPE * SD / BETA) ** 2)), rel=0.1)


class Says:
    """A family whose network is a function of the state."""

    def validate(self, *_):
        pass

    def denoise(self, network, latents, timestep, cond, remat):
        return network(latents), {}


def test_the_weighted_loss_is_least_at_the_velocity_of_the_tilted_gaussian():
    x, w = gaussian_samples()
    latents, weight = jnp.asarray(x, jnp.float32)[:, None, None, None, None], jnp.asarray(w, jnp.float32)
    noise = jnp.asarray(np.random.default_rng(1).normal(size=latents.shape), jnp.float32)
    s = 0.6
    sigma = jnp.full(COUNT, s)

    def slopes(mean):
        """Gradient of the loss at the exact velocity E[noise - x0 | x] of N(mean, SD^2), to a constant and to x."""
        gain = (s - (1 - s) * SD**2) / ((1 - s) ** 2 * SD**2 + s**2)

        def loss(change):
            def network(x):
                return -mean + gain * (x - (1 - s) * mean) + change[0] + change[1] * x

            return denoising_losses(Pipeline(network, Says(), UniPCFlow()), latents, noise, sigma, None, weight=weight)[
                "denoise"
            ]

        return jax.grad(loss)(jnp.zeros(2))

    at_tilted, at_plain = slopes(MEAN + SLOPE * SD**2 / BETA), slopes(MEAN)
    spread = 2 * 1.5 / math.sqrt(effective_sample_size(w))  # of the gradient's mean: 2 sd(error) / sqrt(worth)
    assert np.abs(at_tilted).max() < 4 * spread < 0.5 * abs(float(at_plain[0]))


def test_weights_have_mean_one_prefer_the_best_and_leave_out_what_was_not_judged():
    rewards = np.array([[0.1, 0.9, 0.5], [0.2, math.nan, 0.2], [math.nan] * 3])
    w = reward_weights(rewards, 0.1)
    np.testing.assert_allclose(w[0], 3 * np.exp(rewards[0] / 0.1) / np.exp(rewards[0] / 0.1).sum())
    np.testing.assert_array_equal(w[1:], [[1.5, 0, 1.5], [0, 0, 0]])
    assert effective_sample_size(w)[1:].tolist() == [2.0, 0.0]
    assert (reward_weights(rewards[:1], math.inf) == 1).all()
    assert reward_weights(np.array([[0.0, 1000.0]]), 1e-9).tolist() == [[0.0, 2.0]]
    with pytest.raises(ConfigError, match="--beta=0"):
        reward_weights(rewards, 0.0)


class InMemory:
    def __init__(self):
        rng = np.random.default_rng(0)
        self.latents = rng.standard_normal((6, 3, 2, 2, 4)).astype(np.float32)
        self.text = rng.standard_normal((6, 3, 16)).astype(np.float32)

    def __len__(self):
        return 6

    def read(self, indices):
        return LatentBatch(self.latents[indices], self.text[indices], None)


class Line(Says):
    """The same with weights that can be trained."""

    name = "line"

    def needs_image(self, network):
        return False

    def denoise(self, network, latents, timestep, cond, remat):
        return network.params["gain"] * latents + network.params["bias"], {}


def test_beta_at_infinity_is_plain_fine_tuning_bit_for_bit_and_other_weights_are_not():
    start = Network(None, None, {"gain": jnp.ones(4), "bias": jnp.zeros(4)})
    pipeline = Pipeline(start, Line(), UniPCFlow(shift=3.0))
    config = FineTuning(Recipe(steps=3, learning_rate=1e-2, warmup=1), batch=3, prompt_dropout=0.0, remat="none")
    rewards = np.random.default_rng(1).random((2, 3))

    def tuned(data):
        return jax.tree.leaves(finetune(pipeline, data, config).transformer.params)

    plain = tuned(InMemory())
    alike = tuned(WeightedClips(InMemory(), reward_weights(rewards, math.inf).ravel()))
    assert all(np.array_equal(a, b) for a, b in zip(plain, alike, strict=True))
    other = tuned(WeightedClips(InMemory(), reward_weights(rewards, 0.1).ravel()))
    assert not any(np.array_equal(a, b) for a, b in zip(plain, other, strict=True))


def test_clips_without_any_weight_are_refused():
    with pytest.raises(ConfigError, match="none could be judged"):
        WeightedClips(InMemory(), np.zeros(6))
    with pytest.raises(ConfigError, match="6 clips need as many weights"):
        WeightedClips(InMemory(), np.ones(5))


# -------------------------------------------------------------------------------------------------- the objective


class Bright:
    """A critic of two facts: the first wants a bright video, the second belongs to no plan."""

    def rate(self, video, cond):
        level = video.mean((1, 2, 3, 4))
        facts = jnp.stack([level, -100 * level], -1)
        return Ratings(facts, jnp.array([[1.0, 0.0]] * len(level)), 3 + level, 1 + 0 * level)


def test_the_objective_is_its_formula_below_the_threshold_and_nothing_above():
    objective = PhysicsObjective(Bright(), lambda z: 2 * z, Weights(0.5, 0.2, 0.1), threshold=0.4)
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 2, 3)), jnp.float32)
    sigma = jnp.array([0.1, 0.39, 0.4, 0.9])
    found = objective(latents, latents, sigma, None)
    level = 2 * np.asarray(latents).mean((1, 2, 3, 4))[:2]
    expected = {
        "phenomena": 0.5 * np.sum(np.log1p(np.exp(-level))) / 4,
        "commonsense": 0.2 * np.sum((2 - level) / 4) / 4,
        "semantic": 0.1 * 2 / 4,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    slope = jax.grad(lambda z: sum(objective(z, z, sigma, None).values()))(latents)
    assert (np.abs(slope[:2]) > 0).all() and not np.any(slope[2:])
    assert (slope[:2] < 0).all()  # brighter is better
    with pytest.raises(ConfigError, match=r"--threshold=0\.0"):
        PhysicsObjective(Bright(), lambda z: z, threshold=0.0)


def test_the_terms_are_logged_beside_the_denoising_loss_and_take_the_prompt():
    seen = []

    class Heard(Bright):
        def rate(self, video, cond):
            seen.append(cond.text.shape)
            return super().rate(video, cond)

    latents = jnp.ones((2, 3, 2, 2, 4))
    told = Conditioning(text=jnp.zeros((2, 3, 16)))
    losses = denoising_losses(
        Pipeline(lambda x: 0 * x, Says(), UniPCFlow()), latents, latents, jnp.array([0.1, 0.2]), told,
        extra={"physics": PhysicsObjective(Heard(), lambda z: z)},
    )  # fmt: skip
    assert {*losses} == {"denoise", "phenomena", "commonsense", "semantic"}
    assert seen == [(2, 3, 16)]


# ---------------------------------------------------------------------------------------------- the network critic


WORLD = WorldConfig(frames=9)


@pytest.fixture(scope="module")
def trained():
    """A small critic of things that vanish."""
    drawn = clips(WORLD, 1, 192, ("nothing", "vanish"))
    recipe = Recipe(steps=70, learning_rate=1e-2, warmup=5, ema=0.9)
    config = ClipCriticConfig(WORLD.frames, width=8, hidden=64)
    return train_critic(drawn, recipe, config=config, batch=16), drawn


def test_a_critic_learns_to_tell_what_vanished_from_what_did_not(trained):
    critic, _ = trained
    fresh = clips(WORLD, 2, 128, ("nothing", "vanish"))
    facts = [WorldPlanner().plan(caption).facts for caption in fresh.captions]
    judged = critic.judge(fresh.video, facts, fresh.captions)
    persists = np.array([next(v for f, v in one.facts.items() if f.endswith("persists")) for one in judged])
    assert auc(persists, fresh.kinds == 0) >= 0.7  # by chance .5, with a deviation of .05
    assert all(math.isfinite(v) for one in judged for v in one.facts.values())
    other = critic.judge(fresh.video[:1], [["the ball persists", "it dreams"]], fresh.captions[:1])[0]
    assert all(math.isnan(v) for v in other.facts.values())


def test_the_embedded_prompt_decides_what_is_judged_and_a_gradient_reaches_the_pixels(trained):
    critic, drawn = trained
    video = jnp.asarray(drawn.video[:3], jnp.float32) / 127.5 - 1
    told = Conditioning(text=jnp.asarray(encode_all(["red disc hops-left", "cyan square slides-right", ""], 16)))

    @jax.jit
    def rated(video):
        def value(video):
            ratings = critic.rate(video, told)
            return (ratings.commonsense + ratings.semantic).sum(), ratings

        return jax.grad(value, has_aux=True)(video)

    slope, ratings = rated(video)
    words = ratings.told[:, len(LAWS) :]
    assert [np.flatnonzero(row).tolist() for row in words] == [[0, 6, 11], [5, 7, 10], []]
    assert float(ratings.semantic[2]) == 5.0  # every clip is true to the empty prompt
    assert ((ratings.commonsense > 1) & (ratings.commonsense < 5)).all()
    assert np.isfinite(slope).all() and np.all(np.abs(slope).max((2, 3, 4)) > 0)


def test_variations_of_a_clip_have_the_words_that_describe_them(trained):
    _, drawn = trained
    offsets = np.array([0, 6, 9])
    video, words = jax.jit(varied)(
        jax.random.key(0), jnp.asarray(drawn.video[::2], jnp.float32), drawn.words[::2] - offsets
    )
    assert len(np.unique(words[:, 0])) == 6 and not np.array_equal(words, drawn.words[::2] - offsets)
    found = track(np.asarray(video).astype(np.uint8))
    unsaid = measure(found, np.asarray(words) + offsets, WORLD)["words"]
    assert np.mean(unsaid[np.isfinite(unsaid)] < 1e-6) > 0.9  # hardly seen things may be told wrong


def test_a_critic_comes_back_from_its_file_and_other_files_are_refused(trained, tmp_path):
    critic, drawn = trained
    save_critic(critic, tmp_path / "critic.npz")
    again = load_critic(tmp_path / "critic.npz")
    assert again.network.config == critic.network.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.network.params, critic.network.params))
    (tmp_path / "other.npz").write_bytes(b"no critic")
    for name in ("other.npz", "absent.npz"):
        with pytest.raises(CheckpointError, match=f"{name} is no critic"):
            load_critic(tmp_path / name)
    with pytest.raises(ConfigError, match="9 frames of 32 pixels"):
        critic.judge(drawn.video[:, :5], [()] * 192, drawn.captions)
