"""Whole samples of `WanPipeline` with every scheduler it is used with: diffusers' against ours."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, UniPCMultistepScheduler, WanPipeline

import jaxdiff
from jaxdiff.flow import OfficialUniPC
from tests.flow.sampler_cases import WAN_DPM
from tests.parity.torch_models import TINY_VAE, TINY_WAN, randomise, wan_transformer
from tests.reference import WAN_SCHEDULER, relative_error, wan_inputs

# DPMSolverMultistepScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS, SCALE, GRID = 8, 5.0, (3, 4, 6)
SCHEDULERS = {
    "unipc": (UniPCMultistepScheduler, WAN_SCHEDULER | {"flow_shift": 5.0}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, WAN_DPM),
}


@pytest.fixture(scope="module")
def parts():
    """Transformer and VAE with every tensor random."""
    return {"transformer": wan_transformer(), "vae": randomise(AutoencoderKLWan(**TINY_VAE), 1)}


def published(parts, scheduler):
    made = WanPipeline(tokenizer=None, text_encoder=None, scheduler=scheduler, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def run(made, noise, text, negative, output_type):
    found = made(
        prompt_embeds=torch.from_numpy(text),
        negative_prompt_embeds=torch.from_numpy(negative),
        latents=torch.from_numpy(noise).permute(0, 4, 1, 2, 3),
        height=8 * GRID[1],
        width=8 * GRID[2],
        num_frames=1 + 4 * (GRID[0] - 1),
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type=output_type,
    ).frames
    return found.permute(*((0, 2, 3, 4, 1) if output_type == "latent" else (0, 1, 3, 4, 2))).numpy()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_guided_sample_and_its_video_equal_the_published_pipelines(name, parts, tmp_path):
    scheduler, config = SCHEDULERS[name]
    theirs = published(parts, scheduler.from_config(config))
    theirs.save_pretrained(tmp_path)
    ours = jaxdiff.load(tmp_path)
    (noise, _, text), (_, _, negative) = (wan_inputs(TINY_WAN, GRID, seed=seed) for seed in (7, 8))
    end = jaxdiff.sample(ours, noise, text, negative=negative, guidance_scale=SCALE, steps=STEPS).latents
    assert relative_error(end, run(theirs, noise, text, negative, "latent")) <= 1e-4  # the bar is 1e-3
    video = run(theirs, noise, text, negative, "pt")
    decoded = (np.asarray(ours.decode(end)) + 1) / 2
    assert relative_error(decoded, video) <= 1e-4
    assert np.mean((video > 0) & (video < 1)) > 0.5  # little of it is clipped, where errors would hide
    # Euler on the same grid is another sample: the bound above can tell them apart.
    other = jaxdiff.sample(ours, noise, text, negative=negative, guidance_scale=SCALE, steps=STEPS, solver="euler")
    assert relative_error(other.latents, end) > 1e-2


def test_the_official_grid_equals_the_scheduler_that_is_handed_it(parts, tmp_path):
    """No diffusers scheduler makes that grid, but UniPC takes it."""
    theirs = UniPCMultistepScheduler.from_config(WAN_SCHEDULER | {"flow_shift": 1.0})
    published(parts, theirs).save_pretrained(tmp_path)
    ours = jaxdiff.load(tmp_path)
    (noise, _, text) = wan_inputs(TINY_WAN, GRID)
    grid = OfficialUniPC(shift=5.0).grid(STEPS)
    theirs.set_timesteps(sigmas=grid[:-1].copy())
    state = torch.from_numpy(noise).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        for t in theirs.timesteps:
            output = parts["transformer"](state, t.expand(len(state)), torch.from_numpy(text), return_dict=False)[0]
            state = theirs.step(output, t, state, return_dict=False)[0]
    end = jaxdiff.sample(ours, noise, text, sigmas=grid, solver="unipc").latents
    assert relative_error(end, state.permute(0, 2, 3, 4, 1).numpy()) <= 1e-4
