from statistics import NormalDist

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.probes import LinearProbe, LinearProbeCV, nested_cross_validate, statistics
from jaxdiff.probes.folds import nested_splits
from tests.probes.scenes import features, gaussians, groups_of, labels_of, noise

PENALTIES = (100.0, 1.0)


def inner_hits(x, y, splits, penalty) -> int:
    """Validation hits of one cell and penalty, one probe at a time."""
    right = 0
    for fitted, tested in zip(*splits, strict=True):
        margins = LinearProbe(penalty).fit(x[fitted], y[fitted]).decision_function(x[tested])
        right += int(np.sum((margins > 0) == y[tested]))
    return right


def test_it_is_what_loops_over_single_probes_give():
    y, groups = labels_of(96), groups_of(96)
    sets = {"mean": gaussians(2, 96, 12, 0.7, 0), "grid": gaussians(1, 96, 130, 1.0, 5)}
    result = nested_cross_validate(sets, y, groups, penalties=PENALTIES, outer=4, inner=3, seed=7)
    train, held, folds = nested_splits(groups, y, None, 4, 3, 1, 7)
    np.testing.assert_array_equal(result.folds, folds)
    for choice in result.chosen:
        splits = train[0, choice.fold, :-1], held[0, choice.fold, :-1]
        out = folds[0] == choice.fold
        for name, array in sets.items():
            for candidate, p in np.ndindex(len(array), len(PENALTIES)):
                # A clip on the boundary may fall on either side within the solver's tolerance; not two.
                expected = inner_hits(array[candidate], y, splits, PENALTIES[p])
                found = result.inner_accuracy[name][0, choice.fold, candidate, p] * np.sum(~out)
                assert abs(found - expected) < 1.5
        x = sets[choice.name][choice.candidate]
        margins = LinearProbe(choice.penalty).fit(x[~out], y[~out]).decision_function(x[out])
        # The tolerance of margins in test_solver.
        np.testing.assert_allclose(result.predictions[0, out], margins, atol=0.03 * np.abs(margins).max())
    assert result.accuracy == np.mean((result.predictions[0] > 0) == y)


def test_a_known_signal_is_recovered_up_to_its_bayes_accuracy():
    distance = 1.5
    bayes = NormalDist().cdf(distance / 2)
    x = noise(4, 800, 10, 3)
    x[2] = gaussians(1, 800, 10, distance, 11)[0]
    result = nested_cross_validate(x, labels_of(800), groups_of(800), outer=5, inner=3)
    assert {c.candidate for c in result.chosen} == {2}
    # One standard error of 800 independent clips is 1.5 points; 11 weights cost another point.
    assert abs(result.accuracy - bayes) < 0.05
    assert bayes in result.interval and 0.5 not in result.interval
    assert result.grid["features"][2] == pytest.approx(result.accuracy, abs=0.02)
    assert np.all(np.abs(result.grid["features"][[0, 1, 3]] - 0.5) < 0.08)
    assert result.pairwise == pytest.approx(NormalDist().cdf(distance / np.sqrt(2)), abs=0.05)
    assert result.mean_accuracy["features"] == pytest.approx(result.grid["features"].mean())


def test_the_grid_and_its_scores_have_the_documented_shapes():
    y, groups = labels_of(64), groups_of(64)
    sets = {"a": noise(3, 64, 5, 0), "b": noise(2, 64, 90, 1)}
    result = nested_cross_validate(sets, y, groups, penalties=(1e-1, 1e1, 1e3), outer=3, inner=2, repeats=2)
    assert result.penalties.tolist() == [1e3, 1e1, 1e-1]
    assert result.predictions.shape == result.folds.shape == (2, 64)
    assert np.any(result.folds[0] != result.folds[1])
    assert len(result.chosen) == 6
    for name, count in (("a", 3), ("b", 2)):
        assert result.grid[name].shape == (count,)
        assert result.grid_interval[name].shape == (count, 2)
        assert result.cells[name].shape == (2, count, 64)
        assert result.inner_accuracy[name].shape == result.outer_accuracy[name].shape == (2, 3, count, 3)
        np.testing.assert_allclose(
            result.grid[name], [statistics.accuracy(result.cells[name][:, cell], y) for cell in range(count)]
        )
    # Each choice is the inner maximum, and its outer score is what the predictions of that fold show.
    for choice in result.chosen:
        scores = {name: table[choice.repeat, choice.fold] for name, table in result.inner_accuracy.items()}
        assert choice.inner_accuracy == pytest.approx(max(table.max() for table in scores.values()))
        at = (choice.candidate, result.penalties.tolist().index(choice.penalty))
        assert scores[choice.name][at] == pytest.approx(choice.inner_accuracy)
        out = result.folds[choice.repeat] == choice.fold
        right = np.mean((result.predictions[choice.repeat, out] > 0) == y[out])
        assert result.outer_accuracy[choice.name][(choice.repeat, choice.fold, *at)] == pytest.approx(right)
    np.testing.assert_allclose(result.hits.mean(), result.accuracy)
    assert "inner folds chose" in result.interval.conditional_on


def test_margins_of_one_fold_do_not_know_the_labels_of_that_fold():
    x, y, groups = noise(2, 64, 6, 0), labels_of(64), groups_of(64)
    one = nested_cross_validate(x, y, groups, penalties=PENALTIES, outer=4, inner=2)
    out = one.folds[0] == 1
    two = nested_cross_validate(x, np.where(out, ~y, y), groups, penalties=PENALTIES, outer=4, inner=2)
    np.testing.assert_array_equal(two.folds, one.folds)
    np.testing.assert_array_equal(two.predictions[0, out], one.predictions[0, out])
    assert np.any(two.predictions[0, ~out] != one.predictions[0, ~out])


def test_two_runs_are_bit_identical_and_another_seed_is_not():
    x, y, groups = features("heavy", 64, 30)[None], labels_of(64), groups_of(64)
    runs = [nested_cross_validate(x, y, groups, outer=3, inner=2, seed=seed) for seed in (0, 0, 1)]
    assert runs[0].predictions.tobytes() == runs[1].predictions.tobytes()
    assert runs[0].interval == runs[1].interval and runs[0].chosen == runs[1].chosen
    assert runs[0].predictions.tobytes() != runs[2].predictions.tobytes()


def test_the_penalty_with_the_most_validation_hits_is_chosen_and_refitted():
    # As many weights as training clips: without a strong penalty the fit is all noise.
    x, y, groups = gaussians(1, 120, 96, 2.5, 2)[0], labels_of(120), groups_of(120)
    probe = LinearProbeCV((1e-2, 1e3)).fit(x, y, groups=groups)
    assert probe.scores_[1e3] > probe.scores_[1e-2] + 0.05
    assert probe.penalty == 1e3
    single = LinearProbe(probe.penalty).fit(x, y)
    np.testing.assert_array_equal(probe.coef_, single.coef_)
    assert probe.score(x, y) == single.score(x, y)


def test_groups_decide_the_folds_of_the_penalty():
    # Labels differ between scenes and clips of a scene are copies: only memory of a scene helps.
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((30, 200)), 4, 0) + 0.01 * rng.standard_normal((120, 200))
    y = np.repeat(rng.permutation(np.arange(30) < 15), 4)
    leaking = max(LinearProbeCV((1.0,)).fit(x, y).scores_.values())
    honest = max(LinearProbeCV((1.0,)).fit(x, y, groups=groups_of(120)).scores_.values())
    assert leaking > 0.95 and honest < 0.75


def changed(**changes):
    arguments = {"X": noise(2, 40, 5, 0), "y": labels_of(40), "groups": groups_of(40), "outer": 3, "inner": 2}
    return {**arguments, **changes}


def with_nan():
    x = noise(2, 40, 5, 0)
    x[1, 17, 2] = np.nan
    return x


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        (changed(X=with_nan()), NonFiniteError, "candidate 1, clip 17, feature 2"),
        (changed(X={"grid": with_nan()}), NonFiniteError, r"X\['grid'\]"),
        (changed(X=np.zeros((40, 5))), ConfigError, r"expected \[candidates, clips, D\]"),
        (changed(X={}), ConfigError, "empty dict"),
        (changed(X={"a": noise(1, 40, 5, 0), "b": noise(1, 36, 5, 0)}), ConfigError, "'a': 40, 'b': 36"),
        (changed(y=labels_of(36)), ConfigError, "36 labels for 40 clips"),
        (changed(y=np.ones(40, bool)), ConfigError, "one class only"),
        (changed(y=np.arange(40)), ConfigError, "labels are False/True or 0/1"),
        (changed(groups=groups_of(36)), ConfigError, "one group per clip"),
        (changed(groups=np.arange(40) // 20), ConfigError, "2 groups cannot fill 3 folds"),
        (changed(groups=np.arange(40) // 14, inner=3), ConfigError, "inside outer fold 0: 2 groups cannot"),
        (changed(groups=np.arange(40), y=np.arange(40) == 3), ConfigError, "one class only to fit on"),
        (changed(penalties=()), ConfigError, "positive finite"),
        (changed(penalties=(1, 0)), ConfigError, "positive finite"),
        (changed(penalties=(1, 1)), ConfigError, "twice"),
        (changed(repeats=0), ConfigError, "at least 1"),
        (changed(strata=np.arange(40)), ConfigError, "several strata"),
    ],
)
def test_bad_input_is_named_before_anything_is_fitted(arguments, error, says):
    with pytest.raises(error, match=says):
        nested_cross_validate(**arguments)
