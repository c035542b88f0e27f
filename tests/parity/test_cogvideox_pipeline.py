"""Whole samples and inversions of CogVideoX: diffusers' pipelines and schedulers against ours."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, DDIMInverseScheduler
from diffusers.pipelines.cogvideo import pipeline_cogvideox_image2video

import jaxdiff
from jaxdiff.conditioning import Conditioning
from jaxdiff.flow import DynamicGuidance, Schedule
from jaxdiff.flow.solvers import white_noise
from jaxdiff.models.cogvideox import image_latents
from tests.parity import cogvideox_reference as reference
from tests.parity.record_samplers import drawing
from tests.reference import COGVIDEOX_SCHEDULER, relative_error

STEPS, SCALE = 5, 6.0
# Name -> configuration, latent grid, video frames. Of 1.5 the pipeline adds a latent frame in front and drops it again.
CASES = {
    "2b": ({}, (3, 8, 12), 9),
    "1.5_5b": (reference.LATER, (4, 8, 12), 9),
    "1.5_5b_i2v": ({**reference.LATER, "in_channels": 8, "ofs_embed_dim": 8}, (4, 8, 12), 9),
}


def torch_first(x):
    """[B, T, H, W, C] -> torch (B, T, C, H, W)."""
    return torch.from_numpy(np.array(x)).permute(0, 1, 4, 2, 3)


def build(name, scheduler, folder):
    """(diffusers' pipeline, ours, latents, text of prompt and of negative prompt, image, frames)."""
    changes, grid, frames = CASES[name]
    model = reference.transformer(changes)
    theirs = reference.pipeline(model, reference.vae({"invert_scale_latents": "patch_size_t" in changes}))
    theirs.register_modules(scheduler=scheduler.from_config(COGVIDEOX_SCHEDULER))
    theirs.save_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((1, *grid, 4)).astype(np.float32)
    texts = rng.standard_normal((2, 1, 6, 12)).astype(np.float32)
    image = rng.uniform(-1, 1, (1, 8 * grid[1], 8 * grid[2], 3)).astype(np.float32)
    return theirs, jaxdiff.load(folder), latents, texts, image, frames


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """`build` with the scheduler that steps without noise."""
    return build(request.param, CogVideoXDDIMScheduler, tmp_path_factory.mktemp("cogvideox") / "m")


@pytest.fixture(scope="module", params=CASES)
def noisy(request, tmp_path_factory):
    """`build` with the scheduler that adds noise at every step."""
    return build(request.param, CogVideoXDPMScheduler, tmp_path_factory.mktemp("cogvideox") / "m")


def both(case, dynamic, monkeypatch):
    """Latents and video of the published pipeline and of ours, guided."""
    theirs, ours, noise, texts, image, frames = case
    given, key = {}, jax.random.split(jax.random.key(4), 1)
    if ours.family.image_to_video:
        # The published pipeline draws from the posterior; its mode is what can be compared.
        draw = pipeline_cogvideox_image2video.retrieve_latents
        monkeypatch.setattr(
            pipeline_cogvideox_image2video, "retrieve_latents", lambda output, *_: draw(output, sample_mode="argmax")
        )
        given["image"] = torch.from_numpy((image + 1) / 2).permute(0, 3, 1, 2)
    numbers, step = itertools.count(), theirs.scheduler.step

    @functools.wraps(step)
    def with_our_noise(*args, **kwargs):
        with drawing(torch_first(white_noise(key[0], next(numbers), jnp.asarray(noise[0]))[None])):
            return step(*args, **kwargs)

    monkeypatch.setattr(theirs.scheduler, "step", with_our_noise)
    seen = {}
    video = theirs(
        prompt_embeds=torch.from_numpy(texts[0]),
        negative_prompt_embeds=torch.from_numpy(texts[1]),
        latents=torch_first(noise),
        height=image.shape[1],
        width=image.shape[2],
        num_frames=frames,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        use_dynamic_cfg=dynamic,
        output_type="pt",
        callback_on_step_end=lambda pipe, step, t, kwargs: seen.update(kwargs) or {},
        **given,
    ).frames
    cond = ours.condition(text=texts[0], **({"image": image, "frames": frames} if given else {}))
    end = jaxdiff.sample(
        ours,
        noise,
        cond,
        negative=texts[1],  # and the image goes with both
        guidance_scale=DynamicGuidance(SCALE) if dynamic else SCALE,
        steps=STEPS,
        key=key,
    ).latents
    padding = noise.shape[1] - ((frames - 1) // 4 + 1)
    decoded = ours.decode(end[:, padding:])
    assert decoded.shape[1] == frames
    expected = seen["latents"].permute(0, 1, 3, 4, 2).numpy(), video.permute(0, 1, 3, 4, 2).numpy()
    return expected, (end, (decoded + 1) / 2)


DYNAMIC = pytest.mark.parametrize("dynamic", [False, True], ids=["constant", "dynamic"])


@DYNAMIC
def test_a_guided_sample_and_its_video_equal_the_published_pipelines(case, dynamic, monkeypatch):
    equal(*both(case, dynamic, monkeypatch))


@DYNAMIC
def test_so_do_a_sample_and_its_video_with_noise_at_every_step(noisy, dynamic, monkeypatch):
    equal(*both(noisy, dynamic, monkeypatch))


def equal(expected, found):
    for theirs, ours in zip(expected, found, strict=True):
        assert relative_error(ours, theirs) <= 1e-4  # the bar is 1e-3


def test_ddim_label_equals_the_inverse_scheduler_of_diffusers(case):
    theirs, ours, x0, texts, image, _ = case
    steps = 100
    inverse = DDIMInverseScheduler(
        clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing", set_alpha_to_one=True
    )
    inverse.alphas_cumprod = theirs.scheduler.alphas_cumprod  # it knows no shift of the signal-to-noise ratio
    inverse.set_timesteps(steps)
    first = np.asarray(image_latents(ours.vae, image, x0.shape[1])) if ours.family.image_to_video else None
    state = torch_first(x0)
    with torch.no_grad():
        for t in inverse.timesteps:
            output = theirs.transformer(
                state if first is None else torch.cat([state, torch_first(first)], 2),
                torch.from_numpy(texts[0]),
                t[None],
                ofs=None if theirs.transformer.config.ofs_embed_dim is None else torch.full((1,), 2.0),
                image_rotary_emb=reference.rope(theirs.transformer, x0.shape[1:4]),
                return_dict=False,
            )[0]
            state = inverse.step(output, int(t), state).prev_sample.float()
    cond = Conditioning(text=texts[0], image_latents=first)
    end = jaxdiff.invert(ours, x0, cond, steps=steps, solver="ddim_label").latents
    assert relative_error(end, state.permute(0, 1, 3, 4, 2).numpy()) <= 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [10, 50, 100])
def test_an_euler_step_equals_the_schedulers_step_at_every_timestep(shift, steps):
    config = COGVIDEOX_SCHEDULER | {"snr_shift_scale": shift}
    theirs, ours = CogVideoXDDIMScheduler.from_config(config), Schedule.from_config(config)
    theirs.set_timesteps(steps)
    grid = ours.grid(steps)
    np.testing.assert_array_equal(ours.timestep(ours.rounded(grid[:-1])), theirs.timesteps.numpy())
    assert theirs.timesteps[0] == 999
    rng = np.random.default_rng(0)
    for i, t in enumerate(theirs.timesteps):
        x, v = rng.standard_normal((2, 1, 2, 3, 4, 4)).astype(np.float32)
        stepped = x + np.float32(grid[i + 1] - grid[i]) * np.asarray(ours.velocity(v, x, grid[i]))
        z = np.array(ours.to_network(x, grid[i]))  # a copy: torch takes no read-only array
        expected = theirs.step(torch.from_numpy(v), int(t), torch.from_numpy(z)).prev_sample
        assert relative_error(ours.to_network(stepped, grid[i + 1]), expected) <= 1e-5, t


@pytest.mark.parametrize("cls", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
def test_sigmas_are_those_of_the_schedulers_alphas(cls):
    for shift in (1.0, 3.0):
        config = COGVIDEOX_SCHEDULER | {"_class_name": cls.__name__, "snr_shift_scale": shift}
        squared = cls.from_config(config).alphas_cumprod.numpy()
        s = np.sqrt(1 - squared)
        np.testing.assert_allclose(Schedule.from_config(config).sigmas, s / (np.sqrt(squared) + s), rtol=1e-12)
