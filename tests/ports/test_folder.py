import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.models.network import Network
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig
from ports import wan, wan_vae
from ports.safetensors_reader import Checkpoint
from ports.table import expected_names, flatten
from ports.writer import save_pipeline
from tests.reference import WAN_SCHEDULER, random_state, write_folder

CONFIG = WanTransformerConfig(
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=32,
    ffn_dim=32,
    num_layers=2,
    rope_max_seq_len=32,
)
VALUES = {
    "_class_name": "WanTransformer3DModel",
    "_diffusers_version": "0.33.0",
    **dataclasses.asdict(CONFIG),
}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


VAE_CONFIG = WanVAEConfig(
    base_dim=8,
    z_dim=4,
    dim_mult=(1, 2, 2, 2),
    num_res_blocks=1,
    latents_mean=(0.1, -0.2, 0.3, -0.4),
    latents_std=(1.5, 0.5, 2.0, 1.0),
)
VAE_VALUES = {"_class_name": "AutoencoderKLWan", **dataclasses.asdict(VAE_CONFIG)}


def torch_shapes(module, config, table):
    """Name -> shape of the checkpoint of one network."""
    params = Network.abstract(module, config).params
    groups, problems = expected_names(table, params)
    assert not problems
    leaves = flatten(params)
    shapes = {}
    for path, group in groups.items():
        shape = leaves[path].shape[1:] if group.rule.stacked else leaves[path].shape
        shapes |= dict.fromkeys(group.names, group.rule.transform.torch_shape(shape))
    return shapes


@pytest.fixture(scope="module")
def state():
    return random_state(torch_shapes(WanTransformer, CONFIG, wan.transformer_table(CONFIG)))


@pytest.fixture(scope="module")
def vae_state():
    return random_state(torch_shapes(WanVAE, VAE_CONFIG, wan_vae.vae_table(VAE_CONFIG)), seed=1)


@pytest.fixture
def whole(tmp_path, state, vae_state):
    return write_folder(tmp_path / "whole", transformer=(VALUES, state), vae=(VAE_VALUES, vae_state))


@pytest.fixture
def folder(tmp_path, state):
    return write_folder(tmp_path / "model", transformer=(VALUES, state))


def edit(file, **changes):
    """Change keys of a JSON file; `...` removes one."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


@pytest.fixture
def unread(monkeypatch):
    """Reading any weight fails the test."""

    def view(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "view", view)


# -------------------------------------------------------------------------------- what loads


def test_a_folder_loads_without_its_optional_parts_until_they_are_used(folder):
    pipeline = jaxdiff.load(str(folder))
    assert pipeline.transformer.config == CONFIG
    with pytest.raises(MissingDataError, match="no vae/"):
        pipeline.encode(np.zeros((1, 5, 16, 16, 3), np.uint8))
    with pytest.raises(MissingDataError, match="text encoder"):
        pipeline.condition("a ball")


def test_parts_that_are_not_ported_are_not_opened(folder, state):
    edit(folder / "model_index.json", text_encoder=["transformers", "UMT5EncoderModel"], _name_or_path="x")
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    assert jaxdiff.load(folder).text_encoder is None


@pytest.mark.parametrize("dtype", [None, "float32", jnp.bfloat16, np.float16])
def test_the_dtype_is_that_of_the_matmuls_and_norms_stay_float32(folder, dtype):
    params = jaxdiff.load(folder, dtype=dtype).transformer.params
    expected = jnp.float32 if dtype is None else dtype  # the default on a CPU
    assert params["blocks"]["mlp"]["into"]["kernel"].dtype == expected
    assert params["patch_embedding"]["kernel"].dtype == expected
    kept = [params["time_embedding"], params["modulation"], params["blocks"]["modulation"]]
    kept.append(params["blocks"]["cross_norm"])
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {np.dtype(np.float32)}


def test_the_vae_stays_float32(whole):
    pipeline = jaxdiff.load(whole, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(pipeline.vae)} == {np.dtype(np.float32)}
    assert pipeline.vae.config == VAE_CONFIG


@pytest.mark.parametrize("dtype", [np.float64, "int8", "fast"])
def test_other_dtypes_are_refused(folder, dtype, unread):
    with pytest.raises(ConfigError, match="choose float32, bfloat16 or float16"):
        jaxdiff.load(folder, dtype=dtype)


MESH = """
import sys, jax, numpy as np, jaxdiff
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
one, many = jaxdiff.load(sys.argv[1]), jaxdiff.load(sys.argv[1], mesh=mesh)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    assert b.sharding.mesh == mesh and len(b.sharding.device_set) == 8
    np.testing.assert_array_equal(a, b)
kernel = many.transformer.params["blocks"]["mlp"]["into"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (2, 12, 32), kernel.sharding
print("fine")
"""


def test_a_mesh_holds_the_same_weights_split_over_the_axes_that_it_has(folder, run_with_devices):
    assert run_with_devices(8, MESH, str(folder)).strip() == "fine"


# -------------------------------------------------------------------------------- what does not


def test_a_path_that_is_no_checkpoint_folder_says_what_it_is(tmp_path, folder, unread):
    for path, message in {
        tmp_path / "gone": "gone: no such folder",
        folder / WEIGHTS: "a file, and no whole checkpoint in one file that is known; give the folder",
        folder / "transformer": f"this is one component of a checkpoint; give the folder above it, {folder}",
        tmp_path: "no model_index.json: the diffusers layout has one beside transformer/ and scheduler/",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            jaxdiff.load(path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="this is a LoRA"):
        jaxdiff.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"_class_name": "Mochi"},
            CheckpointError,
            "'Mochi' is not supported (supported: ",
        ),
        (
            {"_class_name": "WanPipelin"},
            CheckpointError,
            "did you mean 'WanPipeline'? (supported: WanPipeline",
        ),
        ({"_class_name": ...}, CheckpointError, "pipeline class 'None' is not supported"),
        (
            {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
            CheckpointError,
            "names a transformer_2, and there is no folder of it",
        ),
        ({"transformer": [["diffusers"]]}, CheckpointError, "transformer of class"),
        ({"boundary_ratio": 0.875}, CheckpointError, "boundary_ratio=0.875, and there is no transformer_2/"),
        (
            {"transformer": ["diffusers", "SkyTransformer"]},
            CheckpointError,
            "transformer of class 'SkyTransformer'",
        ),
        (
            {"transfomer": ["a", "b"]},
            ConfigError,
            "unknown key 'transfomer'=['a', 'b']; did you mean 'transformer'?",
        ),
    ],
)
def test_an_index_that_is_not_understood_is_refused(folder, unread, changes, error, message):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(error, match=re.escape(message)) as raised:
        jaxdiff.load(folder)
    assert "model_index.json" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"_class_name": "CogVideoXTransformer3DModel"},
            CheckpointError,
            "(supported: WanTransformer3DModel)",
        ),
        ({"num_layer": 2}, ConfigError, "did you mean 'num_layers'?"),
        ({"image_dim": 1280}, ConfigError, "attends to image tokens"),
        ({"num_layers": "two"}, ConfigError, "no WanTransformer3DModel can be built from these values"),
        ({"patch_size": [1, 2]}, ConfigError, "no WanTransformer3DModel can be built from these values"),
        ({"quantization_config": {"bits": 8}}, CheckpointError, "quantised"),
    ],
)
def test_a_component_that_is_not_understood_is_refused(folder, unread, changes, error, message):
    edit(folder / "transformer/config.json", **changes)
    with pytest.raises(error, match=re.escape(message)) as raised:
        jaxdiff.load(folder)
    assert "transformer/config.json" in str(raised.value)


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_broken_json_file_is_named(folder, unread, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        jaxdiff.load(folder)


@pytest.mark.parametrize("name", ["transformer/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_json_file_is_named(folder, unread, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name.removeprefix('transformer/')}"):
        jaxdiff.load(folder)


def test_a_missing_transformer_is_named(folder, unread):
    (folder / "transformer").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match="has no transformer/"):
        jaxdiff.load(folder)


def test_a_component_that_the_index_declares_absent_is_not_read(folder, unread):
    edit(folder / "model_index.json", transformer=[None, None])
    with pytest.raises(CheckpointError, match=r"has no transformer/, or model_index\.json says that it is absent"):
        jaxdiff.load(folder)


def test_a_scheduler_of_another_kind_is_refused_by_name(folder, unread):
    edit(folder / "scheduler/scheduler_config.json", _class_name="PNDMScheduler")
    with pytest.raises(ConfigError, match=r"scheduler_config\.json.*PNDMScheduler"):
        jaxdiff.load(folder)


def test_all_tensors_that_do_not_fit_are_listed_before_a_weight_is_read(folder, state, unread):
    changed = dict(state)
    changed["blocks.1.attn1.to_qq.weight"] = changed.pop("blocks.1.attn1.to_q.weight")
    changed["proj_out.bias"] = np.zeros(3, np.float32)
    save_file(changed, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as raised:
        jaxdiff.load(folder)
    message = str(raised.value)
    assert f"{folder / 'transformer'}: the weights do not fit the model, 3 problem(s)" in message
    assert "missing  blocks.1.attn1.to_q.weight (24, 24)" in message
    assert "the checkpoint has blocks.1.attn1.to_qq.weight" in message
    assert "extra    blocks.1.attn1.to_qq.weight" in message
    assert "shape    proj_out.bias is (3,) in the checkpoint, (16,) in the model" in message


def test_the_misfits_of_every_component_are_listed_together(whole, state, vae_state, unread):
    save_file({**state, "new": np.zeros(2, np.float32)}, whole / WEIGHTS)
    save_file({**vae_state, "newer": np.zeros(3, np.float32)}, whole / VAE_WEIGHTS)
    pattern = r"(?s)transformer: .*extra    new \(2,\).*vae: .*extra    newer \(3,\)"
    with pytest.raises(CheckpointError, match=pattern):
        jaxdiff.load(whole)


def test_a_checkpoint_with_more_or_fewer_blocks_than_its_config_does_not_load(folder, unread):
    edit(folder / "transformer/config.json", num_layers=1)
    with pytest.raises(CheckpointError, match=r"27 problem.*\n  extra    blocks\.1\.attn1"):
        jaxdiff.load(folder)
    edit(folder / "transformer/config.json", num_layers=3)
    with pytest.raises(CheckpointError, match=r"27 problem.*\n  missing  blocks\.2\.attn1"):
        jaxdiff.load(folder)


def test_truncated_weights_and_pickles_are_refused(folder, unread):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=rf"truncated.* {len(whole)} bytes, the file has {len(whole) - 100}"):
        jaxdiff.load(folder)
    (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickles here"):
        jaxdiff.load(folder)


# -------------------------------------------------------------------------------- writing


def test_what_is_saved_loads_as_the_same_pipeline_and_bytes(whole, tmp_path, state, vae_state):
    pipeline = jaxdiff.load(whole)
    first = save_pipeline(pipeline, tmp_path / "a")
    second = save_pipeline(jaxdiff.load(whole), tmp_path / "b")
    again = jaxdiff.load(first)
    assert jax.tree.structure(again) == jax.tree.structure(pipeline)  # the schedule and the configs are in it
    jax.tree.map(np.testing.assert_array_equal, again, pipeline)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        WEIGHTS,
        "vae/config.json",
        VAE_WEIGHTS,
    ]
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()
    for file, tensors in ((WEIGHTS, state), (VAE_WEIGHTS, vae_state)):
        written = load_file(first / file)
        assert written.keys() == tensors.keys()
        for name, value in tensors.items():
            np.testing.assert_array_equal(written[name], value)


def test_saving_in_bfloat16_halves_the_file_and_keeps_norms(folder, tmp_path):
    pipeline = jaxdiff.load(folder)
    save_pipeline(pipeline, tmp_path / "half", dtype=jnp.bfloat16)
    with Checkpoint(tmp_path / "half/transformer") as reader:
        assert reader.dtype("proj_out.weight") == jnp.bfloat16
        assert reader.dtype("blocks.0.norm2.weight") == np.float32
    loaded = jaxdiff.load(tmp_path / "half", dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, loaded, jaxdiff.load(folder, dtype=jnp.bfloat16))


def test_an_interrupted_save_leaves_no_folder_that_looks_whole(folder, tmp_path, monkeypatch):
    pipeline = jaxdiff.load(folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ports.safetensors_writer.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(pipeline, tmp_path / "cut")
    assert not (tmp_path / "cut/model_index.json").exists()
    assert not list((tmp_path / "cut").rglob("*.safetensors*"))


def test_a_pipeline_of_an_unknown_family_is_not_written(folder, tmp_path):
    stranger = dataclasses.replace(jaxdiff.load(folder), family="hand made")
    with pytest.raises(CheckpointError, match="'hand made' cannot be written"):
        save_pipeline(stranger, tmp_path / "x")


def test_the_schedule_is_the_folders(folder):
    edit(folder / "scheduler/scheduler_config.json", flow_shift=8.0)
    shifted = jaxdiff.load(folder).schedule
    edit(folder / "scheduler/scheduler_config.json", flow_shift=WAN_SCHEDULER["flow_shift"])
    assert shifted != jaxdiff.load(folder).schedule
