"""What probes could do with any labels: memorising, code length, control tasks."""

import itertools

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import LinearProbe, capacity, controls, nested_cross_validate, permutation
from tests.probes.scenes import gaussians, groups_of, labels_of, noise

CLIPS = 64
Y, GROUPS = labels_of(CLIPS), groups_of(CLIPS)
PENALTIES = (100.0, 1.0)


def features():
    """Two candidates, the second with a strong signal."""
    x = noise(2, CLIPS, 12, 0)
    x[1] = gaussians(1, CLIPS, 12, 4.0, 5)[0]
    return x


@pytest.fixture(scope="module")
def result():
    return nested_cross_validate(features(), Y, GROUPS, penalties=PENALTIES, outer=4, inner=2)


def test_memorised_is_the_training_accuracy_of_the_chosen_probes_on_exchanged_labels(result):
    x = features()
    found = capacity.memorised(x, result, draws=3, seed=4)
    labels = permutation.permute_labels(Y, GROUPS, 12, seed=(4, 1)).reshape(4, 3, CLIPS)
    shares = []
    for choice, draw in itertools.product(result.chosen, range(3)):
        rows, y = result.folds[0] != choice.fold, labels[choice.fold, draw]
        probe = LinearProbe(choice.penalty).fit(x[choice.candidate][rows], y[rows])
        shares.append(probe.score(x[choice.candidate][rows], y[rows]))
    # A clip on the boundary may fall on either side within the solver's tolerance: one of 48 in a few of 12 fits.
    assert found.accuracy == pytest.approx(np.mean(shares), abs=0.01)
    assert found.by_penalty.shape == (2,) and found.by_penalty[0] < found.by_penalty[1]


def test_more_features_than_clips_memorise_everything():
    x = noise(1, CLIPS, 80, 0)
    wide = nested_cross_validate(x, Y, GROUPS, penalties=(1e-2,), outer=4, inner=2)
    assert capacity.memorised(x, wide, draws=3).accuracy == 1
    assert 0.3 < wide.accuracy < 0.7


def test_the_code_is_what_probes_of_earlier_scenes_say_of_later_ones():
    x = features()
    found = capacity.prequential(x, Y, GROUPS, penalties=PENALTIES, orders=1, portions=2, seed=3)
    place = np.random.default_rng((3, 0)).permutation(16)[GROUPS]
    lengths = np.zeros((2, 2))
    for (c, candidate), (p, penalty) in itertools.product(enumerate(x), enumerate(PENALTIES)):
        lengths[c, p] = 20  # the first third, five scenes, a bit a clip
        for end, until in ((5, 11), (11, 16)):
            fitted, told = place < end, (place >= end) & (place < until)
            margins = LinearProbe(penalty).fit(candidate[fitted], Y[fitted]).decision_function(candidate[told])
            lengths[c, p] += np.logaddexp(0, np.where(Y[told], -margins, margins)).sum() / np.log(2)
    # Margins are within a few per cent.
    assert found.bits == pytest.approx(-np.log2(np.mean(0.5**lengths)), rel=0.02)
    np.testing.assert_allclose(found.cells["features"], -np.log2(np.mean(0.5**lengths, 1)), rtol=0.02)
    assert (found.clips, found.shares) == (CLIPS, (1 / 3, 2 / 3))


def test_a_signal_shortens_the_code_and_noise_costs_little():
    arguments = {"penalties": PENALTIES, "orders": 3, "portions": 3}
    signal = capacity.prequential(features(), Y, GROUPS, **arguments)
    exchanged = controls.shuffle_labels(Y, GROUPS, seed=0)
    nothing = capacity.prequential(features(), exchanged, GROUPS, **arguments)
    assert signal.compression > 1.3
    # The mixture is at most log2(4) bits behind its best code, which the strong penalty keeps near one bit a clip.
    assert 0.9 < nothing.compression < 1.03
    assert signal.bits <= min(signal.cells["features"]) + 1 + 1e-9  # log2 of two cells


def test_scenes_of_one_label_each_are_told_without_a_probe_until_both_have_come():
    y = np.repeat(np.arange(16) < 12, 4)
    found = capacity.prequential(noise(1, CLIPS, 12, 1), y, GROUPS, penalties=PENALTIES, orders=5, portions=3)
    assert np.all(np.isfinite(found.by_order))


def test_control_labels_belong_to_values_that_recur():
    colour = np.array(["red", "green", "blue", "cyan"])[GROUPS % 4]
    labels = controls.control_labels(colour, GROUPS, seed=1)
    told = {(c, bool(label)) for c, label in zip(colour, labels, strict=True)}
    assert len(told) == 4 and sum(label for _, label in told) == 2
    np.testing.assert_array_equal(labels, controls.control_labels(colour, GROUPS, seed=1))
    drawn = {tuple(controls.control_labels(colour, GROUPS, seed=seed)[:16:4]) for seed in range(40)}
    assert len(drawn) == 6


@pytest.mark.parametrize(
    "attribute, says",
    [
        (GROUPS.astype(str), "15 more of 16 values .* one group alone"),
        (np.where(GROUPS == 3, "odd", np.where(GROUPS % 2, "a", "b")), "'odd' and 0 more"),
        (np.full(CLIPS, "same"), "one value only"),
    ],
)
def test_what_never_recurs_makes_no_control_task(attribute, says):
    # A probe cannot know a value again that it never met: its selectivity would be an accuracy minus chance.
    with pytest.raises(ConfigError, match=says):
        controls.control_labels(attribute, GROUPS)


def test_selectivity_is_the_paired_difference_of_two_tasks(result):
    colour = np.arange(16)[GROUPS] % 4
    x = features()
    x[0] += 3 * np.eye(12, dtype=np.float32)[colour]
    control = nested_cross_validate(
        x, controls.control_labels(colour, GROUPS), GROUPS, penalties=PENALTIES, outer=4, inner=2
    )
    found = capacity.selectivity(result, control, 4)
    assert found.control > 0.9 and found.values == 4
    assert found.difference == pytest.approx(result.accuracy - found.control)
    assert found.difference in found.difference_interval


def test_bad_input_is_named(result):
    with pytest.raises(ConfigError, match="candidate 1 of 'features', which X does not hold"):
        capacity.memorised(features()[:1], result)
    with pytest.raises(ConfigError, match="0 portions"):
        capacity.prequential(features(), Y, GROUPS, portions=0)
