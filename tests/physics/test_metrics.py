"""Energy, gravity and mass, on motion whose answer is known in closed form."""

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.physics.known import discs, dropped, tracks_of
from jaxdiff.physics.metrics import energy, energy_error, free, gravity_fit, jumps, mass_variance, noise
from jaxdiff.physics.tracks import Tracks

FPS, PULL, RADIUS = 30.0, 900.0, 8.0  # frames a second, pixels per second squared, pixels
SCALE = 9.81 / PULL
TIME = np.arange(40) / FPS


def thing(y, x=50.0, **others):
    """One disc; y points down."""
    return tracks_of(np.stack(np.broadcast_arrays(x, y), -1)[:, None], [RADIUS], FPS, scale=SCALE, **others)


def bouncing(restitution, height=150.0):
    """Let go above a floor at row 200 + RADIUS."""
    return thing(200 - height + dropped(TIME, height, PULL, restitution), 50 + 60 * TIME)


def errors(tracks, gravity=9.81):
    return [float(value[0]) for value in energy_error(energy(tracks, gravity))]


def test_free_fall_keeps_its_energy_and_shows_gravity():
    tracks = thing(10 + 40 * TIME + PULL * TIME**2 / 2, 20 + 90 * TIME)
    assert max(errors(tracks)) < 1e-6
    fit = gravity_fit(tracks)
    assert fit.value == pytest.approx(9.81, rel=1e-9)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.residual() == pytest.approx(0.0, abs=1e-9)
    assert free(tracks).all()
    single = Tracks(tracks.positions.astype(np.float32), tracks.areas, FPS, SCALE)
    assert max(errors(single)) < 1e-5  # of pixels up to 850 in float32


def test_an_elastic_bounce_keeps_its_energy_but_in_the_frames_of_the_contact():
    tracks = bouncing(1.0)
    assert max(errors(tracks)) < 1e-6
    hit = np.flatnonzero(jumps(tracks)[0, :, 0].any(-1))
    contacts = [np.sqrt(2 * 150 / PULL) * n * FPS for n in (1, 3)]
    assert hit.size
    assert all(min(abs(t - contact) for contact in contacts) <= 1 for t in hit)
    assert free(tracks).sum() >= len(TIME) - 4 * len(contacts)


@pytest.mark.parametrize("restitution", [0.5, 0.8])
def test_a_bounce_takes_1_minus_e_squared_of_the_kinetic_energy(restitution):
    tracks = bouncing(restitution)
    found = energy(tracks, 9.81)
    total = found.total[0][np.isfinite(found.total[0])]
    impact = tracks.masses[0, 0] * 9.81 * 150 * SCALE
    # The contacts that the clip shows, each with its step.
    levels = total[0] - impact * (1 - restitution ** (2.0 * np.arange(5)))
    nearest = np.abs(total[:, None] - levels).min(1)
    assert nearest.max() < 1e-6 * impact
    assert np.abs(total - levels[1]).min() < 1e-6 * impact
    rms, gain = errors(tracks)
    assert rms > 0.1
    assert gain < 1e-6  # nothing but dissipation


def test_energy_that_comes_from_nowhere_is_a_gain():
    tracks = bouncing(1.0)
    faster = tracks.positions.copy()
    faster[0, 20:, 0, 0] += 400 * (TIME[20:] - TIME[20])  # sideways, in the air
    rms, gain = errors(Tracks(faster, tracks.areas, FPS, SCALE))
    assert gain > 0.2
    assert rms > 0.1


def test_a_thing_that_floats_has_no_energy_error_and_a_gravity_residual_of_1():
    tracks = thing(np.full(40, 100.0))
    assert errors(tracks) == [0.0, 0.0]
    fit = gravity_fit(tracks, floor=200.0)
    assert fit.residual() == pytest.approx(1.0)
    assert np.isnan(fit.r2)  # no variance to explain
    drifting = thing(np.full(40, 100.0), 20 + 90 * TIME)
    assert max(errors(drifting)) < 1e-9
    assert gravity_fit(drifting, floor=200.0).residual() == pytest.approx(1.0)
    assert np.isnan(gravity_fit(tracks).value)  # without a floor it may as well lie on a table


def test_gravity_is_found_between_the_bounces_and_not_on_the_floor():
    tracks = bouncing(0.6)
    for floor in (None, 200 + RADIUS):
        fit = gravity_fit(tracks, floor)
        assert fit.value == pytest.approx(9.81, rel=1e-6)
        assert fit.r2 == pytest.approx(1.0)
    landed = thing(np.minimum(50 + PULL * TIME**2 / 2, 200.0))
    for floor in (None, 200 + RADIUS):
        assert gravity_fit(landed, floor).value == pytest.approx(9.81, rel=1e-6)


def test_the_deviation_of_gravity_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    sigma, frames = 0.3, len(TIME)
    heights = 10 + 40 * TIME + PULL * TIME**2 / 2 + sigma * rng.standard_normal((100, frames))
    positions = np.stack([np.broadcast_to(20 + 90 * TIME, heights.shape), heights], -1)[:, :, None]
    clips = Tracks(positions, np.full((100, frames, 1), np.pi * RADIUS**2), FPS, SCALE)
    fit = gravity_fit(clips)
    expected = sigma * SCALE * np.sqrt(720.0) * FPS**2 / frames**2.5
    # sd of a mean of 100, and of an estimate of an sd from 100
    assert abs(fit.value.mean() - 9.81) < 4 * expected / 10
    assert fit.value.std() == pytest.approx(expected, rel=0.3)
    assert fit.deviation.mean() == pytest.approx(expected, rel=0.1)
    # The median of 36 dependent numbers
    assert noise(clips).mean() == pytest.approx(sigma, rel=0.1)
    assert jumps(clips).any((1, 2, 3)).mean() <= 0.05


def test_time_shuffled_frames_keep_no_law():
    tracks = bouncing(1.0)
    mixed = tracks.shuffled(1)
    assert errors(mixed)[0] > 0.2
    fit = gravity_fit(mixed, floor=500.0)
    assert fit.residual() > 0.5
    assert fit.r2 < 0.5
    assert mass_variance(mixed.areas) == pytest.approx(mass_variance(tracks.areas))  # order means nothing to it


def test_mass_variance_of_a_disc_that_moves_is_below_a_ten_thousandth():
    for radius in (6.0, 9.3):
        centres = np.stack([20.3 + 0.37 * np.arange(30), 18 + 0.113 * np.arange(30)], -1)[:, None]
        areas = discs(centres, np.array([radius]), (48, 64)).sum((1, 2))
        assert mass_variance(areas[None]).max() < 1e-4
    assert mass_variance(areas[None]) > 0


def test_mass_variance_of_a_growing_and_of_a_vanishing_thing():
    grown, share = 0.5, (np.arange(20000) + 0.5) / 20000
    areas = np.pi * (RADIUS * (1 + grown * share)) ** 2
    mean = 1 + grown + grown**2 / 3
    square = 1 + 2 * grown + 2 * grown**2 + grown**3 + grown**4 / 5
    assert mass_variance(areas[None, :, None]) == pytest.approx(square / mean**2 - 1, rel=1e-6)
    for gone in (0.25, 0.5, 0.8):
        there = np.where(np.arange(20) < round(20 * gone), 37.0, 0.0)
        assert mass_variance(there[None, :, None]) == pytest.approx((1 - gone) / gone)
    hidden = np.where(np.arange(20) < 10, 37.0, np.nan)
    assert mass_variance(hidden[None, :, None]) == 0.0
    assert np.isnan(mass_variance(np.full((1, 20, 1), np.nan)))


def test_missing_frames_are_counted_and_hidden_ones_are_not():
    tracks = thing(np.full(40, 100.0))
    for fill, share in ((0.0, 0.25), (np.nan, 0.0)):
        areas, positions = tracks.areas.copy(), tracks.positions.copy()
        areas[:, 30:], positions[:, 30:] = fill, np.nan
        assert Tracks(positions, areas, FPS).missing() == pytest.approx(share)
    empty = Tracks(np.full((1, 40, 0, 2), np.nan), np.zeros((1, 40, 0)), FPS)
    assert empty.missing() == 1.0
    assert np.isnan(energy_error(energy(empty, 9.81))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"areas": np.ones((1, 39, 1))}, "positions"),
        ({"fps": 0.0}, "positive fps"),
        ({"scale": -1.0}, "positive fps and scale"),
        ({"radii": np.ones(1)}, "radii"),
    ],
)
def test_tracks_that_do_not_fit_together_are_refused(change, message):
    given = {"positions": np.zeros((1, 40, 1, 2)), "areas": np.ones((1, 40, 1)), "fps": FPS}
    with pytest.raises(ConfigError, match=message):
        Tracks(**given | change)
    with pytest.raises(ConfigError, match="amounts"):
        mass_variance(np.ones(3))
