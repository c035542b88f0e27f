import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.text import UMT5Config, UMT5Encoder
from jaxdiff.models.wan.transformer import WanTransformerConfig
from ports import original_ltx, original_wan, t5, wan
from ports.families import PORTS
from ports.filling import save_params
from ports.folder import inspect_folder
from ports.renaming import renamed
from ports.table import Ignore, Rule, expected_names
from ports.writer import save_pipeline
from tests.ports.test_folder import CONFIG, VAE_CONFIG, VALUES, folder, state, torch_shapes, unread
from tests.reference import COGVIDEOX_SCHEDULER, random_state, write_folder
from tests.text import write_text

__all__ = ["folder", "state", "unread"]  # fixtures

# Written by hand, from the published files: beginnings of names in the diffusers layout, and there.
PAIRS = {
    "condition_embedder.time_embedder.linear_1.": "time_embedding.0.",
    "condition_embedder.time_embedder.linear_2.": "time_embedding.2.",
    "condition_embedder.time_proj.": "time_projection.1.",
    "condition_embedder.text_embedder.linear_1.": "text_embedding.0.",
    "condition_embedder.text_embedder.linear_2.": "text_embedding.2.",
    "patch_embedding.": "patch_embedding.",
    "proj_out.": "head.head.",
    "scale_shift_table": "head.modulation",
}
INNER = {
    "attn1.to_out.0.": "self_attn.o.",
    "attn2.to_out.0.": "cross_attn.o.",
    **{f"attn1.to_{x}.": f"self_attn.{x}." for x in "qkv"},
    **{f"attn2.to_{x}.": f"cross_attn.{x}." for x in "qkv"},
    **{f"attn1.norm_{x}.": f"self_attn.norm_{x}." for x in "qk"},
    **{f"attn2.norm_{x}.": f"cross_attn.norm_{x}." for x in "qk"},
    "norm2.": "norm3.",
    "ffn.net.0.proj.": "ffn.0.",
    "ffn.net.2.": "ffn.2.",
    "scale_shift_table": "modulation",
}
ORIGINAL_CONFIG = {
    "_class_name": "WanModel",
    "_diffusers_version": "0.30.0",
    "dim": 24,
    "eps": 1e-06,
    "ffn_dim": 32,
    "freq_dim": 32,
    "in_dim": 4,
    "model_type": "t2v",
    "num_heads": 2,
    "num_layers": 2,
    "out_dim": 4,
    "text_len": 512,
}


def by_hand(name):
    block = ""
    pairs = PAIRS
    if name.startswith("blocks."):
        _, number, name = name.split(".", 2)
        block, pairs = f"blocks.{number}.", INNER
    (found,) = [old for old in pairs if name.startswith(old)]
    return block + pairs[found] + name.removeprefix(found)


def write_wan(path, state, config=ORIGINAL_CONFIG):
    path.mkdir(parents=True)
    save_file({by_hand(name): value for name, value in state.items()}, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def expected(folder):
    """The tiny model's other numbers are those that the original configuration leaves unsaid."""
    file = folder / "transformer/config.json"
    file.write_text(json.dumps(VALUES | {"rope_max_seq_len": 1024}))
    return jaxdiff.load(folder)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)  # configurations and the schedule are in it
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_wans_original_folder_loads_as_the_same_pipeline_as_the_diffusers_folder(tmp_path, state, expected):
    equal(jaxdiff.load(write_wan(tmp_path / "wan", state)), expected)


def test_a_transformer_alone_in_a_file_needs_no_configuration(tmp_path):
    config = WanTransformerConfig(
        num_attention_heads=1, in_channels=16, text_dim=8, freq_dim=16, ffn_dim=24, num_layers=1
    )
    rng = np.random.default_rng(0)
    shapes = Network.abstract(PORTS["WanTransformer3DModel"].module, config).params
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    table = original_wan.transformer_table(wan.transformer_table(config), config)
    save_params(params, table, tmp_path / "wan2.1_t2v.safetensors")
    loaded = jaxdiff.load(tmp_path / "wan2.1_t2v.safetensors")
    assert loaded.transformer.config == config
    jax.tree.map(np.testing.assert_array_equal, loaded.transformer.params, params)


def test_two_experts_are_two_transformers(tmp_path, state):
    first = {name: value + 1 for name, value in state.items()}
    path = tmp_path / "wan"
    write_wan(path / "high_noise_model", first)
    write_wan(path / "low_noise_model", state)
    loaded = jaxdiff.load(path)
    bias = [network.params["out"]["bias"] for network in (loaded.transformer, loaded.transformer_2)]
    np.testing.assert_array_equal(bias[0], bias[1] + 1)
    assert loaded.family.boundary_ratio == 0.875


def test_the_text_encoder_and_tokenizer_of_the_original_folder_embed_the_same(tmp_path, state, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    there = write_folder(tmp_path / "model", transformer=(VALUES, state))
    index = json.loads((there / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (there / "model_index.json").write_text(json.dumps(index))
    write_text(there)
    here = write_wan(tmp_path / "wan", state)
    (here / "google").mkdir()
    (there / "tokenizer").rename(here / original_wan.TOKENIZER)
    encoder = {}
    for name, value in load_file(there / "text_encoder/model.safetensors").items():
        name = name.removeprefix("encoder.").replace("final_layer_norm", "norm").replace("shared", "token_embedding")
        name = (
            name.replace("block.", "blocks.")
            .replace("layer.0.layer_norm", "norm1")
            .replace("layer.1.layer_norm", "norm2")
        )
        name = name.replace("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding")
        name = name.replace("layer.0.SelfAttention", "attn").replace("layer.1.DenseReluDense", "ffn")
        name = name.replace("wi_0", "gate.0").replace("wi_1", "fc1").replace("wo", "fc2")
        encoder[name] = value
    save_file(encoder, here / "models_t5_umt5-xxl-enc-bf16.safetensors")
    ours = jaxdiff.load(here).condition("the ball", max_length=8).text
    (here / original_wan.TOKENIZER).rename(there / "tokenizer")
    np.testing.assert_array_equal(ours, jaxdiff.load(there).condition("the ball", max_length=8).text)

    (there / "tokenizer").rename(here / original_wan.TOKENIZER)
    (here / "models_t5_umt5-xxl-enc-bf16.safetensors").rename(here / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(CheckpointError, match=r"python -m ports\.unpickle --checkpoint=.*t5.*pth"):
        jaxdiff.load(here).condition("the ball", max_length=8)


def test_saving_writes_the_text_encoder_of_whatever_layout(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_text(folder)
    pipeline = jaxdiff.load(folder)
    save_pipeline(pipeline, tmp_path / "a")
    for part in ("text_encoder", "tokenizer"):
        for file in (folder / part).iterdir():
            assert (tmp_path / "a" / part / file.name).read_bytes() == file.read_bytes()
    saved = json.loads((tmp_path / "a/model_index.json").read_text())
    assert saved["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert saved["tokenizer"][0] == "transformers"
    again = jaxdiff.load(tmp_path / "a")
    save_pipeline(again, tmp_path / "a")  # onto itself: what is read is what is written
    texts = [one.condition("the ball", max_length=8).text for one in (pipeline, again)]
    np.testing.assert_array_equal(*texts)


def test_a_vae_that_is_a_pickle_names_the_command(tmp_path, state, unread):
    path = write_wan(tmp_path / "wan", state)
    (path / "Wan2.1_VAE.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"ports\.unpickle --checkpoint=.*VAE\.pth --out=.*VAE\.safetensors"):
        jaxdiff.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 3}, "unknown key 'heads'"), ({"window_size": [4, 4]}, "window_size=.* not supported")],
)
def test_a_configuration_that_is_not_understood_is_refused(tmp_path, state, unread, changes, message):
    with pytest.raises(ConfigError, match=message):
        jaxdiff.load(write_wan(tmp_path / "wan", state, ORIGINAL_CONFIG | changes))


def test_misfits_are_listed_by_their_original_names(tmp_path, state, unread):
    del state["blocks.1.attn1.to_q.weight"]
    path = write_wan(tmp_path / "wan", state)
    with pytest.raises(CheckpointError, match=r"missing  blocks\.1\.self_attn\.q\.weight \(24, 24\)"):
        jaxdiff.load(path)
    _, problems = inspect_folder(path)
    assert list(problems) == ["transformer"]


def test_a_file_that_is_no_whole_checkpoint_says_so(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no whole checkpoint in one file that is known"):
        jaxdiff.load(tmp_path / "x.safetensors")
    save_file({"model.diffusion_model.patchify_proj.weight": np.zeros((4, 2), np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match="LTX-Video transformer without its VAE"):
        jaxdiff.load(tmp_path / "y.safetensors")


# Of the script with which diffusers converted CogVideoX, read backwards.
SAT = {
    "attn1.to_out.0": "transformer.layers.{}.attention.dense",
    "ff.net.0.proj": "transformer.layers.{}.mlp.dense_h_to_4h",
    "ff.net.2": "transformer.layers.{}.mlp.dense_4h_to_h",
    "norm1.norm": "transformer.layers.{}.input_layernorm",
    "norm2.norm": "transformer.layers.{}.post_attention_layernorm",
    "attn1.norm_q": "mixins.adaln_layer.query_layernorm_list.{}",
    "attn1.norm_k": "mixins.adaln_layer.key_layernorm_list.{}",
}
SAT_ENDS = {
    "norm_final": "transformer.final_layernorm",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "patch_embed.proj": "mixins.patch_embed.proj",
    "patch_embed.text_proj": "mixins.patch_embed.text_proj",
    "norm_out.norm": "mixins.final_layer.norm_final",
    "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
    "proj_out": "mixins.final_layer.linear",
}


def sat_transformer(state, layers):
    made = {}
    for module, name in SAT_ENDS.items():
        for kind in ("weight", "bias"):
            made[f"{name}.{kind}"] = state[f"{module}.{kind}"]
    for i in range(layers):
        block = f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            for module, name in SAT.items():
                made[f"{name.format(i)}.{kind}"] = state[f"{block}.{module}.{kind}"]
            qkv = [state[f"{block}.attn1.to_{x}.{kind}"] for x in "qkv"]
            made[f"transformer.layers.{i}.attention.query_key_value.{kind}"] = np.concatenate(qkv)
            first, second = (np.split(state[f"{block}.norm{n}.linear.{kind}"], 2) for n in (1, 2))
            name = f"mixins.adaln_layer.adaLN_modulations.{i}.1.{kind}"
            made[name] = np.concatenate([first[0], second[0], first[1], second[1]])
    return {f"model.diffusion_model.{name}": value for name, value in made.items()}


def sat_vae(state):
    made = {"loss.logvar": np.zeros(1, np.float32)}
    for name, value in state.items():
        parts = name.replace("resnets.", "block.").replace("conv_shortcut", "nin_shortcut").split(".")
        if parts[1] == "up_blocks":
            parts[1:3] = ["up", str(3 - int(parts[2]))]
        elif parts[1] == "down_blocks":
            parts[1] = "down"
        name = ".".join(parts).replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        made[name.replace("mid_block.block.0", "mid.block_1").replace("mid_block.block.1", "mid.block_2")] = value
    return made


@pytest.mark.parametrize("rotary", [False, True])
def test_the_sat_folder_of_cogvideox_loads_as_the_same_pipeline_as_the_diffusers_folder(tmp_path, rotary):
    transformer, vae = PORTS["CogVideoXTransformer3DModel"], PORTS["AutoencoderKLCogVideoX"]
    config = dataclasses.replace(
        transformer.config(), num_attention_heads=2, attention_head_dim=16, time_embed_dim=16, text_embed_dim=16,
        num_layers=2, use_rotary_positional_embeddings=rotary,
    )  # fmt: skip
    coder = vae.config.cogvideox_5b() if rotary else vae.config.cogvideox_2b()
    coder = dataclasses.replace(coder, block_out_channels=(8, 16, 16, 32), norm_num_groups=8)
    states = [
        random_state(torch_shapes(port.module, values, port.table(values)), seed=seed)
        for seed, (port, values) in enumerate(((transformer, config), (vae, coder)))
    ]
    there = write_folder(
        tmp_path / "diffusers",
        pipeline="CogVideoXPipeline",
        scheduler=COGVIDEOX_SCHEDULER | {"snr_shift_scale": 1.0 if rotary else 3.0},
        transformer=({"_class_name": "CogVideoXTransformer3DModel", **dataclasses.asdict(config)}, states[0]),
        vae=({"_class_name": "AutoencoderKLCogVideoX", **dataclasses.asdict(coder)}, states[1]),
    )
    here = tmp_path / "sat"
    (here / "transformer/1000").mkdir(parents=True)
    (here / "vae").mkdir()
    sat = sat_transformer(states[0], 2)
    if not rotary:
        sat["model.diffusion_model.mixins.pos_embed.pos_embedding"] = np.zeros((1, 9, 32), np.float32)
    save_file(sat, here / "transformer/1000/mp_rank_00_model_states.safetensors")
    save_file(sat_vae(states[1]), here / "vae/3d-vae.safetensors")
    equal(jaxdiff.load(here), jaxdiff.load(there))

    (here / "vae/3d-vae.safetensors").rename(here / "vae/3d-vae.pt")
    with pytest.raises(CheckpointError, match=r"3d-vae\.pt: .*python -m ports\.unpickle"):
        jaxdiff.load(here)


def image_config():
    return dataclasses.replace(CONFIG, image_dim=8, added_kv_proj_dim=24, pos_embed_seq_len=6)


TABLES = {
    "wan": lambda: (wan.transformer_table(image_config()), original_wan.TRANSFORMER),
    "umt5": lambda: (t5.encoder_table(UMT5Config(feed_forward_proj="gated-gelu")), original_wan.TEXT),
    "ltx": lambda: (
        PORTS["LTXVideoTransformer3DModel"].table(PORTS["LTXVideoTransformer3DModel"].config()),
        original_ltx.NAMES,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_rule_has_an_original_name(name):
    table, names = TABLES[name]()
    rules = [rule for rule in table if isinstance(rule, Rule)]
    kept = [rule for rule in renamed(table, names) if isinstance(rule, Rule)]
    assert [rule.leaf for rule in kept] == [rule.leaf for rule in rules]


def test_every_leaf_of_both_vaes_has_an_original_name():
    vae = PORTS["AutoencoderKLWan"]
    small = dataclasses.replace(VAE_CONFIG, dim_mult=(1, 2, 2), temperal_downsample=(True, False), num_res_blocks=2)
    for config in (dataclasses.replace(small, is_residual=True), small):
        params = Network.abstract(vae.module, config).params
        table = original_wan.vae_table(vae.table(config), config)
        groups, problems = expected_names(table, params)
        assert not problems
        assert len({name for group in groups.values() for name in group.names}) == len(groups)
    names = {name for group in groups.values() for name in group.names}
    assert {"encoder.downsamples.2.resample.1.weight", "decoder.upsamples.4.shortcut.weight"} <= names


def test_a_rule_without_an_original_name_is_left_out_and_a_longer_beginning_wins():
    table = (Rule("a.b.weight", "x"), Rule("a.weight", "y"), Ignore("c.weight", "no"), Rule("d.norm.weight", "z"))
    made = renamed(table, {"a": "p", "a.b": "q", "d": "d"}, {"norm": "norm.inner"}, "m.")
    assert [rule.source for rule in made] == ["m.q.weight", "m.p.weight", "m.d.norm.inner.weight"]


def test_the_encoder_is_the_one_that_the_tests_write():
    assert PORTS["UMT5EncoderModel"].module is UMT5Encoder
