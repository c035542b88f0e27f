"""Cosmos against diffusers, live: transformer, schedules and whole samples, through folders and `jaxdiff.load`."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import Cosmos2VideoToWorldPipeline, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5Tokenizer

import jaxdiff
from jaxdiff import Conditioning, Tap
from jaxdiff.flow import EDM, Schedule, UniPCKarras
from jaxdiff.models.cosmos import Cosmos
from jaxdiff.models.text.prompt import TextEncoder
from ports.folder import load_text_encoder
from ports.writer import save_pipeline
from tests.parity import cosmos_reference as reference
from tests.parity.text_reference import encoder
from tests.reference import COSMOS_EDM, COSMOS_UNIPC, relative_error
from tests.text import vocabulary, write_spiece

# FlowMatchEulerDiscreteScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(name, reference model, folder)."""
    model = reference.transformer(request.param)
    return request.param, model, reference.save(tmp_path_factory.mktemp("cosmos") / "m", request.param, model)


def conditioning(name: str, given) -> Conditioning:
    if "in_channels" not in reference.CASES[name][0]:
        return Conditioning(text=given.text)
    return Conditioning(text=given.text, image_latents=given.given, fps=reference.FPS)


@jax.jit
def evaluate(pipeline, latents, timestep, cond):
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, cond, taps=TAPS)


def test_output_and_every_site_of_every_block_equal_diffusers(case):
    name, model, folder = case
    given = reference.inputs(name)
    said, sites = reference.run_case(name, model)
    ours, captured = evaluate(jaxdiff.load(folder), given.latents, given.timestep, conditioning(name, given))
    assert ours.shape == said.shape
    # The bar is 1e-4; two correct float32 runs differ by a few 1e-6 of the largest value.
    assert relative_error(ours, said) <= 1e-5
    for site in SITES:
        for block, (got, expected) in enumerate(zip(captured[site], sites[site], strict=True)):
            assert relative_error(got, expected) <= 1e-5, (site, block)


def test_padding_masks_and_frame_rates_equal_diffusers(case):
    name, model, folder = case
    given, pipeline = reference.inputs(name), jaxdiff.load(folder)
    if not model.config.concat_padding_mask:
        said, _ = reference.run(model, given.latents, given.timestep, given.text, fps=60.0)
        ours, _ = evaluate(pipeline, given.latents, given.timestep, Conditioning(text=given.text, fps=60.0))
        assert relative_error(ours, said) <= 1e-5
        return
    padding = (np.random.default_rng(0).uniform(size=(1, *given.latents.shape[2:4])) > 0.5).astype(np.float32)
    mask = np.zeros(given.latents.shape[1], np.float32) if pipeline.transformer.config.continues else None
    said, _ = reference.run(model, given.latents, given.timestep, given.text, fps=60.0, mask=mask, padding=padding)
    none = given.given[:, :0] if mask is not None else None
    cond = Conditioning(text=given.text, image_latents=none, fps=60.0, extra={"padding_mask": padding})
    ours, _ = evaluate(pipeline, given.latents, given.timestep, cond)
    assert relative_error(ours, said) <= 1e-5


def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(case):
    name, model, folder = case
    given = reference.inputs(name)
    truth, _ = reference.run_case(name, model)
    pipeline = jaxdiff.load(folder, dtype=jnp.bfloat16)
    ours = pipeline.denoise(given.latents, given.timestep, conditioning(name, given)).astype(jnp.float32)
    theirs, _ = reference.run_case(name, model.to(torch.bfloat16))
    model.to(torch.float32)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours) <= 1.5 * rms(theirs)


@pytest.mark.parametrize("config", [COSMOS_EDM, COSMOS_UNIPC], ids=["predict2", "predict2.5"])
@pytest.mark.parametrize("steps", [2, 3, 10, 35, 36])
def test_grids_equal_the_scheduler_bit_for_bit(config, steps):
    sigmas = reference.sigmas(config, steps)
    grid = Schedule.from_config(config).grid(steps)
    np.testing.assert_array_equal(grid.astype(np.float32), sigmas)


def test_every_key_of_the_schedulers_is_known():
    added = {"sigma_max", "sigma_min", "sigma_data", "final_sigmas_type"}  # by the pipelines of Predict2
    for ours, theirs, more in (
        (EDM, FlowMatchEulerDiscreteScheduler, added),
        (UniPCKarras, UniPCMultistepScheduler, set()),
    ):
        keys = set(inspect.signature(theirs.__init__).parameters) - {"self"}
        assert keys | more == ours.KEYS


@pytest.mark.parametrize("steps", [2, 10, 35])
def test_an_euler_step_equals_the_step_of_predict2_at_every_sigma(steps):
    """The pipeline's own denoiser and scheduler in EDM's coordinates, from the same network output."""
    schedule = Schedule.from_config(COSMOS_EDM)
    grid = schedule.grid(steps)
    theirs = reference.scheduler(COSMOS_EDM)
    theirs.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    theirs.set_timesteps(sigmas=torch.linspace(0, 1, steps, dtype=torch.float64))
    rng = np.random.default_rng(0)
    for i, t in enumerate(theirs.timesteps[:-1]):
        x, output = rng.standard_normal((2, 1, 2, 3, 4, 4)).astype(np.float32)
        stepped = x + np.float32(grid[i + 1] - grid[i]) * np.asarray(schedule.velocity(jnp.asarray(output), x, grid[i]))
        rho = theirs.sigmas[i]
        level = rho / (rho + 1)
        y = torch.from_numpy(x) / (1 - level)
        denoised = (1 - level) * y - level * torch.from_numpy(output)
        after = theirs.step((y - denoised) / rho, t, y, return_dict=False)[0]
        assert relative_error(stepped, after / (1 + theirs.sigmas[i + 1])) <= 1e-5, i


@pytest.fixture(scope="module", params=reference.SAMPLES)
def whole(request, tmp_path_factory):
    """(name, diffusers' pipeline, ours, folder)."""
    name = reference.SAMPLES[request.param][0]
    made, folder = reference.pipeline(name), tmp_path_factory.mktemp("cosmos") / "m"
    reference.save(folder, name, made.transformer)
    return request.param, made, jaxdiff.load(folder), folder


def test_a_guided_sample_and_its_video_equal_those_of_the_pipeline(whole):
    name, made, pipeline, _ = whole
    case, continues, steps, guidance = reference.SAMPLES[name]
    states, answers, video = reference.sample_case(name, made)
    given = reference.inputs(case, batch=1)
    others = {}
    if continues:
        others["image_latents"] = pipeline.encode(given.video)
    if case == "video2world":
        others["fps"] = reference.FPS
    cond = Conditioning(text=given.text, **others)
    negative = Conditioning(text=reference.inputs(case, batch=1, seed=8).text, **others)
    schedule = pipeline.schedule
    edm = isinstance(schedule, EDM)
    asked = {"negative": negative, "guidance_scale": 1 + guidance}  # the pipelines write c + w (c - u)
    if edm:
        noise, grid = schedule.sigma_max * given.latents, schedule.grid(steps)
        # The pipeline drops the last answer and ends at rho_min, in EDM's coordinates.
        end = jaxdiff.sample(pipeline, noise, cond, sigmas=grid[:-1], **asked).latents / (1 - grid[-2])
        assert relative_error(end, states[-1]) <= 1e-4  # the bar of a whole sample is 1e-3
        # With that answer it is our end.
        clean = jaxdiff.sample(pipeline, noise, cond, steps=steps, **asked).latents
        assert relative_error(clean, states[-1] - schedule.rho_min * answers[-1]) <= 1e-4
    else:
        end = jaxdiff.sample(pipeline, given.latents, cond, steps=steps, **asked).latents
        assert relative_error(end, states[-1]) <= 1e-4
    decoded = np.clip(np.asarray(pipeline.decode(end)) / 2 + 0.5, 0, 1)
    assert decoded.shape == video.shape
    # Predict2 rounds its video to 8 bits for the safety checker, towards 0.
    assert np.abs(decoded - video).max() <= (1.01 / 255 if edm else 1e-4)
    assert np.mean((video > 0) & (video < 1)) > 0.5  # little of it is clipped, where errors would hide


def written_as(config) -> dict:
    """A configuration as JSON has it, without the metadata."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


def test_what_we_write_diffusers_reads_as_the_same_model(whole, tmp_path):
    _, made, pipeline, _ = whole
    written = save_pipeline(pipeline, tmp_path / "ours")
    for part in ("transformer", "vae"):
        theirs = getattr(made, part)
        again = type(theirs).from_config(type(theirs).load_config(written / part))
        assert written_as(again.config) == written_as(theirs.config)
        # Their from_pretrained needs accelerate for this class.
        again.load_state_dict(load_file(written / part / "diffusion_pytorch_model.safetensors"), strict=True)
        for name, value in theirs.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[name], value, err_msg=name)
    scheduler = type(made.scheduler).load_config(written / "scheduler")
    for key in ("use_karras_sigmas", "sigma_max", "sigma_min", "num_train_timesteps", "final_sigmas_type"):
        assert scheduler[key] == made.scheduler.config[key]
    loaded = jaxdiff.load(written)
    assert (loaded.schedule, loaded.family) == (pipeline.schedule, pipeline.family)
    jax.tree.map(np.testing.assert_array_equal, loaded, pipeline)


def test_embeds_a_prompt_as_the_pipelines_of_predict2_do(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    write_spiece(tmp_path / "tokenizer")
    vocab = vocabulary(tmp_path / "tokenizer")
    model = encoder(T5EncoderModel, feed_forward_proj="relu", vocab_size=vocab)  # T5 1.0, as t5-11b
    model.save_pretrained(tmp_path / "text_encoder")
    pipe = Cosmos2VideoToWorldPipeline.__new__(Cosmos2VideoToWorldPipeline)  # the method needs no more than these two
    pipe.text_encoder, pipe.tokenizer = model, T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    texts = ["", "a red ball rolls behind a cube", "the camera moves " * 300]
    with torch.no_grad():
        expected = pipe._get_t5_prompt_embeds(texts, device="cpu").numpy()
    text, _ = TextEncoder(tmp_path, "float32").embed(texts, Cosmos.video2world().text, load_text_encoder)
    assert text.shape == expected.shape
    assert relative_error(text, expected) <= 1e-5
    np.testing.assert_array_equal(text == 0, expected == 0)
