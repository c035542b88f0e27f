"""LTX-2 against diffusers, live: transformer, connectors, VAE, and the states of a whole sample, through folders and
`jaxdiff.load`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff import Conditioning, Tap
from jaxdiff.models.ltx2.config import LTX2TransformerConfig
from jaxdiff.models.ltx2.transformer import audio_rotations, video_rotations
from ports.folder import load_network
from ports.writer import save_pipeline
from tests.parity import ltx2_reference as reference
from tests.parity import ltx_vae_reference
from tests.reference import ltx2_inputs, ltx2_states, relative_error

# FlowMatchEulerDiscreteScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(reference model, loaded network, its inputs, folder)."""
    model = reference.transformer(request.param)
    folder = tmp_path_factory.mktemp("ltx2")
    model.save_pretrained(folder)
    return model, load_network(folder), reference.inputs(request.param), folder


@jax.jit
def joint(network, given, fps=24.0, audio_timestep=None):
    return network(
        given.latents, given.timestep, given.text, given.mask, fps=fps,
        audio=given.audio, audio_text=given.audio_text, audio_timestep=audio_timestep, taps=TAPS,
    )  # fmt: skip


@jax.jit
def alone(network, given):
    return network(given.latents, given.timestep, given.text, given.mask, taps=TAPS)


def equal(ours, said, limit=1e-5):
    video, audio, captured = ours
    assert video.shape == said.video.shape
    # The bar is 1e-4; two correct float32 runs differ by a few 1e-6 of the largest value.
    assert relative_error(video, said.video) <= limit
    assert audio is None or relative_error(audio, said.audio) <= limit
    for site in SITES:
        for block, (got, expected) in enumerate(zip(captured[site], said.sites[site], strict=True)):
            assert relative_error(got, expected) <= limit, (site, block)


def test_both_streams_and_every_site_of_every_block_equal_diffusers(case):
    model, network, given, _ = case
    equal(joint(network, given, 25.0), reference.run(model, given, fps=25.0))


def test_the_video_alone_equals_isolated_modalities(case):
    model, network, given, _ = case
    equal(alone(network, given), reference.run(model, given, alone=True))


def test_every_token_of_either_stream_may_have_a_timestep_of_its_own(case):
    model, network, given, _ = case
    rng = np.random.default_rng(3)
    shapes = (given.latents[..., 0].reshape(2, -1).shape, given.audio.shape[:2])
    video, audio = (rng.uniform(0, 1000, shape).astype(np.float32) for shape in shapes)
    given = given._replace(timestep=video)
    equal(joint(network, given, 24.0, audio), reference.run(model, given, audio_timestep=audio))


def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(case):
    model, _, given, folder = case
    truth = reference.run(model, given)
    ours = joint(load_network(folder, dtype=jnp.bfloat16), given)
    theirs = reference.run(model.to(torch.bfloat16), given)
    model.to(torch.float32)

    def rms(x, expected):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - expected) ** 2))

    for got, said, expected in ((ours[0], theirs.video, truth.video), (ours[1], theirs.audio, truth.audio)):
        assert 0 < rms(got.astype(jnp.float32), expected) <= 1.5 * rms(said, expected)


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize("fps", [24.0, 30.0])
def test_rotations_of_the_published_widths_equal_diffusers(rope_type, fps):
    config, grid, patches = LTX2TransformerConfig(rope_type=rope_type), (16, 3, 5), 126
    said = reference.rotations(rope_type, grid, patches, fps)
    ours = (*jax.jit(lambda fps: _tables(video_rotations(config, grid, fps)))(fps),)
    ours += (*jax.jit(lambda: _tables(audio_rotations(config, patches)))(),)
    assert len(ours) == len(said) == 8
    for got, expected in zip(ours, said, strict=True):
        # Angles reach 15,000: one rounding more in a position, and this would be 1e-3.
        np.testing.assert_allclose(got, expected, atol=1e-6)


def _tables(rotations):
    return [table for rotation in rotations for table in (rotation.cos, rotation.sin)]


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_connectors_equal_diffusers(rope_type, side, tmp_path):
    model = reference.connectors(rope_type=rope_type, proj_bias=side == "right")
    model.save_pretrained(tmp_path)
    states, mask = ltx2_states(reference.CONNECTORS)
    mask = mask if side == "left" else mask[:, ::-1].copy()
    ours = jax.jit(lambda network, *given: network(*given))(load_network(tmp_path), states, mask)
    for got, expected in zip(ours, reference.connect(model, states, mask, side), strict=True):
        assert relative_error(got, expected) <= 1e-5


@pytest.mark.parametrize("changes", [{}, {"decoder_causal": True, "scaling_factor": 0.7, "upsample_residual": False}])
def test_moments_and_decoding_equal_diffusers(changes, tmp_path):
    model = reference.vae(**changes)
    model.save_pretrained(tmp_path)
    vae = load_network(tmp_path)
    clip = ltx_vae_reference.video(9, 64, 96, 1)
    moments, decoded = reference.encode_and_decode(model, clip)
    assert relative_error(jax.jit(lambda vae, x: vae(x, method="encode"))(vae, clip), moments) <= 2e-5
    mean = np.split(moments, 2, axis=-1)[0]
    assert relative_error(jax.jit(lambda vae, x: vae(x, method="decode"))(vae, mean), decoded) <= 5e-5


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(reference pipeline, its folder)."""
    made = reference.pipeline()
    folder = tmp_path_factory.mktemp("ltx2")
    made.save_pretrained(folder)
    return made, folder


def test_the_field_is_the_pipelines_at_every_state_of_its_sample(whole):
    made, folder = whole
    given = ltx2_inputs(reference.TINY, (2, 2, 2), batch=1)
    states, mask = ltx2_states(reference.CONNECTORS, batch=1)
    steps = reference.sample(made, states, mask, (2, 2, 2), steps=3, fps=12.0)
    pipeline = jaxdiff.load(folder)
    grid = pipeline.schedule.grid(3, tokens=8)
    cond = pipeline.condition(text=states, text_mask=mask, fps=12.0)
    assert len(steps) == 3
    for sigma, (latents, audio, timestep, velocity) in zip(grid, steps, strict=False):
        assert audio.shape[-1] == given.audio.shape[-1]
        assert pipeline.schedule.timestep(sigma) == pytest.approx(timestep, rel=1e-6)
        extra = {**cond.extra, "audio_latents": audio}
        ours = pipeline.velocity(latents, np.float32(sigma), dataclasses.replace(cond, extra=extra))
        assert relative_error(ours, velocity) <= 1e-5


def test_what_we_write_diffusers_reads_as_the_same_model(whole, tmp_path):
    made, folder = whole
    pipeline = jaxdiff.load(folder)
    written = save_pipeline(pipeline, tmp_path / "ours")
    others = dict.fromkeys(("text_encoder", "tokenizer", "audio_vae", "vocoder"))
    again = type(made).from_pretrained(written, **others)
    for part in ("transformer", "connectors", "vae"):
        ours, theirs = getattr(again, part).state_dict(), getattr(made, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    loaded = jaxdiff.load(written)
    assert (loaded.schedule, loaded.family) == (pipeline.schedule, pipeline.family)
    jax.tree.map(np.testing.assert_array_equal, loaded, pipeline)
    plain = Conditioning(text=np.zeros((1, 1, 12), np.float32))
    assert loaded.velocity(np.zeros((1, 2, 2, 2, 4), np.float32), 0.5, plain).shape == (1, 2, 2, 2, 4)
