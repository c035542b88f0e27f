"""Folders that diffusers writes, loaded by `jaxdiff.load`; and folders that we write, loaded by diffusers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.numpy import load_file

import jaxdiff
from jaxdiff import Tap
from ports.folder import open_folder
from ports.writer import save_pipeline
from tests.parity.torch_models import TINY_WAN, run_wan, save_wan, wan_transformer
from tests.reference import relative_error, wan_inputs

SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)

# Besides the tiny model: shapes in which a wrong order of patch axes, heads or halves cannot hide.
CONFIGS = {
    "tiny": ({}, (3, 8, 8)),
    "uneven grid": ({"num_attention_heads": 3, "attention_head_dim": 16}, (5, 4, 10)),
    "patches in time": ({"patch_size": (2, 1, 2), "in_channels": 3, "out_channels": 5}, (4, 3, 6)),
    "no cross norm": ({"cross_attn_norm": False, "eps": 1e-4}, (2, 4, 4)),
    "wan 1.3b heads": ({"attention_head_dim": 128, "num_attention_heads": 2, "num_layers": 2}, (3, 4, 6)),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, what the reference said, its inputs)."""
    changes, grid = CONFIGS[request.param]
    model = wan_transformer(**changes)
    folder = save_wan(tmp_path_factory.mktemp("wan"), model)
    batch = wan_inputs({**TINY_WAN, **changes}, grid)
    return folder, run_wan(model, *batch), batch


@jax.jit
def evaluate(pipeline, latents, timestep, text):
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, jaxdiff.Conditioning(text=text), taps=TAPS)


def test_denoise_equals_diffusers(case):
    folder, (reference, _), batch = case
    ours = jaxdiff.load(folder).denoise(*batch)
    assert ours.shape == reference.shape
    # The bar is 1e-4; two correct float32 runs differ by about 2e-6 of the largest value.
    assert relative_error(ours, reference) <= 1e-5


def test_every_block_and_every_site_in_it_equals_diffusers(case):
    folder, (_, sites), batch = case
    _, captured = evaluate(jaxdiff.load(folder), *batch)
    for site in SITES:
        for block, (ours, reference) in enumerate(zip(captured[site], sites[site], strict=True)):
            assert relative_error(ours, reference) <= 1e-5, (site, block)


def test_a_sharded_folder_loads_the_same_weights(case, tmp_path):
    folder, _, _ = case
    transformer = WanTransformer3DModel.from_config(json.loads((folder / "transformer/config.json").read_text()))
    transformer.load_state_dict(
        {n: torch.from_numpy(v) for n, v in load_file(folder / "transformer" / FILE).items()}, strict=True
    )
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    sharded = save_wan(tmp_path / "sharded", transformer, vae)
    (sharded / "transformer" / FILE).unlink()
    transformer.save_pretrained(sharded / "transformer", max_shard_size="30KB")
    assert len(list((sharded / "transformer").glob("*.safetensors"))) > 2
    assert open_folder(sharded).components["transformer"].weights.path == sharded / "transformer"
    one, many = jaxdiff.load(folder), jaxdiff.load(sharded)
    assert jax.tree.structure(one) == jax.tree.structure(many)
    jax.tree.map(np.testing.assert_array_equal, one, many)


FILE = "diffusion_pytorch_model.safetensors"


def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(tmp_path):
    model = wan_transformer(attention_head_dim=64, ffn_dim=512)
    folder = save_wan(tmp_path / "wan", model)
    batch = wan_inputs(TINY_WAN, (3, 8, 8))
    truth, _ = run_wan(model, *batch)
    pipeline = jaxdiff.load(folder, dtype=jnp.bfloat16)
    ours = pipeline.denoise(*batch).astype(jnp.float32)
    kept = {"time_embedder", "scale_shift_table", "norm2"}
    reference = model.to(torch.bfloat16)
    for name, parameter in reference.named_parameters():
        if kept & set(name.split(".")):  # what from_pretrained(torch_dtype=bfloat16) keeps in float32
            parameter.data = parameter.data.float()
    theirs, _ = run_wan(reference, *batch)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours) <= 1.5 * rms(theirs)  # two independent roundings of the same size
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(pipeline.transformer.params["blocks"]["cross_norm"])}
    assert dtypes == {"float32"}


def test_what_we_write_diffusers_reads_as_the_same_model(case, tmp_path, monkeypatch):
    folder, (reference, _), batch = case
    pipeline = jaxdiff.load(folder)
    written = save_pipeline(pipeline, tmp_path / "ours")
    for part in ("transformer", "vae"):
        ours, theirs = (load_file(path / part / FILE) for path in (written, folder))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        configs = [json.loads((path / part / "config.json").read_text()) for path in (written, folder)]
        assert {key: configs[0][key] for key in configs[1]} == configs[1]

    # With this attribute set, from_pretrained needs the package accelerate, even when nothing is cast.
    monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)
    pipe = WanPipeline.from_pretrained(written, text_encoder=None, tokenizer=None, transformer_2=None)
    assert isinstance(pipe.vae, AutoencoderKLWan)
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    again, _ = run_wan(pipe.transformer.eval(), *batch)
    np.testing.assert_array_equal(again, reference)

    theirs = UniPCMultistepScheduler.from_pretrained(folder, subfolder="scheduler")
    for scheduler in (theirs, pipe.scheduler):
        scheduler.set_timesteps(7)
    np.testing.assert_array_equal(pipe.scheduler.sigmas, theirs.sigmas)
    np.testing.assert_array_equal(pipe.scheduler.timesteps, theirs.timesteps)

    assert jaxdiff.load(written).schedule == pipeline.schedule
    jax.tree.map(np.testing.assert_array_equal, jaxdiff.load(written), pipeline)
