"""The Wan transformer against recorded outputs of diffusers, through a checkpoint folder and the real loader.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_wan_transformer`.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Conditioning, Tap
from jaxdiff.models.network import Network
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig, patchify, unpatchify
from tests.reference import random_state, relative_error, wan_inputs, write_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "wan_transformer.json").read_text())
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(pipeline, its inputs, what diffusers said)."""
    described = CASES[request.param]
    state = random_state(described["shapes"], described["seed"])
    folder = write_folder(tmp_path_factory.mktemp("wan") / "m", transformer=(described["config"], state))
    with np.load(GOLDENS / "wan_transformer.npz") as file:
        golden = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{request.param}/")}
    return jaxdiff.load(folder), wan_inputs(described["config"], described["grid"]), golden


def test_the_output_equals_the_recorded_one_of_diffusers(case):
    pipeline, batch, golden = case
    # Two correct float32 runs differ by a few 1e-7 of the largest value; the bar for a port is 1e-4.
    assert relative_error(pipeline.denoise(*batch), golden["output"]) <= 1e-5


def test_every_site_of_every_block_equals_the_recorded_mean_of_diffusers(case):
    pipeline, (latents, timestep, text), golden = case
    taps = tuple(Tap(site) for site in SITES)
    _, captured = jax.jit(pipeline.family.denoise, static_argnames="taps")(
        pipeline.transformer, latents, timestep, Conditioning(text=text), taps=taps
    )
    for site in SITES:
        for ours, recorded in zip(captured[f"{site}.mean"].mean(1), golden[site], strict=True):
            assert relative_error(ours, recorded) <= 1e-5


def test_a_batch_row_does_not_depend_on_the_others(case):
    pipeline, (latents, timestep, text), _ = case
    both = pipeline.denoise(latents, timestep, text)
    changed = latents.copy()
    changed[1] = 0.0
    np.testing.assert_array_equal(pipeline.denoise(changed, timestep, text)[0], both[0])


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_patchify_is_inverted_by_unpatchify(patch):
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6, 3)).astype(np.float32)
    grid = tuple(n // p for n, p in zip(x.shape[1:4], patch, strict=True))
    tokens = patchify(x, patch)
    assert tokens.shape == (2, np.prod(grid), np.prod(patch) * 3)
    np.testing.assert_array_equal(unpatchify(tokens, grid, patch), x)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(WanTransformerConfig.t2v_1_3b(), 1_418_996_800), (WanTransformerConfig.t2v_14b(), 14_288_491_584)],
    ids=["1.3B", "14B"],
)
def test_presets_have_the_published_number_of_parameters(config, parameters):
    network = Network.abstract(WanTransformer, config, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == parameters
