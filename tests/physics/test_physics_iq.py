"""The Physics-IQ score: its known answer, its parts on masks that one can count, its folders."""

import numpy as np
import pytest

from jaxdiff.data.video import write_video
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics import benchmarks
from jaxdiff.physics.physics_iq import (
    VIEWS,
    ViewMetrics,
    compare,
    compare_view,
    iou,
    moving,
    physics_iq,
    resized,
    scenarios,
    small,
    weighted_iou,
)


def clip(speed, start=10, frames=12, seed=0):
    """A bright square that moves sideways over a rough wall."""
    video = np.random.default_rng(seed).integers(60, 90, (1, 48, 80, 3)).repeat(frames, 0).astype(np.uint8)
    for t in range(frames):
        x = round(start + speed * t)
        video[t, 16:32, x : x + 16] = 230
    return video


def compared(generated, takes) -> ViewMetrics:
    model, first, second = (small(video, (12, 20)) for video in (generated, *takes))
    return compare_view(model, (first, second))


@pytest.fixture(scope="module")
def takes():
    return {view: (clip(3, 10 + i, seed=i), clip(3.4, 10 + i, seed=i)) for i, view in enumerate(VIEWS)}


def scored(takes, made, rounded=True):
    return physics_iq({"a": {view: compared(made(view), takes[view]) for view in VIEWS}}, rounded)


def test_take_2_as_the_model_scores_100(takes):
    assert scored(takes, lambda view: takes[view][1], rounded=False) == pytest.approx(100, abs=1e-9)
    # Four digits of numbers of about one half: 1e-4 of each ratio.
    assert scored(takes, lambda view: takes[view][1]) == pytest.approx(100, abs=0.02)


def test_a_clip_in_which_nothing_moves_scores_less_and_take_1_itself_not_more_than_100(takes):
    still = scored(takes, lambda view: takes[view][0][:1].repeat(12, 0))
    backward = scored(takes, lambda view: takes[view][0][::-1].copy())
    assert still < 10
    assert still < backward < 90
    assert scored(takes, lambda view: takes[view][0]) == 100


def test_the_parts_are_those_of_masks_that_can_be_counted():
    a = np.zeros((2, 4, 4), bool)
    b = a.copy()
    a[0, :2], b[0, 1:3] = True, True
    assert iou(a, b).tolist() == [4 / 12, 1.0]  # 4 of 12, and both empty
    assert weighted_iou(a.mean(0), b.mean(0)) == pytest.approx(4 / 12)
    assert weighted_iou(a.mean(0), np.zeros((4, 4))) == 0
    assert weighted_iou(np.zeros((4, 4)), np.zeros((4, 4))) == 1
    found = compared(clip(3), [clip(3), clip(3, seed=1)])
    assert found.spatiotemporal.tolist() == [1.0] * 12
    assert found.mse.max() == 0 < found.mse_takes.min()


def test_what_moves_is_what_differs_from_its_running_average():
    video = clip(0)
    assert not moving(video).any()
    video[6:, 16:32, 10:26] = 60  # the square goes out
    masks = moving(video)
    assert not masks[:6].any()
    assert masks[6, 18:30, 12:24].all()
    assert not masks[:, :, 40:].any()
    # A background that takes over .3 of a change in a frame has left 170 * .7^n of it: 9.8 after 8 frames, which is not > 10
    assert masks[6 : 6 + 5, 24, 18].all()


def test_a_quarter_is_the_mean_of_the_middle_four_pixels():
    frame = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    block = frame.reshape(2, 4, 3, 4, 3)[:, 1:3, :, 1:3].astype(int).sum((1, 3))
    assert (resized(frame, (2, 3)) == (block + 2) // 4).all()
    assert (resized(frame, (8, 12)) == frame).all()


def test_clips_of_different_length_and_scenarios_without_a_view_are_refused(takes):
    with pytest.raises(ConfigError, match=r"\(12, 12, 20\), \(12, 12, 20\), \(11, 12, 20\)"):
        compared(clip(3), [clip(3), clip(3)[:11]])
    with pytest.raises(ConfigError, match="12 frames has masks of 11"):
        small(clip(3), (12, 20), np.zeros((11, 48, 80), bool))
    found = compared(clip(3), [clip(3), clip(3.4)])
    with pytest.raises(ConfigError, match="perspective-right"):
        physics_iq({"a": dict.fromkeys(VIEWS[:2], found)})
    with pytest.raises(ConfigError, match="none"):
        physics_iq({})


def test_results_survive_the_benchmarks_own_csv(tmp_path, takes):
    found = {"trimmed-a": {view: compared(clip(2), takes[view]) for view in VIEWS}}
    path = benchmarks.write("physics-iq/results", tmp_path / "model.csv", benchmarks.iq_rows(found))
    again = benchmarks.iq_metrics(benchmarks.read("physics-iq/results", path))
    assert physics_iq(again) == physics_iq(found)
    assert np.array_equal(again["trimmed-a"][VIEWS[1]].mse, found["trimmed-a"][VIEWS[1]].mse)


def test_a_folder_is_read_by_its_names(tmp_path):
    fps, number = 4, 0
    real, made = tmp_path / "physics-IQ-benchmark", tmp_path / "model"
    for take, speed in (("take-1", 1), ("take-2", 1.2)):
        for view in VIEWS:
            number += 1
            name = f"{number:04d}_testing-videos_{fps}FPS_{view}_{take}_trimmed-roll.mp4"
            write_video(real / "split-videos" / "testing" / f"{fps}FPS" / name, clip(speed, frames=20), fps=fps)
            if take == "take-1":
                write_video(made / f"{number:04d}_x.mp4", clip(speed, frames=20), fps=fps)
    pairs = scenarios(real, made, fps)
    assert [(pair.name, pair.view, pair.masks) for pair in pairs] == [("trimmed-roll", view, None) for view in VIEWS]
    assert pairs[1].takes[1].name.startswith("0005_")
    found = {"trimmed-roll": {pair.view: compare(pair, fps) for pair in pairs}}
    assert physics_iq(found) == 100
    (made / "0002_x.mp4").unlink()
    with pytest.raises(MissingDataError, match=r"perspective-center.*no 0002_"):
        scenarios(real, made, fps)
    write_video(made / "0002_x.mp4", clip(1, frames=19), fps=fps)
    with pytest.raises(MissingDataError, match="19 frames"):
        compare(scenarios(real, made, fps)[1], fps)
