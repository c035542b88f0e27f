"""What is probed: reads by site, controls with as much to choose from, and where it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.store import ActivationStore
from jaxdiff.study import levels, sources
from jaxdiff.study.features import Candidate, Features
from jaxdiff.study.reading import Reading, frame_order
from tests.study import fake

CLIPS = fake.clips(6)
SHAPES = {"block_out.mean": 4, "mlp_out.mean": 4, "self_attention_map.frame_map": 9, "input.mean": 4}


def store(folder, seed):
    """A finished store of three sites of two blocks, and of the input, at two levels."""
    rng = np.random.default_rng(seed)
    rows = {name: (0,) if name == "input.mean" else (0, 1) for name in SHAPES}
    specs = {name: jax.ShapeDtypeStruct((len(rows[name]), d), jnp.float32) for name, d in SHAPES.items()}
    made = ActivationStore.create(
        folder, clips=len(CLIPS), names=[clip.name for clip in CLIPS], slots=2, specs=specs, rows=rows,
        metadata={"sigmas": list(fake.SIGMAS)},
    )  # fmt: skip
    with made:
        ids = np.arange(len(CLIPS))
        shapes = {n: (2, s.shape[0], len(CLIPS), s.shape[1]) for n, s in specs.items()}
        made.write(ids, {n: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()})
        made.finish(ids, [{}] * len(CLIPS))
    return ActivationStore.open(folder)


def encoder(*sites):
    """Features of an encoder that was read, averaged over tokens, at these sites."""
    rng = np.random.default_rng(9)
    arrays = {f"{site}.mean": rng.standard_normal((1, len(CLIPS), 5), np.float32) for site in sites}
    return Features(arrays, {name: (Candidate(name[:-5], "mean", 0, 0, 0.0),) for name in arrays})


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    names = ("trained", "untrained", "noised", "shuffled_frames", "reversed", "prompt")
    stores = {name: store(folder / name, k) for k, name in enumerate(names)}
    tables = (
        "pixels.grid", "latents.mean", "latents.frame_mean", "latents.grid", "latents.moments", "latents.frame_products",
        "latents.semantic_moments", "frame_bag.mean", "flow.pairs", "flow.mean", "difference.pairs", "difference.mean",
    )  # fmt: skip
    table = {name: rng.standard_normal((len(CLIPS), 6), np.float32) for name in sorted(tables)}
    return sources.make_sources(
        {name: stores[name] for name in names[:2]}, {"trained": stores["noised"]}, table, range(len(CLIPS)),
        variants={name: stores[name] for name in names[3:]}, controls=tuple(sources.CONTROLS), told="a ball",
        encoders={"vitl-1.5": encoder("block_out", "input"), "resnet": encoder("stage4", "stage1")},
    )  # fmt: skip


def test_every_site_is_a_row_and_controls_have_the_same_sites(everything):
    kinds = {source.key: source.kind for source in everything if source.listed}
    assert [key for key, kind in kinds.items() if kind == "states"] == ["states", "mlp", "attention_maps"]
    nulls = {
        "untrained", "untrained.mlp", "untrained.attention_maps", "shuffled", "pixels", "latents", "projections",
        "gaussian", "frame_bag", "encoder_resnet",
    }  # fmt: skip
    assert {key for key, kind in kinds.items() if kind == "null"} == nulls
    others = {"products", "semantic_moments", "input", "noised", "shuffled_frames", "reversed", "prompt"}
    assert {key for key, kind in kinds.items() if kind == "comparison"} == others
    assert {key for key, kind in kinds.items() if kind == "baseline"} == {"flow", "difference", "encoder_vitl-1_5"}
    for source in everything:
        sites = {name.partition(".")[0] for name in source.features.arrays}
        assert len(sites) == 1 or source.key == "encoder_resnet", source.key
    by_key = {source.key: source for source in everything}
    assert [*by_key["attention_maps"].features.arrays] == ["self_attention_map.frame_map"]
    assert [*by_key["shuffled_frames"].features.arrays] == ["block_out.mean"]
    assert [*by_key["encoder_vitl-1_5"].features.arrays] == ["block_out.mean"]  # and not what enters it
    assert [*by_key["encoder_resnet"].features.arrays] == ["stage4.mean", "stage1.mean"]
    assert by_key["prompt"].note == "a ball"
    assert not np.array_equal(*(by_key[k].features.arrays["block_out.mean"] for k in ("states", "reversed")))


def test_controls_have_as_many_cells_to_choose_from_as_the_states(everything):
    by_key = {source.key: source.features for source in everything}
    (states,) = by_key["states"].arrays.values()
    (projections,) = by_key["projections"].arrays.values()
    (gaussian,) = by_key["gaussian"].arrays.values()
    assert projections.shape == gaussian.shape == states.shape == (4, len(CLIPS), 4)
    assert len({row.tobytes() for row in projections}) == 4  # other seeds, other projections
    for features in by_key.values():
        assert all(len(features.candidates[name]) == len(array) for name, array in features.arrays.items())


def test_without_block_outputs_the_first_site_that_was_read_is_the_states(everything):
    (states,) = [source.features for source in everything if source.key == "states"]
    others = {source.key: source.features for source in everything if source.key in ("mlp", "attention_maps")}
    arrays = {name: array for features in others.values() for name, array in features.arrays.items()}
    places = {name: p for features in others.values() for name, p in features.candidates.items()}
    found = sources.read_sources(type(states)(arrays, places), "states", "s", "states", "trained")
    assert [(source.key, [*source.features.arrays]) for source in found] == [
        ("states", ["mlp_out.mean"]), ("attention_maps", ["self_attention_map.frame_map"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names, message",
    [(("untraind",), "untraind"), (("noised", "noised"), "twice"), (("all", "noised"), "'all'")],
)
def test_unknown_controls_are_refused(names, message):
    with pytest.raises(ConfigError, match=message):
        sources.chosen_controls(names)


def test_all_controls_are_all_of_them():
    assert sources.chosen_controls(("all",)) == tuple(sources.CONTROLS)
    assert sources.pools(()) == () and len(sources.pools(tuple(sources.CONTROLS))) == 2


def test_shuffled_frames_are_in_one_order_a_scene_and_another_in_the_next():
    video = np.arange(17)[:, None, None, None]
    shuffled = Reading(frames=17, order="shuffled", order_seed=3)
    orders = [shuffled.ordered(clip, video).ravel() for clip in CLIPS]
    for clip, order in zip(CLIPS, orders, strict=True):
        assert sorted(order) == list(range(17))
        for other, also in zip(CLIPS, orders, strict=True):
            assert np.array_equal(order, also) == (clip.group == other.group)
    again = frame_order("shuffled", 17, CLIPS[0].group, 3)
    np.testing.assert_array_equal(orders[0], again)
    assert not np.array_equal(again, frame_order("shuffled", 17, CLIPS[0].group, 4))
    assert Reading(frames=17, order="reversed").ordered(CLIPS[0], video).ravel().tolist() == list(range(16, -1, -1))
    assert Reading(frames=17).ordered(CLIPS[0], video) is video
    with pytest.raises(ConfigError, match="backwards"):
        Reading(frames=17, order="backwards")


def test_levels_of_a_log_snr_are_those_of_its_definition():
    found = np.array([levels.sigma_at(value) for value in (-12.0, -2.0, 0.0, 3.0)])
    np.testing.assert_allclose(2 * np.log((1 - found) / found), (-12.0, -2.0, 0.0, 3.0), rtol=1e-9, atol=1e-12)
    assert levels.sigma_at(np.inf) == 0.0
    # A variance-preserving state of the same ratio: a^2 + b^2 = 1, log(a^2 / b^2) = 3.
    b = 1 / np.sqrt(1 + np.exp(3.0))
    assert found[3] == pytest.approx(b / (np.sqrt(1 - b * b) + b))


def test_a_study_says_once_where_it_reads():
    at = levels.captures(100, None, ("published",), None, (0.0,))
    assert at == (None, (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99))
    assert levels.captures(20, None, ("0", "7"), None, ()) == (None, (0, 7))
    assert levels.captures(20, None, None, (0.0, 6.0), ()) == ((0.0, levels.sigma_at(6.0), 0.5), None)
    assert levels.captures(20, None, None, None, (0.0, 0.3)) == ((0.0, 0.3), None)
    with pytest.raises(ConfigError, match="--capture_sigmas and --capture_at"):
        levels.captures(20, (0.0,), ("0",), None, ())
    with pytest.raises(ConfigError, match="half"):
        levels.captures(20, None, ("0", "half"), None, ())
