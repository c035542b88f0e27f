"""Whole samples of Wan's image-to-video, TI2V and two-expert pipelines: diffusers' against ours."""

import jax
import numpy as np
import pytest
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image

import jaxdiff
from jaxdiff.errors import ConfigError
from jaxdiff.flow import ExpertGuidance
from ports.writer import save_pipeline
from tests import wan_variants as variants
from tests.parity import wan_reference as reference
from tests.parity import wan_vae_reference
from tests.reference import WAN_SCHEDULER, relative_error
from tests.wan_variants import FRAMES, SCALE, SCALE_2, STEPS, picture


@pytest.fixture(scope="module", params=variants.PIPELINES)
def case(request, tmp_path_factory):
    """(name, diffusers' pipeline, ours, noise, texts, first and last picture)."""
    theirs = reference.pipeline(request.param)
    folder = tmp_path_factory.mktemp("wan") / "m"
    theirs.save_pretrained(folder)
    return request.param, theirs, jaxdiff.load(folder), *variants.sample_inputs(request.param)


def run_both(case, image, last, steps, scale, scale_2):
    """Latents of the published pipeline, ours, and our conditioning."""
    _, theirs, ours, noise, texts, *_ = case
    pictures = {"image": image, "last_image": last, "frames": None if image is None else FRAMES}
    cond = ours.condition(text=texts[0], **pictures)
    shown = [None if x is None else Image.fromarray(x) for x in (image, last)]
    expected = reference.sample(theirs, noise, texts, *shown, steps=steps, scale=scale, scale_2=scale_2)
    guided = scale if scale_2 is None else ExpertGuidance(scale, scale_2, ours.boundary)
    end = jaxdiff.sample(ours, noise, cond, negative=texts[1], guidance_scale=guided, steps=steps).latents
    return expected, end, cond


def test_a_guided_sample_equals_the_published_pipelines(case):
    name, _, ours, _, _, image, last = case
    if ours.boundary:
        timesteps = np.asarray(ours.schedule.timestep(ours.schedule.grid(STEPS)[:-1]))
        assert 0 < (timesteps >= ours.boundary).sum() < STEPS  # both experts have their turn
    expected, end, cond = run_both(case, image, last, STEPS, SCALE, SCALE_2 if ours.boundary else None)
    assert relative_error(end, expected) <= 1e-4  # the bar is 1e-3
    if name == "ti2v_5b_image":  # the sample begins with the picture
        np.testing.assert_allclose(end[:, 0], cond.image_latents[:, 0], atol=1e-5)


def test_a_last_picture_is_used_as_published_or_refused(case):
    name, _, ours, _, texts, *_ = case
    if name in ("i2v_a14b", "flf2v_14b"):
        expected, end, _ = run_both(case, picture(0), picture(1), 2, SCALE, None)
        assert relative_error(end, expected) <= 1e-4
    else:
        with pytest.raises(ConfigError, match=r"takes no (last_)?image"):
            ours.condition(text=texts[0], image=picture(0), last_image=picture(1), frames=FRAMES)


def test_what_we_write_diffusers_reads_as_the_same_pipeline(case, tmp_path, monkeypatch):
    _, theirs, ours, *_ = case
    written = save_pipeline(ours, tmp_path / "ours")
    again = jaxdiff.load(written)
    assert jax.tree.structure(again) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, again, ours)
    # With this attribute set, from_pretrained needs the package accelerate, even when nothing is cast.
    monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)
    absent = dict.fromkeys(("text_encoder", "tokenizer"))
    read = type(theirs).from_pretrained(written, **absent)
    for part in ("transformer", "transformer_2", "vae", "image_encoder"):
        mine, reference_part = (getattr(pipe, part, None) for pipe in (read, theirs))
        assert (mine is None) == (reference_part is None)
        for key, value in ({} if mine is None else mine.state_dict()).items():
            np.testing.assert_array_equal(value, reference_part.state_dict()[key], err_msg=f"{part} {key}")
    for key in ("boundary_ratio", "expand_timesteps"):
        assert read.config[key] == theirs.config[key]


@pytest.mark.parametrize("name", ["t2v_a14b", "ti2v_5b_image"])
def test_a_sample_with_the_published_scheduler_equals_the_published_pipelines(name, tmp_path):
    theirs = reference.pipeline(name, UniPCMultistepScheduler.from_config(WAN_SCHEDULER))
    theirs.save_pretrained(tmp_path / "m")
    case = (name, theirs, jaxdiff.load(tmp_path / "m"), *variants.sample_inputs(name))
    expected, end, _ = run_both(case, case[5], None, 8, SCALE, SCALE_2 if case[2].boundary else None)
    assert relative_error(end, expected) <= 1e-4


def test_ti2v_with_its_own_autoencoder_makes_the_published_video(tmp_path):
    """Wan 2.2's autoencoder, 16 pixels a latent: the picture in, the video out."""
    theirs = reference.pipeline("ti2v_5b_image", vae=wan_vae_reference.model(wan_vae_reference.RESIDUAL, seed=1))
    theirs.save_pretrained(tmp_path / "m")
    ours = jaxdiff.load(tmp_path / "m")
    noise, texts, *_ = variants.sample_inputs("ti2v_5b_image")
    image = np.random.default_rng(0).integers(0, 256, (16 * noise.shape[2], 16 * noise.shape[3], 3), dtype=np.uint8)
    cond = ours.condition(text=texts[0], image=image, frames=FRAMES)
    end = jaxdiff.sample(ours, noise, cond, negative=texts[1], guidance_scale=SCALE, steps=STEPS).latents
    shown = Image.fromarray(image)
    expected = reference.sample(theirs, noise, texts, shown, steps=STEPS, scale=SCALE, scale_2=None, output="pt")
    video = np.asarray(ours.decode(end)) / 2.0 + 0.5
    assert video.shape == expected.shape == (1, FRAMES, *image.shape)
    assert expected.std() > 0.05
    assert relative_error(video, expected) <= 1e-4  # the bar is 1e-3
