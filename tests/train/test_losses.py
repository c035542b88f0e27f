"""The two training losses against values that follow from their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.network import Network
from jaxdiff.models.wan import WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.train.loop import Recipe, fit
from jaxdiff.train.losses import autoencoder_loss, flow_matching_loss

SHAPE = (8, 2, 4, 4, 16)


class Field:
    """A velocity field in the transformer's place; records what it was asked."""

    def __init__(self, velocity):
        self.velocity, self.asked = velocity, []

    def __call__(self, x, timestep, text, remat="none"):
        self.asked.append((x, timestep, text))
        return self.velocity(x, timestep), {}


def test_loss_of_the_perfect_field_is_zero():
    # Every latent is zero, so x_sigma = sigma * noise and the field x / sigma is exactly noise - x0.
    field = Field(lambda x, t: x / (t / 1000.0)[:, None, None, None, None])
    loss = flow_matching_loss(field, jnp.zeros(SHAPE), jnp.ones((8, 1, 4)), jax.random.key(0))
    assert float(loss) < 1e-10  # squared float32 rounding of x / sigma


def test_loss_of_the_best_field_on_white_latents_is_the_noise_floor():
    # White x0 and e: E[e - x0 | x] = (2 s - 1) / ((1 - s)^2 + s^2) x leaves variance 1 / ((1 - s)^2 + s^2).
    def best(x, t):
        s = (t / 1000.0)[:, None, None, None, None]
        return (2 * s - 1) / ((1 - s) ** 2 + s**2) * x

    latents = jax.random.normal(jax.random.key(3), (256, *SHAPE[1:]))
    field = Field(best)
    loss = flow_matching_loss(field, latents, jnp.ones((256, 1, 4)), jax.random.key(1))
    s = np.asarray(field.asked[0][1]) / 1000.0
    # 131 thousand squared gaussians: their mean is known to about sqrt(2 / 131072) = 0.4 %.
    assert float(loss) == pytest.approx(np.mean(1.0 / ((1 - s) ** 2 + s**2)), rel=0.02)


def test_sigmas_follow_the_logit_normal_and_prompts_are_dropped_at_their_rate():
    field = Field(lambda x, t: x)
    flow_matching_loss(
        field, jnp.zeros((4096, 1, 1, 1, 1)), jnp.ones((4096, 2, 3)), jax.random.key(0), logit_mean=0.5,
        logit_std=2.0, prompt_dropout=0.25,
    )  # fmt: skip
    _, timestep, text = field.asked[0]
    logit = np.log(timestep / (1000.0 - timestep))
    # Standard errors with 4096 draws: 0.031 of the mean, 0.022 of the deviation, 0.007 of the share.
    assert np.mean(logit) == pytest.approx(0.5, abs=0.13) and np.std(logit) == pytest.approx(2.0, abs=0.1)
    kept = np.asarray(text)[:, 0, 0]
    assert np.mean(kept) == pytest.approx(0.75, abs=0.03) and set(np.unique(kept)) == {0.0, 1.0}
    assert np.array_equal(text, np.broadcast_to(kept[:, None, None], text.shape)), "a prompt goes as a whole"


def test_training_a_tiny_transformer_lowers_the_flow_matching_loss():
    config = dataclasses.replace(
        WanTransformerConfig.nano(), num_layers=2, num_attention_heads=2, attention_head_dim=8, ffn_dim=16
    )
    start = Network.init(WanTransformer, config, 0)
    latents = jnp.ones(SHAPE) * jnp.linspace(-2.0, 2.0, 16)
    text = jnp.ones((8, 1, 16))

    def loss(params, data, key):
        return flow_matching_loss(start.replace(params), *data, key), {}

    held_out = jax.jit(lambda params: loss(params, (latents, text), jax.random.key(9))[0])
    state = fit(loss, start.params, Recipe(steps=60, learning_rate=1e-2, warmup=5), (latents, text))
    assert float(held_out(state.params)) < 0.8 * float(held_out(start.params))


@pytest.fixture(scope="module")
def vae():
    return Network.init(WanVAE, dataclasses.replace(WanVAEConfig.nano(), base_dim=4), 0)


def test_autoencoder_loss_is_the_weighted_sum_of_its_terms_and_weighs_the_square(vae):
    video = jnp.tanh(jax.random.normal(jax.random.key(1), (1, 5, 8, 8, 3)))

    @jax.jit
    def both(vae, video):
        key = jax.random.key(0)
        return (
            autoencoder_loss(vae, video, key, square_weight=2.0, kl_weight=0.5),
            autoencoder_loss(vae, video, key, square_weight=0.0, kl_weight=0.0),
        )

    (loss, metrics), (l1, _) = both(vae, video)
    square = 4.0 / 10 ** (metrics["psnr"] / 10)
    assert float(l1) == pytest.approx(float(metrics["l1"]), rel=1e-5)
    assert float(loss) == pytest.approx(float(metrics["l1"] + 2.0 * square + 0.5 * metrics["kl"]), rel=1e-5)
    assert float(metrics["kl"]) >= 0.0


def test_kl_is_zero_where_the_posterior_is_the_prior_and_half_where_the_mean_is_one():
    class Module:
        def __init__(self, mean):
            self.mean = mean

        def bind(self):
            return self

        def encode(self, video, chunk):
            moments = jnp.zeros((*video.shape[:-1], 8))
            return moments.at[..., :4].set(self.mean)

        def decode(self, sample, clamp, chunk):
            return jnp.full((*sample.shape[:-1], 3), 0.5)

    video = jnp.zeros((1, 1, 4, 4, 3))
    for mean, kl in ((0.0, 0.0), (1.0, 0.5)):
        _, metrics = autoencoder_loss(Module(mean), video, jax.random.key(0))
        assert float(metrics["kl"]) == pytest.approx(kl, abs=1e-6)
        assert float(metrics["l1"]) == 0.5
        assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4.0 / 0.25), abs=1e-4)
