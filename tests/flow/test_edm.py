"""Cosmos' schedules: EDM's coordinates against the flow's, written out."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import EDM, Euler, Schedule, UniPC, UniPCKarras
from ports.writer import _scheduler_config
from tests.reference import COSMOS_EDM, COSMOS_UNIPC, LTX_PLAIN, relative_error

GOLDENS = Path(__file__).parent.parent / "goldens"
BOTH = pytest.mark.parametrize("config", [COSMOS_EDM, COSMOS_UNIPC], ids=["edm", "unipc"])


@pytest.mark.parametrize("steps", json.loads((GOLDENS / "cosmos.json").read_text())["steps"])
@pytest.mark.parametrize(("kind", "config"), [("edm", COSMOS_EDM), ("unipc", COSMOS_UNIPC)])
def test_grids_are_the_recorded_ones_of_the_scheduler(kind, config, steps):
    with np.load(GOLDENS / "cosmos.npz") as recorded:
        np.testing.assert_array_equal(
            Schedule.from_config(config).grid(steps).astype(np.float32), recorded[f"{kind}_{steps}"]
        )


def test_an_euler_step_is_edms_at_every_level():
    """Euler's step of ``dy / drho = (y - D) / rho`` with EDM's denoiser D (arXiv 2206.00364, eq. 7 and algorithm 1)."""
    schedule = Schedule.from_config(COSMOS_EDM)
    grid = schedule.grid(35)[:-1]
    rng = np.random.default_rng(0)
    for sigma, after in itertools.pairwise(grid):
        rho, then = sigma / (1 - sigma), after / (1 - after)
        y, output = (1 + rho) * rng.standard_normal((1, 2, 3, 4, 4)), rng.standard_normal((1, 2, 3, 4, 4))
        denoised = y / (1 + rho) - rho / (1 + rho) * output
        expected = y + (then - rho) * (y - denoised) / rho
        x = jnp.asarray(y / (1 + rho), jnp.float32)
        field = schedule.velocity(jnp.asarray(output, jnp.float32), x, sigma)
        ours = x + (after - sigma) * field
        assert relative_error(ours * (1 + then), expected) <= 1e-5, sigma


def test_the_state_that_the_network_takes_is_the_flows_own():
    schedule = Schedule.from_config(COSMOS_EDM)
    x = jnp.ones((1, 2, 2, 2, 4))
    assert schedule.to_network(x, 0.3) is x


@pytest.mark.parametrize(
    ("config", "low", "high", "solver"),
    [(COSMOS_EDM, 0.002 / 1.002, 80 / 81, Euler()), (COSMOS_UNIPC, 0.01 / 1.01, 200 / 201, UniPC())],
)
def test_the_ends_and_the_steps_are_stated(config, low, high, solver):
    schedule = Schedule.from_config(config)
    assert schedule.sigma_max == pytest.approx(high, rel=1e-12)
    assert schedule.sigma_min_trained == pytest.approx(low, rel=1e-12)
    assert schedule.solver == solver
    grid = schedule.grid(10)
    assert grid[[0, -2, -1]] == pytest.approx([high, low, 0], abs=1e-7)
    assert grid.shape == (11,)


@BOTH
def test_roots_of_the_levels_are_even(config):
    grid = Schedule.from_config(config).grid(9)[:-1]
    roots = (grid / (1 - grid)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots, 2), 0, atol=1e-5)  # of float32 sigmas near 1


@BOTH
def test_the_network_is_told_sigma_itself_and_nothing_below_the_smallest(config):
    schedule = Schedule.from_config(config)
    grid = schedule.grid(5)
    low = schedule.sigma_min_trained
    for labels in (grid.astype(np.float32), jnp.asarray(grid, jnp.float32)):
        told = schedule.timestep(labels)
        assert told.dtype == np.float32
        np.testing.assert_allclose(told, np.maximum(grid, low), rtol=1e-6)
    assert schedule.rounded(grid).dtype == np.float32
    np.testing.assert_array_equal(schedule.rounded(grid), grid.astype(np.float32))
    assert jax.jit(schedule.timestep)(0.5) == 0.5


@BOTH
def test_what_is_written_is_read_as_the_same_schedule(config):
    schedule = Schedule.from_config(config)
    assert Schedule.from_config(_scheduler_config(schedule)) == schedule
    assert hash(schedule) == hash(dataclasses.replace(schedule))
    other = dataclasses.replace(schedule, rho_max=50.0)
    assert Schedule.from_config(_scheduler_config(other)).sigma_max == pytest.approx(50 / 51)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LTX_PLAIN | {"use_karras_sigmas": True}, "sigma_data=None is not supported; only 1.0"),
        (COSMOS_EDM | {"final_sigmas_type": "zero"}, "final_sigmas_type='zero' is not supported"),
        (COSMOS_EDM | {"sigma_data": 0.5}, "sigma_data=0.5 is not supported"),
        (COSMOS_EDM | {"use_dynamic_shifting": True}, "use_dynamic_shifting=True is not supported"),
        (COSMOS_EDM | {"sigma_maximum": 80.0}, "did you mean 'sigma_max'"),
        (COSMOS_EDM | {"sigma_max": 0.001}, "0 < sigma_min < sigma_max"),
        (COSMOS_UNIPC | {"sigma_max": None}, "0 < sigma_min < sigma_max, got sigma_min=0.01 and sigma_max=0.0"),
        (COSMOS_UNIPC | {"use_flow_sigmas": False}, "use_flow_sigmas=False is not supported"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.from_config(config)


def test_one_class_name_is_two_grids():
    assert type(Schedule.from_config(COSMOS_EDM)) is EDM
    assert type(Schedule.from_config(COSMOS_UNIPC)) is UniPCKarras
    plain = {key: value for key, value in COSMOS_UNIPC.items() if not key.startswith("sigma")}
    assert type(Schedule.from_config(plain | {"use_karras_sigmas": False})) is not UniPCKarras
