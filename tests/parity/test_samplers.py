"""Samples of every scheduler on a field in closed form, against diffusers live."""

import pytest

from tests.flow.sampler_cases import CASES, RUNS, walk
from tests.parity.record_samplers import reference
from tests.reference import relative_error

# DPMSolverMultistepScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize(("name", "steps"), RUNS)
def test_every_state_of_a_sample_is_the_schedulers(name, steps):
    theirs = reference(CASES[name][0], steps)["states"]
    assert relative_error(walk(CASES[name][0], steps), theirs) <= 1e-5
