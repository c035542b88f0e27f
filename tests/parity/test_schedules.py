"""Sigma grids and timesteps against the diffusers schedulers, bit for bit."""

import numpy as np
import pytest

from jaxdiff.flow import Schedule
from jaxdiff.flow.schedule import SCHEDULERS
from tests.parity.record_schedules import reference
from tests.parity.schedules import CASES, CONFIGS

# DPMSolverMultistepScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(("number", "steps"), CASES)
def test_grid_and_timesteps_equal_the_scheduler(number, steps):
    schedule = Schedule.from_config(CONFIGS[number])
    sigmas, timesteps = reference(CONFIGS[number], steps)
    grid = schedule.grid(steps)
    np.testing.assert_array_equal(grid.astype(np.float32), sigmas)
    np.testing.assert_array_equal(schedule.timestep(schedule.rounded(grid[:-1])), timesteps)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_key_of_the_scheduler_is_known(name):
    import inspect

    import diffusers

    keys = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    assert keys == SCHEDULERS[name].KEYS
