"""The CogVideoX transformers against diffusers, live, through saved folders and the real loader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_sincos_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

import jaxdiff
from jaxdiff import Tap
from jaxdiff.conditioning import Conditioning
from jaxdiff.models.cogvideox import positions
from ports.writer import save_pipeline
from tests.parity import cogvideox_reference as reference
from tests.reference import cogvideox_inputs, relative_error

SITES = ("self_attention_out", "mlp_out", "block_out")


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(folder, inputs, what the reference said)."""
    changes, grid = reference.CASES[request.param]
    model = reference.transformer(changes)
    given = cogvideox_inputs({**reference.TINY, **changes}, grid)
    folder = reference.save(tmp_path_factory.mktemp("cogvideox") / "m", model)
    return folder, given, reference.run(model, given)


def conditioning(pipeline, given):
    """(the latents alone, `Conditioning`) from the reference's inputs, in which an image's channels follow."""
    channels = pipeline.transformer.config.out_channels
    image = given.latents[..., channels:] if pipeline.family.image_to_video else None
    extra = {"ofs": given.ofs} if pipeline.transformer.config.ofs_embed_dim else None
    return given.latents[..., :channels], Conditioning(text=given.text, image_latents=image, extra=extra)


@jax.jit
def evaluate(pipeline, latents, timestep, cond):
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, cond, taps=TAPS)


def test_denoise_equals_diffusers(case):
    folder, given, (output, _) = case
    pipeline = jaxdiff.load(folder)
    latents, cond = conditioning(pipeline, given)
    ours = pipeline.denoise(latents, given.timestep, cond)
    assert ours.shape == output.shape
    # The bar for a port is 1e-4; two correct float32 runs differ by about 2e-6 of the largest value.
    assert relative_error(ours, output) <= 1e-5


def test_every_block_and_every_site_in_it_equals_diffusers(case):
    folder, given, (_, sites) = case
    pipeline = jaxdiff.load(folder)
    latents, cond = conditioning(pipeline, given)
    _, captured = evaluate(pipeline, latents, given.timestep, cond)
    for site in SITES:
        for block, (ours, theirs) in enumerate(zip(captured[site], sites[site], strict=True)):
            assert relative_error(ours, theirs) <= 1e-5, (site, block)


def test_what_we_write_diffusers_reads_as_the_same_model(case, tmp_path):
    folder, given, (output, _) = case
    written = save_pipeline(jaxdiff.load(folder), tmp_path / "ours")
    again = reference.CogVideoXTransformer3DModel.from_pretrained(written, subfolder="transformer").eval()
    np.testing.assert_array_equal(reference.run(again, given)[0], output)


@pytest.mark.parametrize("grid", [(13, 30, 45), (21, 24, 40), (4, 50, 20)])
def test_positions_at_published_sizes_are_those_of_diffusers(grid):
    frames, height, width = grid
    theirs = get_3d_sincos_pos_embed(1920, (width, height), frames, 1.875, 1.0).flatten(0, 1)
    np.testing.assert_allclose(positions.sincos(grid, 1920, 1.875, 1.0), theirs, atol=1e-6)
    crop = get_resize_crop_region_for_grid((height, width), 45, 30)
    for base, kind in (((30, 45), {"crops_coords": crop}),
                       (None, {"crops_coords": None, "grid_type": "slice", "max_size": (150, 150)})):  # fmt: skip
        theirs = get_3d_rotary_pos_embed(64, grid_size=(height, width), temporal_size=frames, **kind)
        for ours, reference_table in zip(positions.rotary(grid, 64, base), theirs, strict=True):
            # One rounding of an angle of 50 is 4e-6; a wrong position is off by 1e-2 or more.
            np.testing.assert_allclose(ours, reference_table[:, ::2], atol=1e-5)


@pytest.mark.parametrize("name", ["2b", "1.5_5b_i2v"])
def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(name, tmp_path):
    changes, grid = reference.CASES[name]
    changes = {**changes, "attention_head_dim": 64, "num_layers": 3}
    model = reference.transformer(changes)
    folder = reference.save(tmp_path / "m", model)
    given = cogvideox_inputs({**reference.TINY, **changes}, grid)
    truth, _ = reference.run(model, given)
    pipeline = jaxdiff.load(folder, dtype=jnp.bfloat16)
    latents, cond = conditioning(pipeline, given)
    ours = pipeline.denoise(latents, given.timestep, cond).astype(jnp.float32)
    theirs, _ = reference.run(model.to(torch.bfloat16), given)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours) <= 1.5 * rms(theirs)  # two independent roundings of the same size
