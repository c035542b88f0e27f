"""Tuning on a reward through sampler and decoder, and on first frames that are given; tests/long has a run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Backward
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.lora import LoRA
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.train.finetune import FineTuning, denoising_losses, training_loss
from jaxdiff.train.loop import Recipe
from jaxdiff.train.reward_tuning import RewardTuning, Task, tune_on_reward

CONFIG = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=8, freq_dim=16, ffn_dim=24,
    num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
SHAPE = (3, 4, 4, 4)
TUNING = RewardTuning(Recipe(25, 1e-2, warmup=1, decay=0.0, ema=0.9), batch=2, lora=LoRA(2, 4.0), steps=2)


class Shown(nnx.Module):
    """A VAE whose video is the first three channels of the latents."""

    def __init__(self, config, *, rngs):
        self.gain = nnx.Param(jnp.ones(()))

    def denormalise(self, latents):
        return latents

    def decode(self, latents):
        return self.gain[...] * latents[..., :3]


def tiny():
    """A pipeline that takes its first frame in place."""
    network = Network.init(WanTransformer, CONFIG, 0)
    return Pipeline(network, Wan(expand_timesteps=True), UniPCFlow(shift=1.0), vae=Network.init(Shown, None))


@pytest.fixture(scope="module")
def pipeline():
    return tiny()


class Tasks:
    """Four first frames, to be followed by grey."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.first = rng.standard_normal((4, 1, *SHAPE[1:])).astype(np.float32)
        self.text = np.zeros((4, 3, 8), np.float32)

    def __len__(self):
        return 4

    def read(self, indices):
        cond = Conditioning(self.text[indices], image_latents=self.first[indices])
        return Task(cond, np.full((len(indices), 1, 1, 1, 1), 0.5, np.float32))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Grey:
    """Higher for videos that are grey after the first frame; its weight is frozen."""

    weight: jax.Array

    def __call__(self, video, target):
        return -self.weight * jnp.mean(jnp.square(video[:, 1:] - target), (1, 2, 3, 4))


def test_a_first_frame_that_is_given_is_neither_noised_nor_trained_on(pipeline):
    rng = np.random.default_rng(1)
    latents, noise, other = (jnp.asarray(rng.standard_normal((2, *SHAPE)), jnp.float32) for _ in range(3))
    sigma, text = jnp.array([0.3, 0.8]), jnp.zeros((2, 3, 8))
    cond, extra = (
        Conditioning(text, image_latents=latents[:, :1]),
        {"kept": lambda p, c, s: jnp.abs(p - c)[:, :1].sum()},
    )
    losses = jax.jit(lambda noise: denoising_losses(pipeline, latents, noise, sigma, cond, extra=extra))
    found = losses(noise)
    assert losses(jnp.concatenate([other[:, :1], noise[:, 1:]], 1))["denoise"] == found["denoise"]
    assert losses(other)["denoise"] != found["denoise"] and found["kept"] == 0
    config = FineTuning(Recipe(1), first_frame=True, prompt_dropout=0.0, remat="none")
    given = ((None, None), (latents, text, None))
    jax.eval_shape(training_loss(pipeline, config), pipeline.transformer.params, given, jax.random.key(0))
    loss = training_loss(dataclasses.replace(pipeline, family=Wan()), config)
    with pytest.raises(ConfigError, match="image_latents"):  # a checkpoint that takes no first frame
        jax.eval_shape(loss, pipeline.transformer.params, given, jax.random.key(0))


def test_what_does_not_fit_is_said_before_anything_runs(pipeline):
    def tune(pipeline=pipeline, **changes):
        config = dataclasses.replace(TUNING, **changes)
        return tune_on_reward(pipeline, Tasks(), Grey(jnp.float32(1.0)), SHAPE, config)

    with pytest.raises(ConfigError, match="needs negative="):
        tune(guidance_scale=3.0)
    with pytest.raises(ConfigError, match="two networks"):
        tune(dataclasses.replace(pipeline, transformer_2=pipeline.transformer))
    with pytest.raises(ConfigError, match="image_latents"):
        tune(dataclasses.replace(pipeline, family=Wan()))
    with pytest.raises(ConfigError, match="at least 1"):
        RewardTuning(batch=0)
    assert RewardTuning(backward=Backward("last", 1)).backward.steps == 1
