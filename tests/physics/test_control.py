"""The control branch: untrained it changes no bit, only what starts at zero learns first, and signals are where they belong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.flow import sample
from jaxdiff.flow.guidance import pair
from jaxdiff.flow.schedule import FlowMatchEuler, UniPCFlow
from jaxdiff.flow.variance_preserving import VariancePreserving
from jaxdiff.models.cogvideox import CogVideoX, CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.network import Network, fingerprint
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from jaxdiff.physics.control import controlled, fold, load_branch, new_branch, save_branch, told
from jaxdiff.physics.control_training import ControlTraining, MaskedClips, Masks, training_loss
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import LatentBatch
from ports.table import flatten

LATENTS, VIDEO = (3, 4, 4, 4), (9, 16, 16, 3)  # (T', H', W', C), (T, H, W, 3)


def wan(**changes) -> Pipeline:
    given = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "text_dim": 8, "freq_dim": 16,
        "ffn_dim": 24, "num_layers": 3, "rope_max_seq_len": 16, **changes,
    }  # fmt: skip
    config = WanTransformerConfig(**given)
    return Pipeline(Network.init(WanTransformer, config, 0), Wan(), UniPCFlow(shift=3.0))


def cogvideox() -> Pipeline:
    config = CogVideoXTransformerConfig(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=8,
        num_layers=3, sample_width=4, sample_height=4, sample_frames=9, max_text_seq_length=3,
    )  # fmt: skip
    return Pipeline(Network.init(CogVideoXTransformer, config, 0), CogVideoX(), VariancePreserving(3.0))


def ltx() -> Pipeline:
    config = LTXTransformerConfig(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=3,
        caption_channels=8,
    )  # fmt: skip
    return Pipeline(Network.init(LTXTransformer, config, 0), LTX(), FlowMatchEuler())


def randomised(tree, seed: int = 1):
    """The same weights with every leaf drawn anew, small."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), tree)


def inputs(batch: int = 2):
    """Latents, prompt, masks and first latent frames."""
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.standard_normal((batch, *LATENTS)), jnp.float32)
    cond = Conditioning(text=jnp.asarray(rng.standard_normal((batch, 3, 8)), jnp.float32))
    return latents, cond, fold(rng.random((batch, *VIDEO[:3])) > 0.5, LATENTS), latents[:, :1]


@jax.jit
def outputs(pipeline, x, cond):
    return pipeline.output(x, jnp.float32(500.0), cond)[0]


@pytest.mark.parametrize("make", [wan, cogvideox])
def test_an_untrained_branch_changes_no_bit_and_a_trained_one_follows_its_signal(make):  # a
    pipeline, (x, cond, signal, first) = make(), inputs()
    pipeline = dataclasses.replace(
        pipeline, transformer=pipeline.transformer.replace(randomised(pipeline.transformer.params))
    )
    branch = new_branch(pipeline, 2, LATENTS, VIDEO)
    trained = dataclasses.replace(branch, links=branch.links.replace(randomised(branch.links.params)))
    # Within one program, bit for bit: any signal, and any branch whose residuals are multiplied by zero. Two programs round
    # differently, whatever they compute; without a compiler they agree bit for bit too (tests/long/test_control.py).
    alone = outputs(controlled(pipeline, trained, 0.0), x, told(cond, signal, first))
    for given in (signal, -signal):
        assert np.array_equal(outputs(controlled(pipeline, branch), x, told(cond, given, first)), alone)
    np.testing.assert_allclose(alone, outputs(pipeline, x, cond), rtol=2e-5, atol=2e-5)
    follows = [outputs(controlled(pipeline, trained), x, told(cond, given, first)) for given in (signal, -signal)]
    assert np.abs(follows[0] - alone).max() > 1e-2 and np.abs(follows[0] - follows[1]).max() > 1e-3


@pytest.fixture(scope="module")
def backbone():
    return wan()


def test_at_first_the_links_alone_have_a_gradient_and_after_a_step_the_copied_blocks_too(backbone):  # b
    branch = new_branch(backbone, 2, LATENTS, VIDEO)
    x, cond, signal, first = inputs()
    loss = training_loss(backbone, branch, ControlTraining(batch=2, control_dropout=0.0, remat="none"))
    slope, given = jax.jit(jax.grad(loss, has_aux=True)), ((backbone, None), (x, signal, told(cond, first=first)))
    before, params, felt = fingerprint(backbone.transformer), branch.params, []
    for number in range(3):
        slopes, _ = slope(params, given, jax.random.key(number))
        felt.append({path for path, leaf in flatten(slopes).items() if np.asarray(leaf).any()})
        params = jax.tree.map(lambda leaf, change: np.asarray(leaf) - 10 * np.asarray(change), params, slopes)
    assert fingerprint(backbone.transformer) == before
    assert felt[0] == {"links/links/kernel", "links/links/bias"}
    copied = {path for path in flatten(branch.params) if path.startswith("trunk/blocks/")}
    assert copied | {"links/signal_out/kernel", "trunk/patch_embedding/kernel"} <= felt[1]
    assert "links/signal_in/kernel" not in felt[1]  # it is behind a layer that began at zero too
    assert "links/signal_in/kernel" in felt[2]
    never = {"trunk/out/kernel", "trunk/out/bias", "trunk/modulation"}  # behind the last block of the copy
    assert not never & felt[2]


def test_a_sample_begins_with_the_frame_that_it_was_told_and_both_halves_of_guidance_hear_the_signal(backbone):
    branch = new_branch(backbone, 1, LATENTS, VIDEO)
    branch = dataclasses.replace(branch, links=branch.links.replace(randomised(branch.links.params)))
    x, cond, signal, first = inputs()
    pipeline, negative = controlled(backbone, branch), Conditioning(text=jnp.zeros((1, 3, 8)))
    made = sample(pipeline, x[::-1], told(cond, signal, first), steps=3, guidance_scale=2.0, negative=negative).latents
    np.testing.assert_allclose(made[:, :1], first, atol=1e-5)
    assert np.abs(made[:, 1:] - x[::-1, 1:]).max() > 0.1
    both = pair(told(cond, signal, first), negative, 2)
    assert np.array_equal(both.extra["control"], np.repeat(signal, 2, 0))


def test_every_latent_position_is_told_the_pixels_that_it_stands_for():
    rng = np.random.default_rng(3)
    masks = rng.random((2, *VIDEO[:3])) > 0.5
    signal = fold(masks, LATENTS)
    assert signal.shape == (2, 3, 4, 4, 4 * 4 * 4) and signal.dtype == np.float32
    for t, frames in enumerate(([0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8])):
        seen = signal[1, t, 2, 3].reshape(4, 4, 4)
        np.testing.assert_array_equal(seen, 2.0 * masks[1, frames, 8:12, 12:16] - 1)
    assert fold(masks[:, :1].astype(np.uint8), (1, 4, 4, 4)).shape == (2, 1, 4, 4, 16)
    for wrong, message in (
        (masks[:, :8], "masks of 8 frames of 16 x 16 do not go with latents of 3 frames"),
        (masks[:, :, :12], "12 x 16"),
        (masks[0], r"masks must be \[B, T, H, W\]"),
        (masks * 255, "true and false, or 0 and 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            fold(wrong, LATENTS)


def test_a_branch_comes_back_from_its_folder_and_is_of_one_backbone_only(backbone, tmp_path):
    branch = new_branch(backbone, 2, LATENTS, VIDEO)
    branch = branch.replace(randomised(branch.params))
    again = load_branch(save_branch(branch, tmp_path))
    assert again.links.config == branch.links.config and again.trunk.config == branch.trunk.config
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, branch.params))
    with pytest.raises(ConfigError, match="of another backbone"):
        controlled(wan(ffn_dim=32), again)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_branch(tmp_path / "none")
    with pytest.raises(ConfigError, match="a branch of 4 blocks; this backbone has 3"):
        new_branch(backbone, 4, LATENTS, VIDEO)
    two = dataclasses.replace(backbone, transformer_2=backbone.transformer)
    with pytest.raises(ConfigError, match="two networks"):
        new_branch(two, 2, LATENTS, VIDEO)


def test_what_does_not_fit_is_said_before_anything_runs(backbone):
    pipeline, (x, cond, signal, first) = controlled(backbone, new_branch(backbone, 2, LATENTS, VIDEO)), inputs()
    for given, message in (
        (told(cond, signal), "trained with the first frame"),
        (told(cond, signal[:, :2], first), r"control signal must be \[2, 3, 4, 4, 64\]"),
        (told(cond, signal, x), r"first frame's latents must be \[2, 1, 4, 4, 4\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(pipeline.evaluate, x, 0.5, given)
    with pytest.raises(ConfigError, match="no branch to tell it to"):
        jax.eval_shape(controlled(backbone, None).evaluate, x, 0.5, told(cond, signal, first))
    with pytest.raises(ConfigError, match=r"Conditioning\.extra is set"):
        jax.eval_shape(backbone.evaluate, x, 0.5, told(cond, signal, first))
    continues = dataclasses.replace(backbone, family=Wan(expand_timesteps=True))
    by_itself = new_branch(continues, 2, LATENTS, VIDEO)
    assert by_itself.links.config.image_channels == 0
    with_image = dataclasses.replace(cond, image_latents=first)
    shape = jax.eval_shape(controlled(continues, by_itself).evaluate, x, 0.5, told(with_image, signal))[0].shape
    assert shape == x.shape
    with pytest.raises(ConfigError, match="continues an image by itself"):
        jax.eval_shape(controlled(continues, by_itself).evaluate, x, 0.5, told(cond, signal, first))
    store = LatentBatch(np.zeros((2, *LATENTS)), np.zeros((2, 3, 8)), None)

    class Two:
        def __len__(self):
            return 2

        def read(self, indices):
            return store

    masks = np.random.default_rng(1).random((2, *VIDEO[:3])) > 0.5
    assert np.array_equal(MaskedClips(Two(), Masks.pack(masks), rows=np.array([1])).read(np.array([0]))[1], masks[1:])
    with pytest.raises(MissingDataError, match="2 clips and 1 masks"):
        MaskedClips(Two(), Masks.pack(masks[:1]))
    with pytest.raises(MissingDataError, match=r"1 masks are empty in every frame, those of the clips \[1\]"):
        MaskedClips(Two(), Masks.pack(masks * np.array([True, False])[:, None, None, None]))
    with pytest.raises(ConfigError, match="control_dropout=2"):
        ControlTraining(control_dropout=2)
