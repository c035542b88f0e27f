"""Motion maps over a video: grey where nothing moves, bright where it does."""

import io

import numpy as np
from PIL import Image

from jaxdiff.report.motion import MotionView, at_strongest, film, over_time, tinted
from jaxdiff.report.style import png


def view():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (9, 16, 24, 3), dtype=np.uint8)
    drift = np.zeros((1, 4, 6))
    drift[0, 1, 2] = 3.0
    spans = (range(1), range(1, 5), range(5, 9))
    return MotionView("clip", "red disc", video, spans, drift, 2 * drift, np.array([0.5]), 0, 2)


def test_a_map_of_zeros_leaves_a_grey_picture_and_a_peak_colours_its_place():
    frame = view().video[0]
    plain = tinted(frame, np.zeros((4, 6)))
    assert np.array_equal(plain, np.repeat(plain[..., :1], 3, 2))
    heated = tinted(frame, view().drift[0] / 3.0)
    different = np.ptp(heated.astype(int), axis=2) > 20
    assert different[6 * 8, 10 * 8] and not different[12 * 8 :, 20 * 8 :].any()


def test_a_film_shows_video_drift_and_field_and_leaves_the_last_frames_grey():
    shown = film(view())
    assert shown.dtype == np.uint8 and shown.shape == (9, 16 * 8, 3 * 24 * 8 + 8, 3)
    coloured = [np.ptp(frame[:, 24 * 8 + 4 :].astype(int), axis=2).max() > 20 for frame in shown]
    assert coloured == [True] + [False] * 8  # one pair: it begins at the first latent frame


def test_figures_are_pictures_of_every_pair_and_of_every_clip():
    for figure, axes in ((over_time(view()), 3 * 1 + 2 + 1), (at_strongest([view(), view()]), 8)):
        assert len(figure.axes) == axes
        assert min(Image.open(io.BytesIO(png(figure, 60))).size) > 60
