"""From stored clips to what the probes see: order, definitions, controls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline, outline
from jaxdiff.store import ActivationStore
from jaxdiff.study import memory
from jaxdiff.study.config import StudyConfig
from jaxdiff.study.controls import untrained
from jaxdiff.study.features import Candidate, Features, kept_features, stored_features
from jaxdiff.study.inputs import _noised, pooled_inputs
from jaxdiff.study.memory import reading_bytes
from jaxdiff.study.models import folders, refuse_large_study
from jaxdiff.study.reading import Reading
from jaxdiff.study.study import whole_groups

LEVELS = [0.0, 0.5, 0.9]


@pytest.fixture(scope="module")
def pipeline():
    config = dataclasses.replace(
        WanTransformerConfig.nano(), num_layers=2, num_attention_heads=2, attention_head_dim=8, ffn_dim=16
    )
    return Pipeline(Network.init(WanTransformer, config, 0), Wan(), UniPCFlow(shift=1.0))


def test_candidates_name_the_block_and_slot_whose_values_they_hold(tmp_path):
    specs = {
        "block_out.mean": jax.ShapeDtypeStruct((2, 4), jnp.float32),
        "input.mean": jax.ShapeDtypeStruct((1, 4), jnp.float32),
    }
    store = ActivationStore.create(
        tmp_path / "store", clips=3, names=["a", "b", "c"], slots=3, specs=specs,
        rows={"block_out.mean": (3, 7), "input.mean": (0,)}, metadata={"sigmas": LEVELS},
    )  # fmt: skip
    # value = 100 slot + 10 row + clip, so that every cell tells where it came from
    arrays = {
        name: np.broadcast_to(
            (100 * np.arange(3)[:, None, None] + 10 * np.arange(s.shape[0])[:, None] + np.arange(3))[..., None],
            (3, s.shape[0], 3, 4),
        ).astype(np.float32)
        for name, s in specs.items()
    }
    with store:
        store.write(np.arange(3), arrays)
        store.finish(np.arange(3), [{}] * 3)
    features = stored_features(ActivationStore.open(tmp_path / "store"), [2, 0])
    assert features.arrays["block_out.mean"].shape == (6, 2, 4)
    row_of = {3: 0, 7: 1}
    for candidate, values in zip(features.candidates["block_out.mean"], features.arrays["block_out.mean"], strict=True):
        assert candidate.sigma == LEVELS[candidate.slot]
        expected = 100 * candidate.slot + 10 * row_of[candidate.block] + np.array([2, 0])
        np.testing.assert_array_equal(values, np.repeat(expected[:, None], 4, 1))
    assert features.candidates["input.mean"][1] == Candidate("input", "mean", -1, 1, 0.5)


def test_features_of_an_encoder_are_made_once_and_again_where_the_file_cannot_serve(tmp_path):
    path, made = tmp_path / "encoders/a.npz", []

    def make():
        made.append(0)
        place = (Candidate("block_out", "mean", 0, 0, 0.0), Candidate("output", "mean", 1, 0, 0.0))
        values = np.full((2, 3, 4), len(made), np.float32)
        return Features({"block_out.mean": values}, {"block_out.mean": place})

    first = kept_features(path, "key", make)
    again = kept_features(path, "key", make)
    assert len(made) == 1 and first.candidates == again.candidates
    np.testing.assert_array_equal(first.arrays["block_out.mean"], again.arrays["block_out.mean"])
    assert kept_features(path, "other clips", make).arrays["block_out.mean"][0, 0, 0] == 2
    path.write_bytes(path.read_bytes()[:100])
    assert kept_features(path, "other clips", make).arrays["block_out.mean"][0, 0, 0] == 3


def test_pooled_inputs_are_what_their_names_say():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)
    z = rng.standard_normal((2, 3, 4, 4, 6)).astype(np.float32)
    got = {k: np.asarray(v) for k, v in jax.jit(pooled_inputs)(video, z).items()}
    pixels = (video / 255.0).reshape(2, 5, 4, 2, 4, 2, 3).mean((3, 5)).reshape(2, -1)
    pairs = np.einsum("btijc,bsijc->bcts", z, z) / 16
    upper = np.triu_indices(3)
    expected = {
        "pixels.grid": pixels,
        "latents.mean": z.mean((1, 2, 3)),
        "latents.frame_mean": z.mean((2, 3)).reshape(2, -1),
        "latents.grid": z.reshape(2, -1),  # 4 x 4 positions are the grid itself
        "latents.frame_products": pairs[:, :, upper[0], upper[1]].reshape(2, -1),
    }
    assert set(got) == {*expected, "latents.moments"} and got["latents.moments"].shape == (2, 18)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=2e-6, err_msg=name)  # float32 sums of at most 48 terms


def test_noised_reading_and_surprise_equal_a_direct_computation(pipeline):
    latents = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 16))
    cond, key = Conditioning(text=jnp.zeros((1, 1, 16))), jax.random.key(5)
    taps = Reading(frames=5).tap_objects()
    captured, loss = _noised(pipeline, latents, cond, jnp.asarray(LEVELS, jnp.float32), key, taps=taps)
    noise = jax.random.normal(key, latents.shape[1:])
    for slot, sigma in enumerate(LEVELS):
        x = (1 - sigma) * latents + sigma * noise
        velocity, direct = pipeline.evaluate(x, sigma, cond, taps=taps)
        expected = jnp.mean((velocity - (noise - latents)) ** 2, axis=(1, 2, 3, 4))
        np.testing.assert_allclose(loss[slot], expected, rtol=1e-5)  # float32, fused otherwise
        for name, value in direct.items():
            np.testing.assert_allclose(captured[name][slot], value, atol=1e-5, rtol=1e-5)


def test_untrained_control_has_other_weights_and_open_gates(pipeline):
    control = untrained(pipeline, 7)
    fresh = Network.init(WanTransformer, pipeline.transformer.config, 7).params["blocks"]["modulation"]
    table = np.asarray(control.transformer.params["blocks"]["modulation"])
    gates, closed = (2, 5), (0, 1, 3, 4)
    np.testing.assert_allclose(table[:, gates], np.asarray(fresh)[:, gates] + 1.0, atol=1e-6)
    np.testing.assert_array_equal(table[:, closed], np.asarray(fresh)[:, closed])
    a, b = pipeline.transformer.params, control.transformer.params
    assert not np.array_equal(
        a["blocks"]["self_attention"]["query"]["kernel"], b["blocks"]["self_attention"]["query"]["kernel"]
    )
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)


def test_a_scene_with_one_missing_clip_is_dropped_whole(tmp_path):
    clips = [Clip(f"{g}/{i}", tmp_path, g, "O1", i < 2) for g in "abc" for i in range(4)]
    assert whole_groups(clips, set(range(12)) - {5}) == [0, 1, 2, 3, 8, 9, 10, 11]
    with pytest.raises(MissingDataError, match="no scene"):
        whole_groups(clips, {0, 1, 2})


@pytest.mark.parametrize(
    "taps, names", [((), "no taps"), (("blok_out.mean",), "block_out"), (("block_out.maen",), "mean")]
)
def test_a_wrong_tap_is_refused_and_the_right_one_named(taps, names):
    with pytest.raises(ConfigError, match=names):
        Reading(frames=5, taps=taps)


def test_every_pooling_of_block_outputs_also_reads_what_enters_the_first_block():
    taps = Reading(frames=5, taps=("block_out", "mlp_out.grid")).tap_objects()
    assert [(t.name, t.site, t.blocks) for t in taps] == [
        ("block_out.mean", "block_out", None), ("input.mean", "block_in", (0,)), ("mlp_out.grid", "mlp_out", None)
    ]  # fmt: skip


@pytest.mark.parametrize("sigmas", [(0.5,), (0.5, 0.0), (0.0, 0.5, 0.5)])
def test_a_study_refuses_levels_without_zero_or_out_of_order(sigmas):
    with pytest.raises(ConfigError, match="capture_sigmas"):
        StudyConfig("nano", capture_sigmas=sigmas)


def test_a_study_that_does_not_fit_into_memory_is_refused_before_its_model_is_loaded(monkeypatch):
    config = StudyConfig(
        "nano", "nano", frames=17, size=32, steps=20, time_budget=60.0, scenes=200, error_steps=0,
        taps=("block_out.mean", "block_out.grid"), controls=("untrained", "noised", "gaussian"),
    )  # fmt: skip
    clips, slots = 12 * 200, 10
    found = reading_bytes(outline(folders(config)["trained"]), config.reading(), (17, 32, 32, 3), clips, slots)
    mean = clips * slots * 128 * 4
    grid = 5 * 16 * mean  # five latent frames of 4 x 4 cells
    assert found == {
        "block_out.mean": 5 * mean, "block_out.grid": 5 * grid, "input.mean": mean, "input.grid": grid
    }  # fmt: skip
    readings = 5  # trained, structureless, untrained, noised, gaussian
    needed = int(readings * sum(found.values()) / memory.SHARE)
    monkeypatch.setattr(memory, "memory", lambda: needed)
    refuse_large_study(config, None)
    monkeypatch.setattr(memory, "memory", lambda: needed - 10)
    told = r"2400 clips would take 29\.\d GB.*5 readings \(trained, structureless, untrained, noised, gaussian\).*block_out\.grid 4\.\d GB.*--taps"
    with pytest.raises(ConfigError, match=told):
        refuse_large_study(config, None)
