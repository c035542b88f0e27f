"""The published schedulers' samples, recorded from diffusers (tests/parity/record_samplers.py), step by step."""

import json

import numpy as np
import pytest

from jaxdiff.flow import Schedule
from tests.flow.sampler_cases import CASES, GOLDEN, RUNS, VARIANCE_PRESERVING, walk
from tests.reference import relative_error

RECORDED = np.load(GOLDEN)
CONFIGS = json.loads(str(RECORDED["cases"]))


def test_the_recorded_configurations_are_these():
    assert json.loads(json.dumps({name: config for name, (config, _) in CASES.items()})) == CONFIGS


@pytest.mark.parametrize(("name", "steps"), RUNS)
def test_every_state_of_a_sample_is_the_schedulers(name, steps):
    ours, theirs = walk(CONFIGS[name], steps), RECORDED[f"{name}_{steps}_states"]
    assert ours.shape == theirs.shape
    # Some fifty sums in float32, of a field that is not linear; seen up to 2e-6.
    assert relative_error(ours, theirs) <= 1e-5
    if steps > 1:  # the samplers differ by more than that
        moved = np.abs(theirs[-1] - theirs[0]).max()
        assert moved > 0.1


@pytest.mark.parametrize(("name", "steps"), RUNS)
def test_timesteps_are_the_schedulers(name, steps):
    schedule = Schedule.from_config(CONFIGS[name])
    told = schedule.timestep(schedule.rounded(schedule.grid(steps)[:-1]))
    np.testing.assert_array_equal(told, RECORDED[f"{name}_{steps}_timesteps"])


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_sigmas_are_those_of_the_schedulers_alphas(name):
    squared = RECORDED[f"{name}_alphas"]
    s = np.sqrt(1 - squared)
    assert squared[-1] == 0
    np.testing.assert_allclose(Schedule.from_config(CONFIGS[name]).sigmas, s / (np.sqrt(squared) + s), rtol=1e-12)
