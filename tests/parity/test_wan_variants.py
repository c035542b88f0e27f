"""The transformers of Wan's image-to-video and per-token-timestep checkpoints against diffusers, site by site."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from jaxdiff import Tap
from jaxdiff.models.network import Network
from ports.folder import load_network
from tests import wan_variants as variants
from tests.parity import wan_reference as reference
from tests.reference import relative_error

SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")
TOKENS_PER_FRAME = 24  # of the inputs' grid, in patches of 2 x 2


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)


@jax.jit
def evaluate(network: Network, latents, timestep, text, image):
    return network(latents, timestep, text, image, taps=TAPS)


@pytest.fixture(scope="module", params=variants.TRANSFORMERS)
def case(request, tmp_path_factory):
    """(folder, reference model, inputs)."""
    folder = tmp_path_factory.mktemp("wan")
    model = reference.transformer(request.param)
    model.save_pretrained(folder)
    return folder, model, variants.transformer_inputs(request.param)


def test_the_output_and_every_site_of_every_block_equal_diffusers(case):
    folder, model, batch = case
    expected, sites = reference.run(model, *batch)
    output, captured = evaluate(load_network(folder), *batch)
    assert output.shape == expected.shape
    assert relative_error(output, expected) <= 1e-5  # the bar is 1e-4
    for site in SITES:
        for block, (ours, recorded) in enumerate(zip(captured[site], sites[site], strict=True)):
            assert relative_error(ours, recorded) <= 1e-5, (site, block)


def test_a_timestep_a_token_gives_what_a_timestep_a_frame_gives(case):
    folder, model, (latents, timestep, text, image) = case
    frames = np.broadcast_to(timestep if timestep.ndim == 2 else timestep[:, None], (2, 3)).copy()
    network = load_network(folder)
    by_frame, _ = evaluate(network, latents, frames, text, image)
    by_token, _ = evaluate(network, latents, np.repeat(frames, TOKENS_PER_FRAME, 1), text, image)
    assert relative_error(by_token, by_frame) <= 1e-6
    assert relative_error(by_frame, reference.run(model, latents, frames, text, image)[0]) <= 1e-5


def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(case):
    folder, model, batch = case
    truth, _ = reference.run(model, *batch)
    ours, _ = evaluate(load_network(folder, dtype=jnp.bfloat16), *batch)
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    halved = copy.deepcopy(model).to(torch.bfloat16)
    for name, parameter in halved.named_parameters():
        if kept & set(name.split(".")):  # what from_pretrained(torch_dtype=bfloat16) keeps in float32
            parameter.data = parameter.data.float()
    rounded, _ = reference.run(halved, *batch)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours.astype(jnp.float32)) <= 1.5 * rms(rounded)
