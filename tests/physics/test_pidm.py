"""PIDM: its tables, its losses, its estimates and sampler, and what training and scores promise."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import Linear
from jaxdiff.models.network import Network
from jaxdiff.physics import darcy
from jaxdiff.physics.diffusion import CosineDiffusion
from jaxdiff.physics.likelihood import ObjectiveLoss, ResidualLoss, pidm_losses
from jaxdiff.physics.pidm import (
    NULL,
    PIDMTraining,
    criteria,
    darcy_residual,
    residual_mae,
    sample,
    scores,
    sliced_wasserstein,
    step_loss,
)
from jaxdiff.physics.unet import UNet, UNetConfig, load_unet, new_unet, save_unet
from jaxdiff.train.loop import Recipe, TrainState, update
from tests.physics.unet_weights import SIZES, inputs, weights

GOLDENS = Path(__file__).parent.parent / "goldens"
DIFFUSION = CosineDiffusion()
TINY = UNetConfig(**SIZES)


@pytest.fixture(scope="module")
def data():
    return darcy.fields(8, 12)


def test_the_tables_are_those_of_a_loop_over_the_definitions():  # T5
    signal = lambda t: np.cos((t / 100 + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    kept = [1.0]
    for t in range(100):
        beta = min(1 - signal(t + 1) / signal(t), 0.999)
        kept.append(kept[-1] * (1 - beta))
        before, now = kept[-2:]
        tables = DIFFUSION.tables
        assert tables.beta[t] == pytest.approx(beta, rel=1e-12)
        assert tables.kept[t] == pytest.approx(now, rel=1e-10)
        assert tables.clean_share[t] == pytest.approx(beta * before**0.5 / (1 - now), rel=1e-9)
        assert tables.state_share[t] == pytest.approx((1 - beta) ** 0.5 * (1 - before) / (1 - now), rel=1e-9)
        assert tables.weight[t] == pytest.approx(min(now / (1 - now), 5), rel=1e-9)
        if t:
            assert tables.variance[t] == pytest.approx(beta * (1 - before) / (1 - now), rel=1e-9)
    assert tables.variance[0] == tables.variance[1] > 0
    assert tables.clean_share[0] == 1 and tables.state_share[0] == 0
    at_timesteps = DIFFUSION.variance_at(jnp.asarray(tables.sigma, jnp.float32))
    assert at_timesteps == pytest.approx(tables.variance, rel=1e-3)


def test_the_residual_loss_is_the_negative_log_likelihood_of_no_residual(data):
    fields, t = jnp.asarray(data[:3]) + 0.01, np.array([0, 40, 99])
    sigma = jnp.asarray(DIFFUSION.tables.sigma[t], jnp.float32)
    found = jax.jit(ResidualLoss(darcy_residual, 0.5))(fields, fields, sigma)
    square = np.square(np.asarray(jax.jit(darcy_residual)(fields))).reshape(3, -1).mean(1)
    assert float(found) == pytest.approx(0.5 * np.mean(square / (2 * DIFFUSION.tables.variance[t])), rel=1e-3)
    bounded = ResidualLoss(lambda x: 100 * jnp.ones(len(x)) + x.sum((1, 2, 3)), 1.0, most=27.63)
    value, slope = jax.value_and_grad(bounded)(fields, fields, sigma)
    assert float(value) == pytest.approx(27.63) and not np.asarray(slope).any()


def test_the_gradient_of_the_residual_loss_agrees_with_finite_differences(data):  # T4
    with jax.enable_x64(True):
        fields = jnp.asarray(data[:2], jnp.float64)
        sigma = jnp.asarray(DIFFUSION.tables.sigma[[3, 60]])
        loss = jax.jit(lambda x: ResidualLoss(darcy_residual)(x, x, sigma))
        slope = jax.grad(loss)(fields)
        for seed in range(3):
            direction = np.random.default_rng(seed).standard_normal(fields.shape)
            near, far = (float(loss(fields + h * direction) - loss(fields - h * direction)) for h in (0.1, 0.2))
            # The loss is a polynomial of degree four, for which this difference has no error but rounding's.
            assert (8 * near - far) / 1.2 == pytest.approx(float(jnp.vdot(slope, direction)), rel=1e-7)


def linear(x, t):
    """A denoiser that is right where it says half, and remembers nothing."""
    return 0.5 * x + 0.01 * t.reshape(-1, 1)


def test_sample_estimation_walks_each_row_down_its_own_timesteps_and_skips_repeated_ones():
    x, t = np.array([[0.3], [-1.0], [2.0]]), np.array([0, 2, 80])
    kept = DIFFUSION.tables.kept
    expected, first = [], []
    for value, start in zip(x[:, 0], t, strict=True):
        walk = [int(s) for s in np.linspace(0, start, 5)][::-1]
        first.append(0.5 * value + 0.01 * start)
        for now, following in itertools.pairwise(walk):
            clean = 0.5 * value + 0.01 * now
            noise = (value - kept[now] ** 0.5 * clean) / (1 - kept[now]) ** 0.5
            if now != following:
                value = kept[following] ** 0.5 * clean + (1 - kept[following]) ** 0.5 * noise
        expected.append(0.5 * value)
    found, predicted = DIFFUSION.ddim(linear, jnp.asarray(x, jnp.float32), jnp.asarray(t), between=3)
    assert found[:, 0] == pytest.approx(expected, rel=1e-4)
    assert predicted[:, 0] == pytest.approx(first, rel=1e-5)


def test_sample_estimation_measures_the_residual_where_the_walk_ends_and_the_data_loss_where_it_begins():
    clean, noise, t = jnp.ones((2, 3)), jnp.full((2, 3), 0.7), jnp.array([10, 70])
    seen = []

    def look(predicted, clean, sigma):
        seen.append((predicted, sigma))
        return jnp.float32(0)

    found = {
        kind: pidm_losses(linear, DIFFUSION, clean, noise, t, {"look": look}, estimation=kind)
        for kind in ("mean", "sample")
    }
    assert found["mean"]["data"] == found["sample"]["data"]
    x = DIFFUSION.noised(clean, noise, t)
    assert seen[0][0] == pytest.approx(np.asarray(linear(x, t)))
    assert seen[1][0] == pytest.approx(np.asarray(DIFFUSION.ddim(linear, x, t)[0]))
    assert seen[1][1] == pytest.approx(DIFFUSION.tables.sigma[np.asarray(t)], rel=1e-5)
    error = np.square(np.asarray(linear(x, t)) - 1).mean(1)
    assert float(found["mean"]["data"]) == pytest.approx(
        (DIFFUSION.tables.weight[np.asarray(t)] * error).mean(), rel=1e-4
    )


def test_the_sampler_ends_at_what_the_network_says_and_has_the_published_noise_on_the_way():
    constant = lambda x, t: jnp.full_like(x, 0.25)  # noqa: E731
    assert DIFFUSION.sample(constant, jax.random.key(0), (2, 5)) == pytest.approx(0.25)
    short = CosineDiffusion(2)
    remember = lambda x, t: jnp.where(t[:, None] == 0, x, 0.0)  # noqa: E731
    made = np.asarray(short.sample(remember, jax.random.key(1), (1, 20000)))
    # x_1 has unit variance; x_0 is c2 x_1 and noise of variance beta_1, which is clipped to 0.999 here.
    expected = short.tables.state_share[1] ** 2 + short.tables.beta[1]
    assert made.var() == pytest.approx(expected, rel=0.04)  # four standard errors


class Small(nnx.Module):
    """A network in the U-Net's place: what is proven is of the step, and its program compiles in a tenth of the time."""

    def __init__(self, config, *, rngs):
        self.inside, self.out = (Linear(a, b, rngs=rngs) for a, b in ((3, 4), (4, 2)))

    def __call__(self, x, t):
        time = jnp.broadcast_to(t[:, None, None, None] / 100.0, (*x.shape[:3], 1))
        return self.out(jax.nn.silu(self.inside(jnp.concatenate([x, time], -1))))


@pytest.fixture(scope="module")
def steps(data):
    """The state after one step of each kind of training, from one start and one key."""
    plain = PIDMTraining(8, TINY, Recipe(2, 1e-3, warmup=1), 2, 12, 2, "none")
    start = Network.init(Small, None)
    after = {}
    for name, training in {
        "none": plain,
        "zero": dataclasses.replace(plain, estimation="mean", weight=0.0),
        "mean": dataclasses.replace(plain, estimation="mean"),
    }.items():
        step = jax.jit(update(step_loss(training, start), training.recipe))
        after[name] = step(TrainState.create(start.params, training.recipe), data)
    return after


def test_without_weight_the_step_is_that_of_plain_diffusion_bit_for_bit(steps):  # T6
    plain, zero, mean = (jax.tree.leaves(steps[name][0].params) for name in ("none", "zero", "mean"))
    assert all(np.array_equal(a, b) for a, b in zip(plain, zero, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(plain, mean, strict=True))
    assert steps["mean"][1]["data"] == steps["none"][1]["data"] and steps["mean"][1]["residual"] > 0


def test_a_network_comes_back_from_its_folder_and_computes_what_the_published_one_does(tmp_path):
    network = new_unet(TINY, 3)
    again = load_unet(save_unet(network, tmp_path))
    assert again.config == network.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, network.params))
    # The same folder with weights that the published class was given under the same names (tests/parity/record_pidm.py).
    shapes = {
        name: tensor.shape for name, tensor in load_file(tmp_path / "diffusion_pytorch_model.safetensors").items()
    }
    save_file(weights(shapes), tmp_path / "diffusion_pytorch_model.safetensors")
    expected = np.load(GOLDENS / "pidm_unet.npz")["y"]
    found = jax.jit(lambda network, x, t: network(x, t))(load_unet(tmp_path), *inputs())
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_sizes_that_do_not_fit_are_refused_before_training():
    with pytest.raises(ConfigError, match=r"n=18 must divide by 4"):
        PIDMTraining(18, dataclasses.replace(TINY, dim_mults=(1, 2, 4)))
    with pytest.raises(ConfigError, match="multiple of resnet_groups"):
        UNetConfig(dim=12)
    with pytest.raises(ConfigError, match="estimation='median'"):
        PIDMTraining(estimation="median")
    with pytest.raises(ConfigError, match=r"x \(1, 8, 7, 2\) is not"):
        jax.eval_shape(new_unet(TINY), jnp.zeros((1, 8, 7, 2)), jnp.zeros(1, int))
    with pytest.raises(ConfigError, match="a row for every field"):
        ResidualLoss(jnp.sum)(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(2))


def test_published_sizes_have_the_published_parameters():
    # Of the 10,386,498 of the published class, those that its forward pass calls; counted there.
    network = Network.abstract(UNet, UNetConfig.darcy())
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == 8_922_050


def test_generated_fields_of_a_video_backbone_can_be_held_to_a_law():
    from jaxdiff.physics import residuals

    clip = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 5, 5, 3)), jnp.float32)
    law = ResidualLoss(lambda latents: residuals.wave(latents[..., 0], 1.0, 1.0, 1.0), weight=0.1)
    small, large = (float(law(clip, clip, jnp.full(2, sigma))) for sigma in (0.8, 0.2))
    assert 0 < small < large  # the nearer to the clean end the more it counts
    smallest = ObjectiveLoss(lambda latents: jnp.square(latents).mean((1, 2, 3, 4)), 2.0)
    assert float(smallest(clip, clip, jnp.zeros(2))) == pytest.approx(2 * float(jnp.square(clip).mean()), rel=1e-5)


def test_scores_tell_data_from_what_only_has_a_small_residual(data):
    half, rest = data[:6], data[6:]
    true = scores(half, rest)
    assert true["solver_error"] < 1e-5 and true["raised"] == 0
    nothing = half * [0.0, 1.0]
    assert residual_mae(nothing) == pytest.approx(NULL, rel=1e-5)
    found = scores(nothing + 1e-6, rest)
    assert found["std"] < 1e-3 and found["solver_error"] > 100
    noisy = half + np.random.default_rng(0).standard_normal(half.shape) * [0.02, 0.0]
    worse = scores(noisy, rest)
    assert worse["r_mae"] > 10 * true["r_mae"] and worse["wasserstein"] > true["wasserstein"] - 0.05
    assert sliced_wasserstein(half, half) == 0
    held = criteria(dict(true, r_mae=0.05, std=1.2), dict(worse, wasserstein=true["wasserstein"]))
    assert all(held.values())
    assert list(criteria(found, worse).values()).count(False) >= 2


def test_samples_are_decided_by_their_seed_alone():
    network = Network.init(Small, None)
    made = sample(network, 8, 3, seed=5, chunk=2)
    assert made.shape == (3, 8, 8, 2) and np.isfinite(made).all()
    assert np.array_equal(made, sample(network, 8, 3, seed=5, chunk=2))
    assert not np.array_equal(made[0], made[1])
