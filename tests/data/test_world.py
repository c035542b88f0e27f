"""The generated world: what is hidden, what is matched, and that the label is in no single part."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.worlds import CATEGORIES, Quadruplet, WorldConfig, normalise, quadruplets, sample_batch
from jaxdiff.data.worlds.render import LAYERS
from jaxdiff.data.worlds.scene import COLOURS, sample_pair, sample_stage
from jaxdiff.errors import ConfigError

CONFIG = WorldConfig()
SCENES = 24


@pytest.fixture(scope="module")
def scenes() -> list[Quadruplet]:
    return list(quadruplets(CONFIG, 0, SCENES))


def part(quadruplet, before, after):
    """The clip that shows thing `before` and then thing `after`, as integers."""
    (index,) = [i for i in range(4) if tuple(quadruplet.parts[i]) == (before, after)]
    return quadruplet.frames.video[index].astype(np.int64)


def by_class(quadruplet):
    video = quadruplet.frames.video.astype(np.int64)
    return video[quadruplet.possible], video[~quadruplet.possible]


# --------------------------------------------------------------------------------------------------- matching


def test_a_quadruplet_is_two_possible_and_two_impossible_clips_in_varying_order(scenes):
    for q in scenes:
        assert q.possible.sum() == 2
        np.testing.assert_array_equal(q.possible, q.parts[:, 0] == q.parts[:, 1])
        assert sorted(map(tuple, q.parts)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # order carries no label: every position is possible about half the time (binomial, 72 scenes: 5 sigma is
    # .29)
    assert np.abs(np.mean([q.possible for q in scenes], 0) - 0.5).max() < 0.29


def test_matching_parts_are_bit_identical(scenes):
    s = CONFIG.switch
    for q in scenes:
        for thing in range(2):
            np.testing.assert_array_equal(part(q, thing, 0)[:s], part(q, thing, 1)[:s])
            np.testing.assert_array_equal(part(q, 0, thing)[s:], part(q, 1, thing)[s:])


def test_at_every_frame_both_classes_hold_the_same_pictures(scenes):
    """Hence no function of a single frame, linear or not, is better than chance."""
    for q in scenes:
        possible, impossible = by_class(q)
        for f in range(CONFIG.frames):
            assert sorted(p[f].tobytes() for p in possible) == sorted(p[f].tobytes() for p in impossible)


def test_sums_over_frames_of_any_feature_agree_between_the_classes(scenes):
    """Exactly, in integers: pixels, and random nonlinear features that differ from frame to frame."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-9, 10, (CONFIG.frames, CONFIG.size**2 * 3, 8))

    def features(clips):
        hidden = np.einsum("ntp,tpk->ntk", clips.reshape(len(clips), CONFIG.frames, -1), weights)
        return np.maximum(hidden, 0).sum(1)

    for q in scenes[::4]:
        possible, impossible = by_class(q)
        np.testing.assert_array_equal(possible.sum(0), impossible.sum(0))
        np.testing.assert_array_equal(features(possible).sum(0), features(impossible).sum(0))
        assert (features(possible)[0] != features(possible)[1]).any()  # the features do see the clips


def test_zero_is_the_optimum_of_a_logistic_fit_on_the_pixels(scenes):
    """The loss is convex, and its gradient at zero weights, sum of (1/2 - y) x, vanishes exactly: a linear
    probe has nothing to hold on to, whatever its penalty. A quadratic statistic of the same pixels does (the
    world is not empty)."""
    signs = np.concatenate([2 * q.possible.astype(np.int64) - 1 for q in scenes])
    pixels = np.concatenate([q.frames.video for q in scenes]).astype(np.int64).reshape(len(signs), -1)
    assert not (signs @ pixels).any()
    assert signs.sum() == 0
    t = CONFIG.switch

    def product(clips):  # inner product of a frame before with one after
        clips = clips.reshape(-1, CONFIG.frames, CONFIG.size**2 * 3)
        return (clips[:, t - 5] * clips[:, t + 4]).sum(1)

    gaps = [product(by_class(q)[0]).sum() - product(by_class(q)[1]).sum() for q in scenes if q.category != "O3"]
    assert np.mean(np.array(gaps) > 0) > 0.9


# ------------------------------------------------------------------------------------------- what can be seen


@pytest.mark.parametrize("config", [CONFIG, WorldConfig(size=48), WorldConfig(frames=9), WorldConfig(frames=13)])
def test_the_thing_is_hidden_around_the_switch_and_seen_long_before_and_after(config):
    assert config.switch % 4 == 1  # latent frames are {0}, {1..4}, {5..8}, ...
    hidden = list(config.hidden)
    assert config.switch - 1 in hidden
    assert config.switch in hidden
    for q in quadruplets(config, 3, 6):
        video, shown = q.frames.video, q.frames.visibility
        assert (video[:, hidden] == video[:1, hidden]).all()  # all four clips show the same: not a pixel peeks out
        assert not shown[:, hidden].any()
        for run in range(4):
            before, after = (bool(q.things[i].present) for i in q.parts[run])
            outer = (config.switch - 2) // 2  # 3 of 17 frames at either end
            # visibility is a quotient of two float32 sums over the frame
            np.testing.assert_allclose(shown[run, :outer], float(before), atol=1e-5)
            np.testing.assert_allclose(shown[run, -outer:], float(after), atol=1e-5)


def test_the_two_things_differ_visibly_before_and_after(scenes):
    """At least 20 pixels (2 % of the frame) by more than 40 levels, in every one of the outer frames."""
    for q in scenes:
        changed = (np.abs(part(q, 0, 0) - part(q, 1, 1)).max(-1) > 40).sum((1, 2))
        assert np.r_[changed[:4], changed[-3:]].min() >= 20, (q.category, q.scene, changed)


def test_a_pair_differs_in_what_its_category_is_about_and_in_nothing_else(scenes):
    changes = {"O1": {"present"}, "O2": {"shape", "colour"}, "O3": {"x", "speed", "y"}}
    for q in scenes:
        first, second = (dataclasses.asdict(t) for t in q.things)
        # Two draws of one program: the last bit of an equal number may differ.
        assert {k for k in first if not np.isclose(first[k], second[k], rtol=1e-6)} == changes[q.category]
    jumps = [np.abs(np.subtract(*(np.float64(t.y) for t in q.things))) for q in scenes if q.category == "O3"]
    assert min(jumps) >= CONFIG.jump - 1e-6  # float32 rounding of the circular shift


def test_shape_alone_changes_without_recolouring():
    for q in quadruplets(WorldConfig(recolour=0.0), 0, 8, ("O2",)):
        first, second = q.things
        assert first.colour == second.colour
        assert first.shape != second.shape


def test_ground_truth_agrees_with_the_pictures(scenes):
    x, y = np.meshgrid(*(2 * [(np.arange(CONFIG.size) + 0.5) / CONFIG.size]))
    body, screen = LAYERS.index("object"), LAYERS.index("screen")
    checked = 0
    for q in scenes:
        for run in range(4):
            masks, depth = q.frames.masks[run], q.frames.depth[run]
            for f, thing in ((0, q.things[q.parts[run, 0]]), (CONFIG.frames - 1, q.things[q.parts[run, 1]])):
                seen = masks[f] == body
                assert seen.any() == bool(thing.present)
                centre, r = q.frames.positions[run, f], float(thing.radius)
                inside = (np.abs(centre - 0.5) < 0.5 - r - 0.02).all()
                if thing.present and inside and thing.shape < 2:  # a triangle's centroid is not the centre of its box
                    # a square's edges snap to whole pixels, which moves its mean by up to half a pixel
                    np.testing.assert_allclose([x[seen].mean(), y[seen].mean()], centre, atol=0.5 / CONFIG.size)
                    checked += 1
                    if not q.stage.distractor.present:
                        assert depth[f][seen].max() < depth[f][masks[f] == LAYERS.index("wall")].min()
            for f in CONFIG.hidden:
                assert (masks[f] == screen).any()
                assert not (masks[f] == body).any()
                assert depth[f][masks[f] == screen].max() < 4000.0  # nearer than every thing
    assert checked > 50


# ---------------------------------------------------------------------------------------- seeds and marginals


def test_a_seed_determines_every_scene_whatever_is_drawn_beside_it(scenes):
    again = list(quadruplets(CONFIG, 0, 3, ("O2",)))
    for ours, theirs in zip([q for q in scenes if q.category == "O2"], again, strict=False):
        chex.assert_trees_all_equal(ours.frames, theirs.frames)
        np.testing.assert_array_equal(ours.parts, theirs.parts)
    (later,) = quadruplets(CONFIG, 0, 1, ("O2",), start=17)
    np.testing.assert_array_equal(later.frames.video, [q for q in scenes if q.category == "O2"][17].frames.video)
    (other,) = quadruplets(CONFIG, 1, 1, ("O2",))
    assert (other.frames.video != again[0].frames.video).any()


def test_training_clips_are_possible_and_their_control_pairs_at_random():
    draw = jax.jit(lambda key, structure: sample_batch(key, CONFIG, 256, structure), static_argnums=1)
    plausible, independent = (draw(jax.random.key(1), s) for s in ("plausible", "independent"))
    chex.assert_trees_all_equal(plausible.before, plausible.after)
    # Two programs: a colour halfway between two of the 256 may be rounded either way.
    before = [np.asarray(scenes.video[:, : CONFIG.switch], np.int16) for scenes in (plausible, independent)]
    assert np.abs(before[0] - before[1]).max() <= 1
    chex.assert_trees_all_equal(plausible.before, independent.before)
    same = np.mean(independent.before.colour == independent.after.colour)
    assert abs(same - 1 / 6) < 0.1  # 256 draws: 4 standard deviations
    assert abs(np.corrcoef(independent.before.y, independent.after.y)[0, 1]) < 0.25
    assert plausible.video.dtype == jnp.uint8
    assert plausible.video.shape == (256, 17, 32, 32, 3)
    assert np.abs(normalise(plausible.video)).max() <= 1.0
    np.testing.assert_array_equal(draw(jax.random.key(1), "plausible").video, plausible.video)


def test_a_plausible_clip_is_what_quadruplets_call_possible():
    """The after-part of the control is distributed as the after-part of the plausible clips."""
    draw = jax.jit(lambda key, structure: sample_batch(key, CONFIG, 2000, structure), static_argnums=1)
    plausible, independent = (
        draw(jax.random.key(2), "plausible").after,
        draw(jax.random.key(3), "independent").after,
    )
    for name in ("present", "colour", "shape", "radius", "x", "speed", "y", "hop"):
        a, b = (np.asarray(getattr(t, name), np.float64) for t in (plausible, independent))
        assert kolmogorov(a, b) < 1.95 * np.sqrt(2 / 2000), name  # the statistic's p = .001
    assert abs(np.mean(plausible.present) - 5 / 6) < 0.04


def test_either_thing_of_every_category_has_one_distribution():
    """Or a category could be read off a single part."""

    def draw(key, category):
        stage = sample_stage(key, CONFIG)
        return sample_pair(jax.random.fold_in(key, 1), CONFIG, stage, category)

    n = 3000
    drawn = {
        c: jax.jit(jax.vmap(draw, (0, None)))(jax.random.split(jax.random.key(i), n), i)
        for i, c in enumerate(CATEGORIES)
    }
    reference = drawn["O1"][0]
    for category, things in drawn.items():
        for thing in things:
            assert abs(np.mean(thing.present) - (0.5 if category == "O1" else 1.0)) < 0.04
            for name in ("colour", "shape", "radius", "x", "speed", "y", "hop", "period", "phase"):
                assert kolmogorov(getattr(thing, name), getattr(reference, name)) < 1.95 * np.sqrt(2 / n), (
                    category,
                    name,
                )
    assert np.bincount(np.asarray(drawn["O2"][1].colour), minlength=len(COLOURS)).min() > n / 6 * 0.8


def kolmogorov(a, b):
    """Largest distance between two empirical distribution functions."""
    a, b = np.sort(np.asarray(a, np.float64)), np.sort(np.asarray(b, np.float64))
    at = np.concatenate([a, b])
    return np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max()


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("frames", 16, r"frames=16.*4k\+1"),
        ("frames", 5, "at least 9"),
        ("size", 30, "multiple of 8"),
        ("radius", (0.2, 0.3), "radius"),
        ("hopping", 1.5, "hopping"),
        ("travel", 2.0, "travel"),
    ],
)
def test_a_world_that_cannot_be_made_is_refused(field, value, told):
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(CONFIG, **{field: value})


def test_a_jax_without_a_cpu_is_told_to_bring_one(monkeypatch):
    def no_cpu(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", no_cpu)
    with pytest.raises(ConfigError, match="JAX_PLATFORMS=cuda,cpu"):
        next(quadruplets(CONFIG, 0, 1))


def test_unknown_categories_and_structures_are_refused():
    with pytest.raises(ConfigError, match="O4"):
        quadruplets(CONFIG, 0, 1, ("O4",))
    with pytest.raises(ConfigError, match="shuffled"):
        sample_batch(jax.random.key(0), CONFIG, 2, "shuffled")
