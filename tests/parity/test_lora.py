"""LoRAs that diffusers writes, merged at load, against diffusers' own load_lora_weights and fuse_lora."""

import numpy as np
import pytest
import torch
from diffusers import LTXPipeline, WanPipeline
from peft import LoraConfig, get_peft_model_state_dict

import jaxdiff
from tests.parity.ltx_reference import save as save_ltx
from tests.parity.ltx_reference import transformer as ltx_transformer
from tests.parity.torch_models import run_wan, save_wan, wan_transformer
from tests.reference import relative_error, wan_inputs

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
