"""The CogVideoX transformers against recorded outputs of diffusers, through a checkpoint folder and the real loader.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_cogvideox`.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Conditioning, Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.cogvideox.transformer import Attention, CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.taps import MAP_SITE, Reader
from ports.folder import load_pipeline
from tests.reference import COGVIDEOX_SCHEDULER, cogvideox_inputs, random_state, relative_error, write_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "cogvideox.json").read_text())
SITES = ("self_attention_out", "mlp_out", "block_out")


def folder_of(name, path):
    described = CASES[name]
    config = described["config"]
    image = config["in_channels"] != config["out_channels"]
    return write_folder(
        path,
        pipeline="CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline",
        scheduler=COGVIDEOX_SCHEDULER,
        transformer=(config, random_state(described["shapes"], described["seed"])),
    )


def conditioned(name):
    """Latents, timesteps and `Conditioning` of a case."""
    config = CASES[name]["config"]
    given = cogvideox_inputs(config, CASES[name]["grid"])
    channels = config["out_channels"]
    image = given.latents[..., channels:]
    cond = Conditioning(
        text=given.text,
        image_latents=image if image.shape[-1] else None,
        extra={"ofs": given.ofs} if config["ofs_embed_dim"] else None,
    )
    return given.latents[..., :channels], given.timestep, cond


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(pipeline, its inputs, what diffusers said)."""
    folder = folder_of(request.param, tmp_path_factory.mktemp("cogvideox") / "m")
    with np.load(GOLDENS / "cogvideox.npz") as file:
        golden = {key.split("/")[1]: file[key] for key in file.files if key.startswith(f"{request.param}/")}
    return jaxdiff.load(folder), conditioned(request.param), golden


@pytest.fixture(scope="module")
def text_to_video(tmp_path_factory):
    return jaxdiff.load(folder_of("2b", tmp_path_factory.mktemp("t2v") / "m"))


@pytest.fixture(scope="module")
def image_to_video(tmp_path_factory):
    return jaxdiff.load(folder_of("1.5_5b_i2v", tmp_path_factory.mktemp("i2v") / "m"))


@jax.jit
def evaluate(pipeline, latents, timestep, cond):
    taps = tuple(Tap(site) for site in SITES)
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, cond, taps=taps)


def test_output_and_every_site_of_every_block_equal_the_recorded_ones_of_diffusers(case):
    pipeline, batch, golden = case
    output, captured = evaluate(pipeline, *batch)
    # Two correct float32 runs differ by a few 1e-7 of the largest value; the bar for a port is 1e-4.
    assert relative_error(output, golden["output"]) <= 1e-5
    for site in SITES:
        for ours, recorded in zip(captured[f"{site}.mean"].mean(1), golden[site], strict=True):
            assert relative_error(ours, recorded) <= 1e-5


def test_a_batch_row_does_not_depend_on_the_others(text_to_video):
    latents, timestep, cond = conditioned("2b")
    changed = dataclasses.replace(cond, text=np.stack([cond.text[0], np.zeros_like(cond.text[1])]))
    both = text_to_video.denoise(latents, timestep, cond)
    other = text_to_video.denoise(np.stack([latents[0], latents[0]]), timestep, changed)
    np.testing.assert_array_equal(both[0], other[0])


def test_ofs_is_two_unless_told_otherwise_and_matters(image_to_video):
    latents, timestep, cond = conditioned("1.5_5b_i2v")

    def output(extra):
        return np.asarray(image_to_video.denoise(latents, timestep, dataclasses.replace(cond, extra=extra)))

    np.testing.assert_array_equal(output(None), output({"ofs": 2.0}))
    assert relative_error(output({"ofs": np.array([2.0, 3.0])})[1], output(None)[1]) > 1e-4


def test_the_frame_map_is_a_softmax_over_the_keys_of_the_video():
    config = dataclasses.replace(SMALL, use_rotary_positional_embeddings=True)
    attention = Network.init(Attention, config, 0)
    x = jax.random.normal(jax.random.key(0), (2, 5 + 3 * 4, config.width))
    rope = np.random.default_rng(0).standard_normal((17, 8)).astype(np.float32)
    rope = np.cos(rope), np.sin(rope)

    @jax.jit
    def run(attention, x):
        module = attention.bind()
        q, k = (
            (norm(linear(x).reshape(2, 17, 2, 16)).reshape(2, 17, 2, 8, 2))
            for norm, linear in ((module.query_norm, module.query), (module.key_norm, module.key))
        )
        q, k = (y[..., 0] + 1j * y[..., 1] for y in (q, k))
        q, k = (y * (rope[0] + 1j * rope[1])[:, None] for y in (q, k))
        scores = jnp.einsum("bqkd,bskd->bkqs", q, k.conj(), precision="highest").real / 4
        reading, bare = (
            Reader(taps, (), layers=1, grid=(3, 2, 2)).block({}) for taps in ((Tap(MAP_SITE, name="map"),), ())
        )
        return module(x, rope, 5, reading), reading.readings["map"], module(x, rope, 5, bare), scores

    out, frame_map, plain, scores = run(attention, x)
    np.testing.assert_allclose(out, plain, atol=1e-6)  # the sums over keys are formed in another order
    weights = np.asarray(jax.nn.softmax(scores[:, :, 5:, 5:], -1))
    assert relative_error(frame_map, weights.reshape(2, 2, 3, 4, 3, 4).sum(-1).mean(3)) <= 1e-5
    np.testing.assert_allclose(frame_map.sum(-1), 1, rtol=1e-6)


def test_taps_and_edits_see_the_tokens_of_the_video(text_to_video):
    latents, timestep, cond = conditioned("2b")
    shapes = []

    def double(h, key, sigma):
        shapes.append(h.shape)
        return 2 * h

    def run(*edits):
        taps = (Tap("block_in", lambda x, grid: x, blocks=(1,), name="x"), Tap("self_attention_map"))
        return text_to_video.family.denoise(
            text_to_video.transformer, latents, timestep, cond, taps=taps, edits=edits, sigma=0.5
        )

    output, captured = run()
    tokens = 3 * 4 * 6
    assert captured["x"].shape == (1, 2, tokens, 48)
    assert captured["self_attention_map.frame_map"].shape == (2, 2, 3, 3, 3)
    edited, again = run(Edit("block_in", (1,), double))
    assert set(shapes) == {(2, tokens, 48)}
    assert relative_error(again["x"], 2 * captured["x"]) <= 1e-6
    assert relative_error(edited, output) > 1e-3


def test_shapes_of_captures_are_known_without_the_image(image_to_video):
    latents, _, cond = conditioned("1.5_5b_i2v")
    taps = (Tap("block_out"),)
    assert image_to_video.tap_shapes(taps, latents.shape, cond)["block_out.mean"].shape == (2, 2, 32)
    assert image_to_video.tap_shapes(taps, latents.shape) == image_to_video.tap_shapes(taps, latents.shape, cond)


def test_bfloat16_keeps_norms_and_time_in_float32(tmp_path):
    pipeline = load_pipeline(folder_of("5b_i2v", tmp_path / "m"), dtype=jnp.bfloat16)
    params = pipeline.transformer.params
    kept = {"/".join(str(key.key) for key in path) for path, leaf in jax.tree.leaves_with_path(params)
            if leaf.dtype == jnp.float32}  # fmt: skip
    assert {name for name in kept if "norm" not in name} == {
        *(f"time_embedding/{half}/{leaf}" for half in ("into", "out") for leaf in ("kernel", "bias")),
        "positions",
    }
    assert {"video_norm/scale", "blocks/attention/query_norm/bias", "blocks/mlp_modulation/norm/scale"} <= kept


# -------------------------------------------------------------------------------------- configurations and refusals

SMALL = CogVideoXTransformerConfig(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12,
    num_layers=2, sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=6,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters", "positions"),
    [
        (CogVideoXTransformerConfig.cogvideox_2b(), 1_693_783_872, 0),
        (CogVideoXTransformerConfig.cogvideox_5b(), 5_570_283_072, 0),
        (CogVideoXTransformerConfig.cogvideox_5b_i2v(), 5_570_479_680, 17_776),  # the table is no parameter there
        (CogVideoXTransformerConfig.cogvideox1_5_5b(), 5_570_676_352, 0),
        (CogVideoXTransformerConfig.cogvideox1_5_5b_i2v(), 5_571_594_880, 0),
    ],
    ids=["2b", "5b", "5b_i2v", "1.5_5b", "1.5_5b_i2v"],
)
def test_presets_have_the_published_number_of_parameters(config, parameters, positions):
    params = dict(Network.abstract(CogVideoXTransformer, config, jnp.bfloat16).params)
    table = params.pop("positions", None)
    assert (0 if table is None else table.shape[0]) == positions
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size_tt": 2}, "did you mean 'patch_size_t'"),
        ({"activation_fn": "gelu"}, "activation_fn='gelu' is not supported, only 'gelu-approximate'"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos=False is not supported"),
        ({"ofs_embed_dim": 256}, "ofs_embed_dim=256 is added to the time embedding"),
        ({"use_learned_positional_embeddings": True}, "learned positions without rotary ones"),
        ({"attention_head_dim": 24, "num_attention_heads": 1}, "=24 must be a multiple of 16"),
        ({"attention_head_dim": 24, "use_rotary_positional_embeddings": True}, "attention_head_dim=24"),
        ({"in_channels": 8}, "in_channels=8 hold the latents' out_channels=16"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        CogVideoXTransformerConfig.from_dict(values)


ROTARY = dataclasses.replace(SMALL, use_rotary_positional_embeddings=True)
LEARNED = dataclasses.replace(ROTARY, use_learned_positional_embeddings=True)
LATER = dataclasses.replace(ROTARY, patch_size_t=2)
IMAGE = dataclasses.replace(SMALL, in_channels=8)
TEXT = np.zeros((1, 6, 12), np.float32)


@pytest.mark.parametrize(
    ("config", "shape", "cond", "message"),
    [
        (SMALL, (2, 3, 8, 12, 5), {}, "latents must be \\[B, T', H', W', 4\\]"),
        (SMALL, (2, 3, 7, 12, 4), {}, "multiples of the patch size \\(1, 2, 2\\); choose another video size"),
        (LATER, (2, 3, 8, 12, 4), {}, "patch size \\(2, 2, 2\\); repeat the first latent frame in front"),
        (LATER, (2, 4, 10, 12, 4), {}, "at most \\(8, 12\\) latent rows and columns"),
        (LEARNED, (2, 2, 8, 12, 4), {}, "learned positions for latents of T', H', W' = \\(3, 8, 12\\)"),
        (LEARNED, (2, 3, 8, 12, 4), {"text": TEXT[:, :5]}, "6 text tokens, and for no other size"),
        (SMALL, (2, 3, 8, 12, 4), {"text": TEXT[..., :3]}, "text embeddings must be \\[2 or 1, N, 12\\]"),
        (SMALL, (2, 3, 8, 12, 4), {"text": np.zeros((3, 6, 12))}, "text embeddings must be"),
        (SMALL, (2, 3, 8, 12, 4), {"fps": 8.0}, "Conditioning.fps is set, but CogVideoX text-to-video uses only text"),
        (SMALL, (2, 3, 8, 12, 4), {"extra": {"ofs": 2.0}}, "Conditioning.extra is set"),
        (IMAGE, (2, 3, 8, 12, 4), {}, "give Conditioning.image_latents"),
        (IMAGE, (2, 3, 8, 12, 4), {"image_latents": np.zeros((2, 1, 8, 12, 4))}, "image_latents must be \\[2, 3, 8"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(config, shape, cond, message):
    family = CogVideoX(image_to_video=config is IMAGE)
    with pytest.raises(ConfigError, match=message):
        family.validate(Network(CogVideoXTransformer, config, {}), shape, Conditioning(**{"text": TEXT, **cond}))


def test_ofs_is_refused_in_other_shapes_and_under_other_names():
    network = Network(CogVideoXTransformer, dataclasses.replace(IMAGE, ofs_embed_dim=8), {})
    shape, family = (2, 3, 8, 12, 4), CogVideoX(image_to_video=True)
    image = np.zeros(shape)
    for extra, message in (({"off": 1.0}, "may hold 'ofs', got off"), ({"ofs": np.ones(3)}, "one a clip, \\[2\\]")):
        with pytest.raises(ConfigError, match=message):
            family.validate(network, shape, Conditioning(text=TEXT, image_latents=image, extra=extra))


def test_a_pipeline_of_the_other_kind_is_refused():
    for config, image_to_video in ((SMALL, True), (IMAGE, False)):
        with pytest.raises(ConfigError, match="does not go with a transformer of in_channels"):
            CogVideoX(image_to_video).validate(
                Network(CogVideoXTransformer, config, {}), (2, 3, 8, 12, 4), Conditioning(text=TEXT)
            )
