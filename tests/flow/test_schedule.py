"""Schedules: goldens recorded from diffusers (tests/parity/record_schedules.py), labels, and refused
configurations.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import DPMpp2M, DPMpp2MSDE, Euler, OfficialUniPC, Schedule, UniPC

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "schedules.npz")
CONFIGS = json.loads(str(GOLDEN["configs"]))
CASES = [tuple(map(int, name.split("_")[1:])) for name in GOLDEN.files if name.startswith("sigmas")]
WAN = CONFIGS[1]
EULER = CONFIGS[5]
DPM = CONFIGS[11]


@pytest.mark.parametrize(("number", "steps"), CASES)
def test_grid_and_rounded_timesteps_are_the_schedulers_own(number, steps):
    schedule = Schedule.from_config(CONFIGS[number])
    grid = schedule.grid(steps)
    assert grid.dtype == np.float64
    # bit for bit: both are float32 roundings of the same float64 numbers
    np.testing.assert_array_equal(grid.astype(np.float32), GOLDEN[f"sigmas_{number}_{steps}"])
    timesteps = schedule.timestep(schedule.rounded(grid[:-1]))
    np.testing.assert_array_equal(timesteps, GOLDEN[f"timesteps_{number}_{steps}"])


def test_integer_timesteps_survive_float32_inside_a_program():
    wan = Schedule.from_config(WAN)
    labels = wan.rounded((np.arange(1000) + 0.5) / 1000)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(jax.jit(wan.timestep)(jnp.asarray(labels)), np.arange(1000))


def test_own_timesteps_are_not_rounded_and_have_a_derivative():
    wan = Schedule.from_config(WAN)
    assert wan.timestep(0.12345) == pytest.approx(123.45, rel=1e-7)  # float64
    for label in (0.12345, 0.5):  # 0.5 is an integer timestep, where the value is snapped
        assert jax.grad(wan.timestep)(label) == 1000


def test_wan_is_told_999_at_sigma_one_and_0_at_sigma_zero():
    wan = Schedule.from_config(WAN)
    np.testing.assert_array_equal(wan.timestep(wan.rounded([1.0, 1 - 1e-6, 0.0])), [999, 999, 0])


def test_the_official_grid_of_wan_starts_lower():
    """Numbers of the released code at 5 steps and a shift of 3, beside those of the diffusers scheduler."""
    official, diffusers = OfficialUniPC(shift=3.0), Schedule.from_config(WAN)
    np.testing.assert_allclose(official.grid(5), [0.99967, 0.92272, 0.81781, 0.66630, 0.42827, 0], atol=5e-6)
    np.testing.assert_allclose(diffusers.grid(5), [0.999999, 0.92317, 0.81843, 0.66722, 0.42979, 0], atol=5e-6)
    for schedule, want in ((official, [999, 922, 817, 666, 428]), (diffusers, [999, 923, 818, 667, 429])):
        np.testing.assert_array_equal(schedule.timestep(schedule.rounded(schedule.grid(5)[:-1])), want)


@pytest.mark.parametrize("schedule", [*map(Schedule.from_config, (WAN, EULER, DPM)), OfficialUniPC(shift=3.0)], ids=str)
def test_the_stated_ends_are_those_of_the_grids(schedule):
    for steps in (1, 2, 30):
        assert schedule.grid(steps)[0] == pytest.approx(schedule.sigma_max, rel=1e-12)
    assert schedule.sigma_min_trained == 0.0


def test_every_schedule_names_its_own_steps():
    changed = {"solver_order": 1, "disable_corrector": [0, 1]}
    found = [Schedule.from_config(config).solver for config in (WAN, WAN | changed, EULER, DPM)]
    assert found == [UniPC(), UniPC(1, (0, 1)), Euler(), DPMpp2M()]
    assert Schedule.from_config(DPM | {"algorithm_type": "sde-dpmsolver++"}).solver == DPMpp2MSDE()


def test_schedules_are_hashable_and_compared_by_value():
    a, b = Schedule.from_config(WAN), Schedule.from_config(dict(WAN))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Schedule.from_config(WAN | {"flow_shift": 5.0})
    assert a != Schedule.from_config(EULER)  # same shift, another class


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WAN | {"flow_shfit": 3.0}, "did you mean 'flow_shift'"),
        (EULER | {"shfit": 3.0}, "did you mean 'shift'"),
        (WAN | {"_class_name": "UniPCMultistepSheduler"}, "did you mean 'UniPCMultistepScheduler'"),
        ({"shift": 3.0}, "unknown scheduler class None"),
        (WAN | {"_class_name": "DDIMScheduler"}, "unknown scheduler class 'DDIMScheduler'"),
        (WAN | {"use_exponential_sigmas": True}, "use_exponential_sigmas=True is not supported"),
        (WAN | {"prediction_type": "epsilon"}, "prediction_type='epsilon' is not supported"),
        (WAN | {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        ({"_class_name": "UniPCMultistepScheduler"}, "prediction_type='epsilon'"),  # the class's own default
        (WAN | {"solver_order": 3}, "solver_order=3 is not supported; only 2 or 1"),
        (WAN | {"solver_type": "bh1"}, "solver_type='bh1' is not supported"),
        (WAN | {"predict_x0": False}, "predict_x0=False is not supported"),
        (WAN | {"lower_order_final": False}, "lower_order_final=False is not supported"),
        (DPM | {"algorithm_type": "dpmsolver"}, "algorithm_type='dpmsolver' is not supported"),
        (DPM | {"solver_order": 3}, "solver_order=3 is not supported"),
        (DPM | {"use_flow_sigmas": False}, "use_flow_sigmas=False is not supported"),
        (DPM | {"use_lu_lambdas": True}, "use_lu_lambdas=True is not supported"),
        (DPM | {"disable_corrector": []}, "unknown key 'disable_corrector'"),
        (EULER | {"use_beta_sigmas": True}, "use_beta_sigmas=True is not supported"),
        (EULER | {"time_shift_type": "cubic"}, "time_shift_type='cubic' is not supported"),
        (EULER | {"shift": None}, "must be numbers"),
        (EULER | {"shift": -1.0}, "positive shift"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.from_config(config)


def test_metadata_keys_are_ignored():
    assert Schedule.from_config(WAN | {"_anything": 1}) == Schedule.from_config(WAN)


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, "20", 400_000])
def test_impossible_step_counts_are_refused(steps):
    with pytest.raises(ConfigError, match="steps"):
        Schedule.from_config(WAN).grid(steps)
