import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import grouped_folds
from jaxdiff.probes.folds import nested_splits


def random_scenes(rng):
    """Clips of groups of 1 to 6, shuffled, with a category per group and labels of every pattern."""
    count = int(rng.integers(8, 40))
    groups = rng.permutation(np.repeat(np.arange(count), rng.integers(1, 7, count)))
    return groups, rng.integers(0, 3, count)[groups], rng.random(len(groups)) < 0.5


@pytest.mark.parametrize("seed", range(40))
def test_no_group_straddles_a_split_and_every_clip_is_held_out_once(seed):
    rng = np.random.default_rng(seed)
    groups, strata, y = random_scenes(rng)
    outer, inner = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    train, held, folds = nested_splits(groups, y, strata if seed % 2 else None, outer, inner, 2, seed)
    assert train.shape == held.shape == (2, outer, inner + 1, len(y))
    for fitted, tested in zip(train.reshape(-1, len(y)), held.reshape(-1, len(y)), strict=True):
        assert not set(groups[fitted]) & set(groups[tested])
        assert fitted.any() and tested.any()
    for repeat in range(2):
        np.testing.assert_array_equal(held[repeat, :, -1].sum(0), 1)
        for fold in range(outer):
            out = folds[repeat] == fold
            np.testing.assert_array_equal(held[repeat, fold, -1], out)
            # The inner splits live on the outer training clips alone, and hold each of them out once.
            np.testing.assert_array_equal(held[repeat, fold, :-1].sum(0), ~out)
            assert not train[repeat, fold][:, out].any()


@pytest.mark.parametrize("seed", range(10))
def test_categories_are_spread_evenly(seed):
    rng = np.random.default_rng(seed)
    category = np.repeat([0, 1, 2], [30, 30, 20])
    groups = np.repeat(np.arange(80), 4)
    order = rng.permutation(320)
    fold = grouped_folds(groups[order], 5, strata=category[groups[order]], seed=seed)
    for value, scenes in enumerate([6, 6, 4]):
        counts = np.bincount(fold[category[groups[order]] == value], minlength=5)
        np.testing.assert_array_equal(counts, 4 * scenes)


def test_labels_are_spread_evenly_where_groups_hold_one_label_each():
    y = np.arange(50) < 10
    fold = grouped_folds(np.arange(50), 5, y=y, seed=3)
    np.testing.assert_array_equal(np.bincount(fold[y], minlength=5), 2)
    np.testing.assert_array_equal(np.bincount(fold[~y], minlength=5), 8)


def test_folds_depend_on_the_seed_alone_and_not_on_the_names_of_groups():
    groups = np.repeat(np.arange(30), 4)
    fold = grouped_folds(groups, 5, seed=1)
    np.testing.assert_array_equal(fold, grouped_folds(groups, 5, seed=1))
    np.testing.assert_array_equal(fold, grouped_folds([f"O1/{99 - g:02d}" for g in groups], 5, seed=1))
    assert np.any(fold != grouped_folds(groups, 5, seed=2))


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"groups": np.repeat([0, 1, 2], 4), "folds": 5}, "3 groups cannot fill 5 folds"),
        ({"groups": np.arange(8), "folds": 1}, "at least 2"),
        ({"groups": np.repeat(["a", "b"], 4), "folds": 2, "strata": np.arange(8)}, "group .*'a'.* several strata"),
        ({"groups": np.arange(8), "folds": 2, "strata": np.arange(7)}, r"strata has shape \(7,\) for 8 clips"),
        ({"groups": np.zeros((4, 2)), "folds": 2}, "one group per clip"),
    ],
)
def test_folds_that_cannot_be_dealt_are_refused(arguments, says):
    with pytest.raises(ConfigError, match=says):
        grouped_folds(arguments.pop("groups"), **arguments)
