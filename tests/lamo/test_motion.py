"""Latent motion, the drift loss and the motion field, on clips whose motion is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.lamo import (
    DriftLoss,
    FieldLoss,
    MotionField,
    MotionFieldConfig,
    MotionGuidance,
    differences,
    macro_drift,
    predicted_clean,
    regular_pairs,
    signal_share,
)
from jaxdiff.models.network import Network

SPEED = 0.5  # positions a frame
TINY = MotionFieldConfig(channels=3, text_dim=5, width=8, blocks=2, groups=2, condition_width=6, squeeze=2)


def blob(frames=6, size=16, channels=3, speed=SPEED, brightening=0.1):
    """Gaussian blobs that translate, and grow brighter: [1, T, H, W, C]; their mean rises by a known amount."""
    rows, columns = np.mgrid[:size, :size]
    clip = [
        (1.0 + brightening * t) * np.exp(-((rows - 7.5) ** 2 + (columns - 5.0 - speed * t) ** 2) / (2 * 1.5**2))
        for t in range(frames)
    ]
    return np.stack([np.stack(clip) * (c + 1) for c in range(channels)], -1)[None].astype(np.float32)


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_a_translating_blob_has_the_field_of_its_gradient_and_a_brighter_one_drifts(lag):
    still = blob(brightening=0.0, speed=0.02)
    change = np.asarray(differences(still, lag))[0, 0, ..., 0]
    gradient = np.gradient(still[0, 0, ..., 0], axis=1)
    assert np.corrcoef(change.ravel(), -gradient.ravel())[0, 1] > 0.99  # df = -speed df/dx
    np.testing.assert_allclose(macro_drift(still, lag), 0.0, atol=1e-5)  # it only moves
    mass = 2 * np.pi * 1.5**2 / 16**2
    expected = lag * 0.1 * mass * np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(macro_drift(blob(), lag)[0, 0], expected, rtol=2e-3)


def test_only_the_first_pair_holds_the_first_latent_frame():
    assert regular_pairs(6, 2).tolist() == [False, True, True, True]


@pytest.mark.parametrize("loss", [DriftLoss(), DriftLoss(per_position=True), DriftLoss(normalised=False, lag=1)])
def test_the_drift_loss_is_zero_at_the_truth_and_its_gradient_is_that_of_finite_differences(loss):
    clean = blob()
    predicted = clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    np.testing.assert_allclose(loss.per_clip(clean, clean), 0.0, atol=1e-12)
    assert float(loss.per_clip(predicted, clean)[0]) > 0
    direction = np.random.default_rng(1).standard_normal(clean.shape).astype(np.float32)
    slope = jax.jvp(lambda x: loss.per_clip(x, clean)[0], (predicted,), (direction,))[1]
    step = 1e-2  # the loss is quadratic: a central difference has no error but rounding
    ends = [float(loss.per_clip(predicted + s * step * direction, clean)[0]) for s in (1.0, -1.0)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=2e-3)


def drift_loss_float64(predicted, clean, lag, per_position, normalised, floor=1e-6):
    """The definition, in NumPy."""
    found, true = predicted[lag:] - predicted[:-lag], clean[lag:] - clean[:-lag]
    if not per_position:
        found, true = found.mean((1, 2)), true.mean((1, 2))
    error, size = ((x**2).sum(-1) for x in (found - true, true))
    return (error / (size + floor) if normalised else error).mean()


@pytest.mark.parametrize("loss", [DriftLoss(), DriftLoss(per_position=True), DriftLoss(normalised=False, lag=1)])
def test_value_and_gradient_are_those_of_the_definition_in_float64(loss):
    rng = np.random.default_rng(2)
    clean = blob().astype(np.float64)
    predicted = clean + 0.1 * rng.standard_normal(clean.shape)
    numbers = loss.lag, loss.per_position, loss.normalised
    value, gradient = jax.value_and_grad(lambda x: loss.per_clip(x, clean)[0])(predicted.astype(np.float32))
    np.testing.assert_allclose(value, drift_loss_float64(predicted[0], clean[0], *numbers), rtol=1e-4)
    step = 1e-4 * rng.standard_normal(clean.shape)
    ends = [drift_loss_float64(predicted[0] + sign * step[0], clean[0], *numbers) for sign in (1, -1)]
    np.testing.assert_allclose(np.sum(np.asarray(gradient, np.float64) * step), (ends[0] - ends[1]) / 2, rtol=1e-3)


def test_the_normalised_loss_does_not_depend_on_scale_and_the_raw_one_does():
    clean = blob()
    predicted = clean * np.linspace(1.0, 1.3, 6, dtype=np.float32)[None, :, None, None, None]
    small, raw = DriftLoss(floor=1e-12), DriftLoss(normalised=False)
    np.testing.assert_allclose(
        small.per_clip(7.0 * predicted, 7.0 * clean), small.per_clip(predicted, clean), rtol=1e-4
    )
    np.testing.assert_allclose(
        raw.per_clip(7.0 * predicted, 7.0 * clean), 49.0 * raw.per_clip(predicted, clean), rtol=1e-4
    )


def test_noise_weighs_the_loss_as_alpha_bar_does_and_truth_gets_no_gradient():
    sigma = np.array([0.0, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(signal_share(sigma), [1.0, 0.5, 0.0], atol=1e-7)
    alpha_bar = 0.3  # of a variance-preserving model; its state scaled to flow coordinates
    flow = np.sqrt(1 - alpha_bar) / (np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar))
    np.testing.assert_allclose(signal_share(flow), alpha_bar, rtol=1e-6)
    clean = np.concatenate([blob(), 2 * blob(), blob()])
    predicted = clean * 1.2
    loss = DriftLoss(weight=0.4)
    expected = 0.4 * np.mean(np.array([1.0, 0.5, 0.0]) * np.asarray(loss.per_clip(predicted, clean)))
    np.testing.assert_allclose(loss(predicted, clean, sigma), expected, rtol=1e-5)
    assert not np.any(jax.grad(lambda z: loss(predicted, z, sigma))(clean))


def test_skipping_the_first_pair_changes_what_only_it_holds():
    clean, other = blob(), blob()
    other[:, 0] += 1.0
    whole, rest = DriftLoss(), DriftLoss(skip_first=True)
    assert float(whole.per_clip(other, clean)[0]) > 1e-3
    np.testing.assert_allclose(rest.per_clip(other, clean), 0.0, atol=1e-12)
    with pytest.raises(ConfigError, match="no pair but the first"):
        rest.per_clip(clean[:, :3], clean[:, :3])


def test_too_few_frames_and_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="at least 3 are needed"):
        differences(blob(frames=2))
    with pytest.raises(ConfigError, match="lag=0"):
        differences(blob(), 0)
    with pytest.raises(ConfigError, match="must be positive"):
        DriftLoss(floor=0.0)
    with pytest.raises(ConfigError, match="space='eps'"):
        MotionGuidance(Network.abstract(MotionField, TINY), space="eps")


@pytest.fixture(scope="module")
def network():
    """A motion field with every weight random."""
    made = Network.init(MotionField, TINY, 0)
    leaves, tree = jax.tree.flatten(made.params)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return made.replace(jax.tree.unflatten(tree, drawn))


def texts(seed=0, batch=1):
    return np.random.default_rng(seed).standard_normal((batch, 4, 5)).astype(np.float32)


def test_a_new_field_expects_no_motion_and_the_full_size_has_about_ten_million_parameters():
    assert not np.any(Network.init(MotionField, TINY, 0)(blob(), texts()))
    full = Network.abstract(MotionField, MotionFieldConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(full.params)) == 11_759_120


def test_a_field_sees_each_frame_alone_and_hears_the_prompt(network):
    clip, other = blob(), blob()
    other[:, 3] += 1.0
    field = np.asarray(network(clip, texts()))
    changed = np.abs(np.asarray(network(other, texts())) - field).max((0, 2, 3, 4)) > 1e-4
    assert changed.tolist() == [False, False, False, True, False, False]
    assert np.abs(np.asarray(network(clip, texts(1))) - field).max() > 1e-3
    silent = np.asarray(network(clip, texts(), None, np.array([False])))
    np.testing.assert_allclose(silent, network(clip), atol=1e-6)
    assert np.abs(silent - field).max() > 1e-3


def test_masked_tokens_are_not_heard(network):
    text, mask = texts(), np.array([[True, True, False, False]])
    other = text.copy()
    other[:, 2:] = 9.0
    np.testing.assert_array_equal(network(blob(), text, mask), network(blob(), other, mask))


def test_the_field_loss_is_what_its_definition_says(network):
    clip = blob()
    loss = FieldLoss(noise_share=0.0, prompt_dropout=0.0)
    value, parts = loss(network, jnp.asarray(clip), texts(), None, jax.random.key(0))
    found, true = np.asarray(network(clip[:, :-2], texts())), clip[:, 2:] - clip[:, :-2]
    norms = [np.maximum(np.linalg.norm(x, axis=-1), 1e-3) for x in (found, true)]  # where nothing moves: 0, not noise
    cosine = np.sum(found * true, -1) / (norms[0] * norms[1])
    np.testing.assert_allclose(parts["mse"], np.mean((found - true) ** 2), rtol=1e-5)
    np.testing.assert_allclose(parts["cosine"], cosine.mean(), atol=1e-4)
    np.testing.assert_allclose(value, parts["mse"] + 0.5 * (1.0 - parts["cosine"]), rtol=1e-6)


@pytest.mark.parametrize("space", ["noise", "velocity"])
def test_a_guidance_step_moves_the_clean_latent_down_its_own_energy_by_the_stated_amount(network, space):
    cond, clean = Conditioning(text=texts()), blob()
    noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    sigma, scale = 0.4, 1e-3
    x, velocity = (1 - sigma) * clean + sigma * noise, noise - clean
    guide = MotionGuidance(network, scale, space)
    guided, told = guide(x, velocity, jnp.float32(sigma), jnp.float32(0.5), cond)
    before, after = (predicted_clean(x, v, sigma) for v in (velocity, guided))
    gradient = jax.grad(lambda z: guide.energy(z, cond).sum())(before)
    factor = (sigma / (1 - sigma)) ** 2 if space == "noise" else sigma**2
    if space == "noise":  # and the noise prediction moves by the gradient with respect to itself
        noises = [x + (1 - sigma) * v for v in (velocity, guided)]
        np.testing.assert_allclose(noises[1] - noises[0], scale * sigma / (1 - sigma) * gradient, atol=1e-5)
        np.testing.assert_allclose(after, before - scale * factor * gradient, atol=1e-5)
    else:
        np.testing.assert_allclose(after, before - scale * factor * gradient, atol=1e-5)
    assert float(guide.energy(after, cond)[0]) < float(told["energy"][0])
    change = np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2))
    np.testing.assert_allclose(told["change"], [change], rtol=1e-3)


def test_the_two_spaces_agree_near_the_clean_end_and_the_noisiest_fifth_is_left_alone(network):
    cond, x = Conditioning(text=texts()), blob()
    velocity = 0.1 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)

    def step(space, sigma, done):
        return (
            MotionGuidance(network, 1e-2, space)(x, velocity, jnp.float32(sigma), jnp.float32(done), cond)[0] - velocity
        )

    near = [np.asarray(step(space, 1e-3, 0.9)) for space in ("noise", "velocity")]
    assert np.abs(near[1]).max() > 0
    np.testing.assert_allclose(near[0], near[1], rtol=5e-3, atol=1e-7)
    assert not np.any(step("noise", 0.5, 0.19))
    assert np.all(np.isfinite(step("noise", 1.0, 0.5)))
