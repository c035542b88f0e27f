import jax
import numpy as np
import pytest

from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.probes import published, published_protocol
from tests.probes.scenes import gaussians, groups_of, labels_of, noise


def by_plain_adam(x, y, kernel, bias, order, present, rate=1e-3):
    """Softmax cross-entropy and Adam (betas .9, .999, epsilon 1e-8) in float64, written out."""
    x = x.astype(np.float64)
    parameters = [kernel.astype(np.float64), bias.astype(np.float64)]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    for t, (clips, weight) in enumerate(zip(order, present, strict=True), 1):
        clips = clips[weight > 0]
        logits = x[clips] @ parameters[0] + parameters[1]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(clips)), y[clips].astype(int)] -= 1
        for i, g in enumerate([x[clips].T @ p / len(clips), p.mean(0)]):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g**2
            step = first[i] / (1 - 0.9**t) / (np.sqrt(second[i] / (1 - 0.999**t)) + 1e-8)
            parameters[i] = parameters[i] - rate * step
    logits = x @ parameters[0] + parameters[1]
    return logits[:, 1] - logits[:, 0]


def test_every_cell_is_trained_as_it_would_be_alone_by_plain_adam():
    x, y = gaussians(3, 48, 7, 1.0, 0), labels_of(48)
    train = np.arange(40)
    order, present = published._batches(train, epochs=4, batch=16, seed=5)
    key = jax.random.key(2)
    margins = published._train(x, y.astype(np.int32), order, present, key, 1e-3)
    first, second = jax.random.split(key)
    bound = 7**-0.5
    kernels = np.asarray(jax.random.uniform(first, (3, 7, 2), minval=-bound, maxval=bound))
    biases = np.asarray(jax.random.uniform(second, (3, 1, 2), minval=-bound, maxval=bound))
    for cell in range(3):
        expected = by_plain_adam(x[cell], y, kernels[cell], biases[cell, 0], order, present)
        # Twelve float32 steps of 1e-3; Adam's first ones amplify rounding of tiny gradients.
        np.testing.assert_allclose(margins[cell], expected, atol=2e-5)


def test_an_epoch_shows_every_training_clip_once_in_a_new_order():
    train = np.arange(5, 45)
    order, present = published._batches(train, epochs=3, batch=16, seed=0)
    assert order.shape == present.shape == (9, 16)
    shown = [order[e : e + 3][present[e : e + 3] > 0] for e in (0, 3, 6)]
    for clips in shown:
        np.testing.assert_array_equal(np.sort(clips), train)
    assert np.any(shown[0] != shown[1])


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together_unless_asked_otherwise(seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(30), 4))
    test = published._split(groups, 0.4, None, seed)
    assert not set(groups[test]) & set(groups[~test])
    assert test.sum() == 48
    by_clip = published._split(np.arange(120), 0.4, None, seed)
    assert by_clip.sum() == 48 and set(groups[by_clip]) & set(groups[~by_clip])


def test_categories_are_split_in_proportion():
    groups = np.repeat(np.arange(40), 4)
    category = np.where(groups < 30, "O1", "O2")
    test = published._split(groups, 0.4, category, 0)
    assert test[category == "O1"].sum() == 48 and test[category == "O2"].sum() == 16


def test_the_reported_numbers_follow_from_margins_and_split():
    x, y, groups = gaussians(4, 120, 6, 2.0, 0), labels_of(120), groups_of(120)
    result = published_protocol({"mean": x, "moments": x[:2, :, :3]}, y, groups, seeds=(0, 1), epochs=5)
    assert result.test.shape == (2, 120) and np.all(result.test.sum(1) == 48)
    table = []
    for seed, test in enumerate(result.test):
        row = []
        for name, count in (("mean", 4), ("moments", 2)):
            assert result.margins[name].shape == (2, count, 120)
            right = (result.margins[name][seed] > 0) == y
            np.testing.assert_allclose(result.accuracy[name][seed], right[:, test].mean(1))
            np.testing.assert_allclose(result.training_accuracy[name][seed], right[:, ~test].mean(1))
            row += right[:, test].mean(1).tolist()
        table.append(row)
        name, cell = result.best_cells[seed]
        assert result.accuracy[name][seed, cell] == max(row)
    assert result.best == pytest.approx(np.mean([max(row) for row in table]))
    assert result.mean == pytest.approx(np.mean(table))
    assert result.best_error == pytest.approx(abs(max(table[0]) - max(table[1])) / 2)
    assert 0 <= result.best_pairwise <= 1 and result.pairwise["mean"].shape == (2, 4)


def test_a_strong_signal_is_learnt_and_runs_are_bit_identical():
    x, y, groups = 3 * gaussians(2, 240, 6, 4.0, 0), labels_of(240), groups_of(240)
    one = published_protocol(x, y, groups, seeds=(0,))
    two = published_protocol(x, y, groups, seeds=(0,))
    assert one.best > 0.9 and np.isnan(one.best_error)
    assert one.margins["features"].tobytes() == two.margins["features"].tobytes()


def test_splitting_by_clip_leaks_what_a_scene_shares():
    # No clip can be told from its siblings, yet scenes of one label can be remembered.
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((1, 30, 300)), 4, 1).astype(np.float32)
    y = np.repeat(rng.permutation(np.arange(30) < 15), 4)
    grouped = published_protocol(x, y, groups_of(120), seeds=range(3))
    by_clip = published_protocol(x, y, groups_of(120), seeds=range(3), grouped=False)
    assert by_clip.mean > 0.9 and grouped.mean < 0.75


@pytest.mark.parametrize(
    "changes, error, says",
    [
        ({"X": np.full((1, 40, 3), np.inf)}, NonFiniteError, "candidate 0, clip 0"),
        ({"y": labels_of(36)}, ConfigError, "36 labels for 40 clips"),
        ({"groups": np.zeros(40)}, ConfigError, "1 groups cannot be split"),
        ({"test_fraction": 1.5}, ConfigError, "test_fraction is 1.5"),
        ({"seeds": ()}, ConfigError, "0 seeds"),
        ({"y": np.arange(40) == 0, "seeds": range(10)}, ConfigError, "one class only to train on"),
    ],
)
def test_bad_input_is_named(changes, error, says):
    arguments = {"X": noise(1, 40, 3, 0), "y": labels_of(40), "groups": groups_of(40), **changes}
    with pytest.raises(error, match=says):
        published_protocol(**arguments)
