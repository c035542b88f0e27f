import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError
from ports.convert import convert
from tests.ports.test_folder import CONFIG, WEIGHTS, folder, state

__all__ = ["folder", "state"]  # fixtures

RANK = 3
MODULES = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2", "condition_embedder.time_proj", "patch_embedding")
ORIGINAL = dict(
    zip(MODULES, ("blocks.0.self_attn.q", "blocks.1.ffn.2", "time_projection.1", "patch_embedding"), strict=True)
)


@pytest.fixture
def factors(state):
    """module -> (A, B); the last is a convolution."""
    rng = np.random.default_rng(3)
    made = {}
    for module in MODULES:
        shape = state[f"{module}.weight"].shape
        down, up = (RANK, *shape[1:]), (shape[0], RANK, *[1] * (len(shape) - 2))
        made[module] = tuple(rng.standard_normal(s).astype(np.float32) for s in (down, up))
    return made


def expected(folder, tmp_path, state, factors, scale):
    """The pipeline of a folder whose tensors have the change added by hand."""
    changed = dict(state)
    for module, (down, up) in factors.items():
        delta = np.tensordot(up.reshape(up.shape[0], RANK), down, axes=1)
        changed[f"{module}.weight"] = (state[f"{module}.weight"] + scale * delta).astype(np.float32)
    save_file(changed, folder / WEIGHTS)
    pipeline = jaxdiff.load(folder)
    save_file(state, folder / WEIGHTS)
    return pipeline


def write(
    path, factors, template="transformer.{}.lora_{}.weight", sides=("A", "B"), alpha=None, names=None, metadata=None
):
    tensors = {}
    for module, values in factors.items():
        name = module if names is None else names(module)
        tensors |= {template.format(name, side): value for side, value in zip(sides, values, strict=True)}
        if alpha is not None:
            tensors[f"{template.partition('{}')[0]}{name}.alpha"] = np.asarray(alpha, np.float32)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


def close(ours, theirs):
    """Equal up to the order of sums in the product."""
    changed = 0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * float(np.abs(b).max()))
        changed += 1
    assert changed


PEFT = {"r": RANK, "lora_alpha": 6.0}
STYLES = {
    "diffusers": ({}, 1.0),
    "diffusers with metadata": (
        {"metadata": {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in PEFT.items()})}},
        2.0,
    ),
    "finetrainers": ({"metadata": {"lora_config": json.dumps(PEFT)}}, 2.0),
    "rank stabilised": ({"metadata": {"lora_config": json.dumps(PEFT | {"use_rslora": True})}}, 6.0 / 3**0.5),
    "alpha tensors": ({"alpha": 1.5, "metadata": {"lora_config": json.dumps(PEFT)}}, 0.5),
    "original names": (
        {"template": "diffusion_model.{}.lora_{}.weight", "sides": ("down", "up"), "names": ORIGINAL.get, "alpha": 6.0},
        2.0,
    ),
    "underscores": (
        {
            "template": "lora_unet_{}.lora_{}.weight",
            "sides": ("down", "up"),
            "names": lambda module: ORIGINAL[module].replace(".", "_"),
            "alpha": 6.0,
        },
        2.0,
    ),
    "peft": ({"template": "base_model.model.{}.lora_{}.weight"}, 1.0),
}


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_of_every_style_is_added_with_its_own_alpha(folder, tmp_path, state, factors, style):
    options, scale = STYLES[style]
    path = write(tmp_path / "lora" / "pytorch_lora_weights.safetensors", factors, **options)
    want = expected(folder, tmp_path, state, factors, 0.7 * scale)
    close(jaxdiff.load(folder, lora=path, lora_scale=0.7), want)
    close(jaxdiff.load(folder, lora=path.parent, lora_scale=0.7), want)


def test_alphas_of_single_modules_and_an_adapter_config_beside_the_file_are_read(folder, tmp_path, state, factors):
    one = {MODULES[0]: factors[MODULES[0]]}
    path = write(tmp_path / "adapter" / "adapter_model.safetensors", one)
    config = PEFT | {"alpha_pattern": {"attn1.to_q": 12.0}}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    close(jaxdiff.load(folder, lora=path.parent), expected(folder, tmp_path, state, one, 4.0))


def test_biases_and_whole_differences_are_added(folder, tmp_path, state):
    rng = np.random.default_rng(0)
    bias, gain = rng.standard_normal(16).astype(np.float32), rng.standard_normal(24).astype(np.float32)
    changes = {"diffusion_model.head.head.diff_b": bias, "diffusion_model.blocks.1.norm3.diff": gain}
    save_file(changes, tmp_path / "x.safetensors")
    base, ours = (
        jaxdiff.load(folder).transformer.params,
        jaxdiff.load(folder, lora=tmp_path / "x.safetensors", lora_scale=0.5),
    )
    ours = ours.transformer.params
    np.testing.assert_allclose(ours["out"]["bias"], base["out"]["bias"] + 0.5 * bias, rtol=1e-6)
    scale = ours["blocks"]["cross_norm"]["scale"] - base["blocks"]["cross_norm"]["scale"]
    np.testing.assert_allclose(scale[1], 0.5 * gain, atol=1e-6)
    assert not np.any(scale[0])


def test_all_that_does_not_fit_is_listed_and_no_weight_is_read(folder, tmp_path, factors):
    tensors = {
        "transformer.blocks.7.attn1.to_q.lora_A.weight": np.zeros((2, 24), np.float32),
        "transformer.blocks.7.attn1.to_q.lora_B.weight": np.zeros((24, 2), np.float32),
        "transformer.blocks.0.attn1.to_q.lora_A.weight": np.zeros((2, 24), np.float32),
        "transformer.blocks.0.attn1.to_k.lora_A.weight": np.zeros((2, 24), np.float32),
        "transformer.blocks.0.attn1.to_k.lora_B.weight": np.zeros((23, 2), np.float32),
        "transformer.blocks.0.attn1.to_v.lora_magnitude_vector": np.zeros(24, np.float32),
        "text_encoder.x.lora_A.weight": np.zeros((2, 24), np.float32),
        "text_encoder.x.lora_B.weight": np.zeros((24, 2), np.float32),
        "transformer_2.proj_out.lora_A.weight": np.zeros((2, 24), np.float32),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as raised:
        jaxdiff.load(folder, lora=tmp_path / "x.safetensors")
    message = str(raised.value)
    assert "x.safetensors: the LoRA does not fit the model, 6 problem(s)" in message
    for line in (
        "the model has no blocks.7.attn1.to_q.weight",
        "half     transformer.blocks.0.attn1.to_q.lora_A.weight: one of the two factors is missing",
        "lora_B.weight (23, 2) times transformer.blocks.0.attn1.to_k.lora_A.weight (2, 24) does not make "
        "blocks.0.attn1.to_k.weight (24, 24)",
        "name     transformer.blocks.0.attn1.to_v.lora_magnitude_vector (24,) is no LoRA tensor",
        "the model has no text_encoder.x.weight",
        "proj_out: the model has no transformer_2",
    ):
        assert line in message


def test_what_is_no_lora_says_so(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such LoRA"):
        jaxdiff.load(folder, lora=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="0 safetensors files here"):
        jaxdiff.load(folder, lora=tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_lora_weights.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"python -m ports\.unpickle"):
        jaxdiff.load(folder, lora=tmp_path / "empty")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        jaxdiff.load(folder, lora=tmp_path / "none.safetensors")


def test_a_lora_given_as_a_checkpoint_says_how_it_is_given(tmp_path, factors):
    path = write(tmp_path / "lora" / "pytorch_lora_weights.safetensors", factors)
    for given in (path, path.parent):
        with pytest.raises(CheckpointError, match=r"this is a LoRA.*jaxdiff\.load\(folder, lora=path\)"):
            jaxdiff.load(given)


def test_a_conversion_can_bake_a_lora_in_and_a_converted_folder_takes_none(folder, tmp_path, factors):
    path = write(tmp_path / "lora" / "x.safetensors", factors)
    convert(folder, tmp_path / "out", lora=path, lora_scale=0.5)
    ours, theirs = jaxdiff.load(tmp_path / "out"), jaxdiff.load(folder, lora=path, lora_scale=0.5)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    with pytest.raises(ConfigError, match="a converted checkpoint takes no LoRA"):
        jaxdiff.load(tmp_path / "out", lora=path)


def test_the_model_is_the_one_that_the_tests_know(folder):
    assert jaxdiff.load(folder).transformer.config == dataclasses.replace(CONFIG)
