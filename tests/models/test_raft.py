"""RAFT against what torchvision's made of the same weights, module by module and end to end."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.vision.raft import RAFT, RAFTConfig, correlations, load_raft, look_up
from ports.raft import save_raft
from tests.raft import SIZES, UPDATES, pictures, weights
from tests.reference import relative_error

GOLDEN = Path(__file__).parent.parent / "goldens" / "raft.npz"


@pytest.fixture(scope="module", params=SIZES)
def case(request, tmp_path_factory):
    """(network from a folder with the published names, what torchvision's modules gave)."""
    name, golden = request.param, np.load(GOLDEN)
    state = weights(json.loads(str(golden[f"{name}.shapes"])))
    folder = tmp_path_factory.mktemp(name)
    save_file({key: np.asarray(value) for key, value in state.items()}, folder / "raft.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "RAFT", **SIZES[name]}))
    return load_raft(folder), {key.partition(".")[2]: golden[key] for key in golden if key.startswith(name)}


@jax.jit
def modules(network, first, second, given):
    """The flow after all updates, and each module on what torchvision's gave it in the last one."""
    module, config = network.bind(), network.config
    # Motion features end with the flow that the update begins at.
    start, (h, w) = given["motion"][..., -2:], given["motion"].shape[1:3]
    places = start + jnp.stack(jnp.meshgrid(jnp.arange(w), jnp.arange(h)), -1)
    pyramid = correlations(*jnp.split(given["feature"], 2), config.corr_block_num_levels)
    hidden = given["before"]
    for gru in module.grus:
        hidden = gru(hidden, given["told"])
    found = {
        "feature": module.feature_encoder(jnp.concatenate([first, second])),
        "context": module.context_encoder(first),
        "correlation": look_up(pyramid, places, config.corr_block_radius),
        "motion": module.motion_encoder(start, given["correlation"]),
        "hidden": hidden,
        "step": module.step(given["hidden"]),
    }
    if config.use_mask_predictor:
        found["upsampling"] = module.logits(given["hidden"])[:, ::2, ::3]
    return found, network(first, second, updates=UPDATES)[:, ::3, ::3]


def test_modules_and_flow_equal_torchvisions(case):
    network, expected = case
    given = {key: value for key, value in expected.items() if key != "shapes"}
    assert np.abs(given["motion"][..., -2:]).max() > 0.3  # the last update is not the first
    found, flow = modules(network, *pictures(), given)
    errors = {key: relative_error(value, given[key]) for key, value in found.items()}
    assert len(errors) >= 6 and max(errors.values()) < 1e-5, errors
    assert relative_error(flow, given["flow"]) < 1e-4


def test_a_look_up_is_a_bilinear_reading_that_is_zero_outside():
    volume = np.random.default_rng(0).standard_normal((1, 1, 3, 4)).astype(np.float32)
    place = jnp.array([[[[1.25, 0.5]]]])
    found = np.asarray(look_up([jnp.asarray(volume)], place, 3)).reshape(7, 7)  # offsets in x, then in y
    v = volume[0, 0]
    mean = 0.5 * (0.75 * v[0, 1] + 0.25 * v[0, 2]) + 0.5 * (0.75 * v[1, 1] + 0.25 * v[1, 2])
    assert found[3, 3] == pytest.approx(mean, abs=1e-6)
    assert found[5, 3] == pytest.approx(0.5 * 0.75 * (v[0, 3] + v[1, 3]), abs=1e-6)  # half of it lies outside
    assert not found[0].any() and not found[:, 0].any()


def test_the_published_sizes_have_the_published_numbers_of_parameters():
    for config, count in ((RAFTConfig.raft_large(), 5_257_536), (RAFTConfig.raft_small(), 990_162)):
        abstract = Network.abstract(RAFT, config).params
        leaves = jax.tree_util.tree_leaves_with_path(abstract)
        trained = [leaf.size for path, leaf in leaves if path[-1].key not in ("mean", "variance")]
        assert sum(trained) == count


def test_a_saved_raft_loads_equal_and_a_bare_file_tells_its_size(tmp_path):
    network = Network.abstract(RAFT, RAFTConfig(**SIZES["small"]))
    rng = np.random.default_rng(0)
    network = network.replace(jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), network.params))
    save_raft(network, tmp_path / "saved")
    again = load_raft(tmp_path / "saved")
    assert again.config == network.config
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)
    tensors = load_file(next((tmp_path / "saved").glob("*.safetensors")))
    save_file(tensors, tmp_path / "raft.safetensors")
    with pytest.raises(CheckpointError, match="feature_encoder"):  # neither of the published sizes
        load_raft(tmp_path / "raft.safetensors")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"feature_encoder_layers": (8, 8)}, "five widths"),
        ({"context_encoder_norm_layer": "group"}, "got 'group'"),
        ({"recurrent_block_hidden_state_size": 256}, "part of the context"),
    ],
)
def test_numbers_that_make_no_raft_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RAFTConfig(**wrong)


def test_pictures_that_are_too_small_are_refused():
    network = Network.abstract(RAFT, RAFTConfig.raft_small())
    with pytest.raises(ConfigError, match="at least 128 pixels"):
        jax.eval_shape(network, *pictures(1, 64, 64))
