"""The T5 and UMT5 encoders against recorded outputs of transformers, and what their configurations accept."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.text import T5Config, T5Encoder, UMT5Config, UMT5Encoder
from jaxdiff.models.text.t5 import relative_buckets
from ports.folder import load_network
from tests.reference import relative_error
from tests.text import encoder_state, write_encoder

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "t5.json").read_text())
BOTH = ("shared.weight", "encoder.embed_tokens.weight")


@jax.jit
def embed(network, ids, mask=None):
    return network(ids, mask)


def batch(vocabulary, tokens=150, seed=7):
    ids = np.random.default_rng(seed).integers(0, vocabulary, (2, tokens)).astype(np.int32)
    return ids, np.arange(tokens) < np.array([[tokens * 2 // 3], [tokens]])


def write(folder, name, embedding=BOTH[:1], **changes):
    case = CASES[name]
    state = encoder_state(case["shapes"], case["seed"])
    table = state.pop("shared.weight")
    return write_encoder(folder, case["config"] | changes, state | dict.fromkeys(embedding, table))


@pytest.mark.parametrize("name", CASES)
def test_embeddings_equal_the_recorded_reference(name, tmp_path):
    network = load_network(write(tmp_path / "text_encoder", name))
    ids, mask = batch(network.config.vocab_size)
    with np.load(GOLDENS / "t5.npz") as golden:
        assert relative_error(embed(network, ids)[:, ::10], golden[f"{name}/embeddings"]) <= 1e-5
        assert relative_error(embed(network, ids, mask)[:, ::10], golden[f"{name}/masked"]) <= 1e-5


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_what_is_masked_changes_no_other_embedding(name, tmp_path):
    network = load_network(write(tmp_path / "text_encoder", name))
    ids, mask = batch(network.config.vocab_size, 20)
    other = np.where(mask, ids, (ids + 1) % network.config.vocab_size)
    assert (other != ids).any()
    np.testing.assert_array_equal(embed(network, ids, mask)[mask], embed(network, other, mask)[mask])
    assert relative_error(embed(network, ids)[mask], embed(network, other)[mask]) > 1e-3


def test_the_embedding_table_is_found_under_either_of_its_names_or_both(tmp_path):
    ids, _ = batch(64, 8)
    made = [
        embed(load_network(write(tmp_path / str(i), "t5", names)), ids)
        for i, names in enumerate([BOTH[:1], BOTH[1:], BOTH, BOTH[::-1]])
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    with pytest.raises(CheckpointError, match=r"missing +shared\.weight \(64, 32\)"):
        load_network(write(tmp_path / "none", "t5", ()))


def test_the_other_family_s_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"extra +encoder\.block\.1\..*relative_attention_bias"):
        load_network(write(tmp_path / "a", "umt5", architectures=["T5EncoderModel"]))
    with pytest.raises(CheckpointError, match=r"missing +encoder\.block\.1\..*relative_attention_bias"):
        load_network(write(tmp_path / "b", "t5", architectures=["UMT5EncoderModel"]))


# ----------------------------------------------------------------------------------------------- configurations

PRESETS = {
    "t5_v1_1_xxl": (T5Encoder, T5Config.t5_v1_1_xxl(), 4_762_310_656),
    "t5_11b": (T5Encoder, T5Config.t5_11b(), 4_864_791_552),
    "umt5_xxl": (UMT5Encoder, UMT5Config.umt5_xxl(), 5_680_910_336),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    module, config, parameters = PRESETS[name]
    assert sum(leaf.size for leaf in jax.tree.leaves(Network.abstract(module, config).params)) == parameters


# The files as published, with all that they say of the decoder, of training and of generation.
PUBLISHED = {
    "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "classifier_dropout": 0.0, "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0,
    "is_encoder_decoder": True, "is_gated_act": True, "layer_norm_epsilon": 1e-06, "num_decoder_layers": 24,
    "num_heads": 64, "num_layers": 24, "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.2", "use_cache": True,
}  # fmt: skip


def test_published_configurations_are_the_presets():
    t5 = PUBLISHED | {"architectures": ["T5EncoderModel"], "model_type": "t5", "vocab_size": 32128}
    assert T5Config.from_dict(t5) == T5Config.t5_v1_1_xxl()
    umt5 = PUBLISHED | {"model_type": "umt5", "scalable_attention": True, "tokenizer_class": "T5Tokenizer"}
    assert UMT5Config.from_dict(umt5 | {"vocab_size": 256384}) == UMT5Config.umt5_xxl()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_modle": 4}, "unknown configuration key 'd_modle'=4; did you mean 'd_model'"),
        ({"feed_forward_proj": "gated-swiglu"}, "'gated-swiglu' is not supported; .*relu"),
        ({"dense_act_fn": "relu"}, "dense_act_fn='relu' contradicts 'gelu_new'"),
        ({"is_gated_act": False}, "is_gated_act=False contradicts True"),
        ({"is_decoder": True}, "is_decoder=True contradicts False"),
    ],
)
def test_a_configuration_that_would_compute_something_else_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        T5Config.from_dict(PUBLISHED | changes)


def test_distances_are_exact_when_small_then_logarithmic_and_tell_ahead_from_behind():
    buckets = relative_buckets(300, T5Config())
    ahead, behind = buckets[0], buckets[:, 0]
    np.testing.assert_array_equal(behind[:8], range(8))
    np.testing.assert_array_equal(ahead[1:], behind[1:] + 16)
    # 8 * 16^(k/8) for k = 2, 4, 6: a new bucket begins at exactly these distances
    for distance, bucket in ((16, 10), (32, 12), (64, 14)):
        assert behind[distance - 1 : distance + 1].tolist() == [bucket - 1, bucket]
    assert (behind[113:] == 15).all() and (np.diff(behind) >= 0).all()
    np.testing.assert_array_equal(buckets[5:, 5:], buckets[:-5, :-5])  # only the distance counts


def test_compile_time_does_not_grow_with_depth():
    def lines(layers):
        config = UMT5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_heads=2, num_layers=layers)
        network = Network.abstract(UMT5Encoder, config)
        ids = jax.ShapeDtypeStruct((1, 4), "int32")
        return len(jax.jit(lambda network, ids: network(ids)).lower(network, ids).as_text().splitlines())

    assert lines(30) == lines(2)
