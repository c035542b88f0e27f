"""Metrics of the world's physics, on tracks whose answer is known in closed form."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig, prompts
from jaxdiff.errors import ConfigError
from jaxdiff.physics import METRICS, Track, measure, truth_errors

CONFIG = WorldConfig()
TIME = np.arange(17) - 8.5
SLIDES, HOPS = (np.array([0, 6, prompts.WORDS.index(motion)]) for motion in ("slides-right", "hops-right"))


def made(x=0.5 + 0.01 * TIME, y=0.5, clear=True, found=True, area=0.05, colour=0, shape=0, **others) -> Track:
    """A track of one clip, free of the screen unless told otherwise."""
    clear = np.broadcast_to(clear, (1, 17))
    position = np.stack([np.broadcast_to(x, (1, 17)), np.broadcast_to(y, (1, 17))], -1).astype(float)
    screen = np.zeros((1, 17, 32, 32), bool)
    second = np.zeros((1, 17), bool)
    values = {
        "found": np.broadcast_to(found, (1, 17)) | clear,
        "clear": clear,
        "second": second,
        "position": np.where(clear[..., None], position, np.nan),
        "area": np.where(clear, np.broadcast_to(area, (1, 17)), np.nan),
        "colour": np.where(clear, np.broadcast_to(colour, (1, 17)), -1),
        "shape": np.where(clear, np.broadcast_to(shape, (1, 17)), -1),
        "screen": screen,
    }
    return Track(**values | others)


def value(name, track, words=SLIDES):
    return float(measure(track, words[None], CONFIG)[name][0])


def test_every_metric_of_a_perfect_clip_is_zero_and_its_speed_is_the_speed():
    found = {name: float(values[0]) for name, values in measure(made(), SLIDES[None], CONFIG).items()}
    assert found.keys() == METRICS.keys()
    assert found.pop("speed") == pytest.approx(0.01)
    assert np.isnan(found.pop("bounce"))  # of hopping prompts only
    assert all(abs(number) < 1e-9 for number in found.values()), found


def test_velocity_is_the_distance_from_the_best_line():
    x = 0.5 + 0.003 * TIME**2
    expected = np.std(x - np.polyval(np.polyfit(TIME, x, 1), TIME))
    assert value("velocity", made(x)) == pytest.approx(expected)
    half = np.where(
        TIME > 0, 0.1, 0.0
    )  # a jump of the height counts where the prompt says that it slides, and only there
    assert value("velocity", made(y=0.5 + half)) == pytest.approx(np.std(half))
    assert value("velocity", made(y=0.5 + half), HOPS) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("period", "phase", "most"), [(7.0, 0.25, 1e-6), (6.3, 0.713, 2e-3)])
def test_hops_on_parabolas_have_no_residual_and_shuffled_ones_do(period, phase, most):
    turn = np.mod(TIME / period + phase, 1.0)
    track = made(y=0.7 - 0.12 * 4 * turn * (1 - turn), clear=np.abs(TIME) > 3)
    assert value("bounce", track, HOPS) <= most
    assert value("bounce", track.shuffled(1), HOPS) > 0.01
    upside_down = made(y=0.7 + 0.12 * 4 * turn * (1 - turn))
    assert value("bounce", upside_down, HOPS) > 0.01


def test_permanence_counts_the_frames_that_owe_a_sight_of_the_thing():
    gone = np.arange(17) >= 12
    missing = made(clear=~gone, found=~gone)
    assert value("permanence", missing) == pytest.approx(5 / 17)
    screen = np.zeros((1, 17, 32, 32), bool)
    screen[:, 12:] = True
    assert value("permanence", dataclasses.replace(missing, screen=screen)) == 0  # it may be behind the screen
    screen[:, 12:, :, 24:] = False  # the thing is at the middle and moves right, but not so far
    assert value("permanence", dataclasses.replace(missing, screen=screen)) == 0
    screen[:, 12:, :, :24] = False
    assert value("permanence", dataclasses.replace(missing, screen=screen)) == pytest.approx(5 / 17)
    assert value("permanence", made(second=(np.arange(17) < 2)[None])) == pytest.approx(2 / 17)


def test_a_thing_that_leaves_the_frame_is_not_missed():
    x = 0.5 + 0.06 * TIME
    inside = np.abs(x - 0.5) < 0.37
    assert value("permanence", made(x, clear=inside, found=inside)) == 0


def test_attributes_that_change_are_counted_against_the_commonest():
    assert value("colour", made(colour=np.where(np.arange(17) < 4, 2, 1))) == pytest.approx(4 / 17)
    clear = np.arange(17) != 8
    assert value("shape", made(shape=np.where(np.arange(17) > 8, 1, 0), clear=clear)) == pytest.approx(0.5)


def test_mass_is_the_relative_variance_of_the_area():
    growth = 1 + 0.3 * np.arange(17) / 16
    area = 0.05 * growth**2
    assert value("mass", made(area=area)) == pytest.approx(np.var(area) / np.mean(area) ** 2)


def test_words_are_those_that_the_clip_does_not_show():
    turn = np.mod(TIME / 7, 1.0)
    hop = 0.6 - 0.1 * 4 * turn * (1 - turn)
    assert value("words", made(y=hop), HOPS) == 0
    assert value("words", made(y=hop), SLIDES) == pytest.approx(1 / 3)
    assert value("words", made(0.5 - 0.01 * TIME, colour=3, shape=2)) == 1


def test_a_clip_without_a_thing_is_empty_and_says_nothing_else():
    found = measure(made(clear=False, found=False), SLIDES[None], CONFIG)
    assert found.pop("empty")[0] == 1
    assert all(np.isnan(values[0]) for values in found.values())


def test_errors_are_taken_where_the_truth_is_plain():
    track = made(x=0.51, found=np.arange(17) != 3, clear=~np.isin(np.arange(17), (3, 4)), colour=1)
    truth = {
        "positions": np.full((1, 17, 2), 0.5),
        "visibility": np.where(np.arange(17) == 4, 0.0, 1.0)[None],
        "colour": np.array([0]),
        "shape": np.array([0]),
    }
    found = truth_errors(track, truth)
    assert found["missed"] == pytest.approx(1 / 16)
    assert found["false"] == 1
    assert found["position"] == pytest.approx(0.01)
    assert (found["colour"], found["shape"]) == (1, 0)


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="1 clips need as many prompts"):
        measure(made(), np.stack([SLIDES, SLIDES]), CONFIG)
    with pytest.raises(ConfigError, match="asks for nothing"):
        measure(made(), np.full((1, 3), prompts.NOTHING), CONFIG)
