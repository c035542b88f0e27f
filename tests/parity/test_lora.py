"""LoRAs that diffusers writes, merged at load, against diffusers' own load_lora_weights and fuse_lora; and ours, read by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import LTXPipeline, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict

import jaxdiff
from jaxdiff.models.lora import ATTENTION, LoRA, adapted, new_adapters
from ports.lora_writer import find_targets, save_lora
from tests.parity import cogvideox_reference
from tests.parity.ltx_reference import save as save_ltx
from tests.parity.ltx_reference import transformer as ltx_transformer
from tests.parity.torch_models import run_wan, save_wan, wan_transformer
from tests.reference import cogvideox_inputs, relative_error, wan_inputs

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]


def adapter(model, seed=3, **config):
    """Give the model a LoRA whose tensors are all random (peft begins with B = 0), and return its state dict."""
    model.add_adapter(LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return get_peft_model_state_dict(model)


def metadata(model):
    from diffusers.training_utils import _collate_lora_metadata

    return _collate_lora_metadata({"transformer": model})


@pytest.mark.parametrize("alpha", [4, 9])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_lora_equals_diffusers_fused_one(tmp_path, alpha, rslora):
    trained = wan_transformer()
    tensors = adapter(trained, lora_alpha=alpha, use_rslora=rslora)
    WanPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=tensors, **metadata(trained))
    base = wan_transformer()
    folder = save_wan(tmp_path / "wan", base)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, transformer=base, vae=None, scheduler=None)
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora(lora_scale=0.8)
    pipe.unload_lora_weights()
    batch = wan_inputs(base.config, (3, 8, 8))
    reference, _ = run_wan(pipe.transformer, *batch)
    plain = jaxdiff.load(folder).denoise(*batch)
    ours = jaxdiff.load(folder, lora=tmp_path / "lora", lora_scale=0.8).denoise(*batch)
    assert relative_error(plain, reference) > 1e-2  # the LoRA does something
    assert relative_error(ours, reference) <= 1e-5


def test_an_unfused_adapter_gives_the_same_velocity(tmp_path):
    """The LoRA as it was trained, beside the weights, not in them."""
    trained = wan_transformer()
    folder = save_wan(tmp_path / "wan", wan_transformer())
    tensors = adapter(trained, lora_alpha=6)
    WanPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=tensors, **metadata(trained))
    batch = wan_inputs(trained.config, (3, 8, 8))
    reference, _ = run_wan(trained.eval(), *batch)
    assert relative_error(jaxdiff.load(folder, lora=tmp_path / "lora").denoise(*batch), reference) <= 1e-5


def test_a_lora_of_ltx_equals_the_fused_weights(tmp_path):
    trained = ltx_transformer()
    trained.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "ff.net.2"], init_lora_weights=False))
    tensors = get_peft_model_state_dict(trained)
    LTXPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=tensors, **metadata(trained))
    folder = save_ltx(tmp_path / "ltx", ltx_transformer())
    ours = jaxdiff.load(folder, lora=tmp_path / "lora").transformer.params
    trained.fuse_lora()
    trained.unload_lora()
    state = trained.state_dict()
    for block in range(2):
        theirs = state[f"transformer_blocks.{block}.attn1.to_q.weight"].numpy().T
        np.testing.assert_allclose(ours["blocks"]["self_attention"]["query"]["kernel"][block], theirs, atol=2e-6)
        theirs = state[f"transformer_blocks.{block}.ff.net.2.weight"].numpy().T
        np.testing.assert_allclose(ours["blocks"]["mlp"]["out"]["kernel"][block], theirs, atol=2e-6)


def trained_here(folder, targets, alpha):
    """A pipeline of ours with a random adapter, as training leaves it, and the file that is written of it."""
    pipeline, lora = jaxdiff.load(folder), LoRA(3, alpha, targets)
    network, rng = pipeline.transformer, np.random.default_rng(3)
    shapes = new_adapters(network.params, find_targets(network, targets), lora, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    pipeline = dataclasses.replace(pipeline, transformer=adapted(network, drawn, lora.scale))
    return pipeline, save_lora(pipeline.transformer, folder.parent / "lora", lora)


@pytest.mark.parametrize(("targets", "alpha"), [(ATTENTION, 3.0), (("attn2.to_k", "ffn.net.0.proj", "proj_out"), 7.5)])
def test_an_adapter_of_wan_trained_here_is_read_by_diffusers(tmp_path, targets, alpha):
    base = wan_transformer()
    folder = save_wan(tmp_path / "wan", base)
    ours, file = trained_here(folder, targets, alpha)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, transformer=base, vae=None, scheduler=None)
    batch = wan_inputs(base.config, (3, 8, 8))
    plain, _ = run_wan(pipe.transformer, *batch)
    pipe.load_lora_weights(file.parent)
    reference, _ = run_wan(pipe.transformer, *batch)
    assert relative_error(plain, reference) > 1e-2
    assert relative_error(ours.denoise(*batch), reference) <= 1e-5
    assert relative_error(jaxdiff.load(folder, lora=file).denoise(*batch), reference) <= 1e-5


def test_an_adapter_of_cogvideox_trained_here_is_read_by_diffusers(tmp_path):
    changes, grid = cogvideox_reference.CASES["5b"]
    base = cogvideox_reference.transformer(changes)
    folder = cogvideox_reference.save(tmp_path / "cogvideox", base)
    ours, file = trained_here(folder, ATTENTION, 2.0)
    pipe = cogvideox_reference.pipeline(base)
    pipe.load_lora_weights(file)
    given = cogvideox_inputs(base.config, grid)
    reference, _ = cogvideox_reference.run(pipe.transformer, given)
    for pipeline in (ours, jaxdiff.load(folder, lora=file)):
        assert relative_error(pipeline.denoise(given.latents, given.timestep, given.text), reference) <= 1e-5
