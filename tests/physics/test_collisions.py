"""Collision consistency, on collisions whose answer is known in closed form."""

import numpy as np
import pytest

from jaxdiff.physics.collisions import collisions, consistency
from jaxdiff.physics.known import collided, tracks_of
from jaxdiff.physics.metrics import energy, energy_error

FPS, RADIUS = 30.0, 8.0
TIME = np.arange(30) / FPS
PLACES, SPEEDS = [[20.0, 50.0], [80.0, 50.0]], [[120.0, 0.0], [0.0, 0.0]]


def meeting(places=PLACES, speeds=SPEEDS, radii=(RADIUS, RADIUS), restitution=1.0, depth=0.0, noise=0.0, pull=0.0):
    radii = np.array(radii)
    path = collided(TIME, places, speeds, radii, radii**2, restitution, depth)
    path = path + np.random.default_rng(0).standard_normal(path.shape) * noise
    path[..., 1] += pull * TIME[:, None] ** 2 / 2
    return tracks_of(path, radii, FPS)


def only(tracks, **given):
    (event,) = collisions(tracks, **given)
    return event


def test_equal_masses_swap_their_velocities_and_score_1():
    tracks = meeting()
    event = only(tracks)
    assert event.momentum == pytest.approx(0, abs=1e-9)
    assert event.restitution == pytest.approx(1)
    assert event.penetration == 0
    assert event.causal
    assert consistency([event], 1) == 1
    assert max(energy_error(energy(tracks, 0.0)))[0] < 1e-9  # what one loses the other has
    contact = (60 - 2 * RADIUS) / 120 * FPS
    assert event.frame == pytest.approx(contact, abs=1.5)


@pytest.mark.parametrize("restitution", [0.3, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("pull", [0.0, 200.0])
def test_oblique_collisions_of_unequal_things_show_their_restitution(restitution, noise, pull):
    speeds = [[150.0, 20.0], [-60.0, 0.0]]
    tracks = meeting([[15.0, 46.0], [85.0, 56.0]], speeds, (7.0, 11.0), restitution, noise=noise, pull=pull)
    event = only(tracks, gravity=pull)
    # A velocity from three frames has an error of noise / sqrt(2) pixels a frame, here beside 7 pixels a frame.
    assert event.restitution == pytest.approx(restitution, abs=1e-6 + 0.8 * noise)
    assert event.momentum < 1e-9 + 0.5 * noise
    assert event.consistent


def test_a_thing_that_passes_through_another_has_e_minus_1_and_scores_0():
    free = np.asarray(PLACES) + np.asarray(SPEEDS) * TIME[:, None, None]
    event = only(tracks_of(free, [RADIUS, RADIUS], FPS))
    assert event.restitution == pytest.approx(-1)
    assert not event.causal  # a contact without a jump
    assert event.penetration > 1
    assert consistency([event], 1) == 0


def test_a_kick_without_a_contact_has_no_cause():
    path = np.asarray(PLACES) + np.zeros((30, 1, 1))
    path[12:, 1, 0] += 90 * (TIME[12:] - TIME[12])
    event = only(tracks_of(path, [RADIUS, RADIUS], FPS))
    assert event.things == (1,)
    assert not event.causal
    assert np.isnan(event.restitution)
    assert consistency([event], 2).tolist() == pytest.approx([0, np.nan], nan_ok=True)


def test_a_tenth_of_a_radius_of_penetration_is_told_as_one_tenth():
    # Contact in a frame: the depth is seen when it is largest.
    places = [[20.0, 50.0], [20.0 + 2 * RADIUS - 0.1 * RADIUS + 40.0, 50.0]]
    event = only(meeting(places, depth=0.1 * RADIUS))
    assert event.penetration == pytest.approx(0.1, abs=1e-9)
    assert event.consistent
    deep = only(meeting([[20.0, 50.0], [20.0 + 1.5 * RADIUS + 40.0, 50.0]], depth=0.5 * RADIUS))
    assert deep.penetration == pytest.approx(0.5, abs=1e-9)
    assert not deep.consistent


def test_momentum_from_nowhere_is_seen():
    path = meeting().positions[0].copy()
    hit = int(np.ceil((60 - 2 * RADIUS) / 120 * FPS))
    path[hit:, 1, 0] += 120 * (TIME[hit:] - TIME[hit - 1])  # leaves at twice the speed
    event = only(tracks_of(path, [RADIUS, RADIUS], FPS))
    assert event.momentum == pytest.approx(1, abs=0.05)
    assert event.restitution == pytest.approx(2, abs=0.05)
    assert not event.consistent


def test_bounces_off_known_walls_have_a_cause_and_in_the_open_only_upward_ones_may():
    path = np.stack([100 - np.abs(120 * (TIME - 0.5)), np.full(30, 40.0)], -1)[:, None]  # turns at x = 100
    tracks = tracks_of(path, [RADIUS], FPS)
    inf = np.inf
    assert collisions(tracks, walls=(-inf, -inf, 100 + RADIUS, inf)) == ()
    assert not only(tracks, walls=(-inf, -inf, 150.0, inf)).causal
    assert not only(tracks).causal
    upward = tracks_of(path[..., ::-1], [RADIUS], FPS)
    assert collisions(upward) == ()


def test_things_that_rest_against_each_other_or_are_hidden_when_they_meet_are_no_collision_or_still_one():
    still = np.broadcast_to([[20.0, 50.0], [20.0 + 2 * RADIUS, 50.0]], (30, 2, 2))
    assert collisions(tracks_of(still, [RADIUS, RADIUS], FPS)) == ()
    tracks = meeting()
    hit = int((60 - 2 * RADIUS) / 120 * FPS)
    tracks.positions[:, hit - 1 : hit + 2] = np.nan  # one blob while they touch
    event = only(tracks)
    assert event.restitution == pytest.approx(1)
    assert event.causal
