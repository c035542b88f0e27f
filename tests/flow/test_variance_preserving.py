"""CogVideoX's schedule: the change of variables between its coordinates and the flow's, against DDIM written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Schedule
from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline
from tests.reference import COGVIDEOX_SCHEDULER, relative_error

SMALL = COGVIDEOX_SCHEDULER  # 2B
LARGE = COGVIDEOX_SCHEDULER | {"snr_shift_scale": 1.0}  # 5B and 1.5
CONFIGS = pytest.mark.parametrize("config", [SMALL, LARGE], ids=["2b", "5b"])


def squared_alphas(config) -> np.ndarray:
    """alpha^2 of every timestep, as in the papers: step by step, shifted, and with zero terminal SNR."""
    roots = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"])
    squared, product = [], 1.0
    for root in roots:
        product *= 1 - root**2
        ratio = product / (1 - product) / config["snr_shift_scale"]
        squared.append(ratio / (1 + ratio))
    alpha = np.sqrt(squared)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def ddim(z, v, now, then):
    """The DDIM step of a v-prediction from alpha^2 = now to alpha^2 = then (arXiv 2010.02502, eq. 12, eta 0)."""
    x0 = now**0.5 * z - (1 - now) ** 0.5 * v
    noise = (1 - now) ** 0.5 * z + now**0.5 * v
    return then**0.5 * x0 + (1 - then) ** 0.5 * noise


@CONFIGS
def test_an_euler_step_is_a_ddim_step_at_every_timestep(config):
    schedule, squared = Schedule.from_config(config), squared_alphas(config)
    rng = np.random.default_rng(0)
    z, v = (rng.standard_normal((1000, 2, 3, 4, 4)) for _ in range(2))
    now = squared[:, None, None, None, None]
    then = np.append(np.ones(20), squared[:-20])[:, None, None, None, None]  # 50 steps: t - 20, and clean before 0
    sigma, end = schedule.sigmas, np.append(np.zeros(20), schedule.sigmas[:-20])
    x = z / (now**0.5 + (1 - now) ** 0.5)
    field = schedule.velocity(jnp.asarray(v, jnp.float32), jnp.asarray(x, jnp.float32), sigma)
    stepped = x + (end - sigma)[:, None, None, None, None] * field
    ours = np.asarray(schedule.to_network(stepped, end))
    expected = ddim(z, v, now, then)
    # One float32 rounding of sigma and of the state each; 1e-5 is the bar.
    for t in (*range(0, 1000, 37), 999):
        assert relative_error(ours[t], expected[t]) <= 2e-6, t
    assert np.abs(ours - expected).max() <= 1e-5


@CONFIGS
def test_the_velocity_is_the_derivative_of_the_states(config):
    """x(sigma) = (1 - sigma) x0 + sigma noise has the derivative noise - x0, whatever v hides it in."""
    schedule, squared = Schedule.from_config(config), squared_alphas(config)
    x0, noise = np.random.default_rng(1).standard_normal((2, 1000, 1, 1, 1, 4))
    alpha, s = (np.sqrt(a)[:, None, None, None, None] for a in (squared, 1 - squared))
    sigma = schedule.sigmas[:, None, None, None, None]
    x = jnp.asarray((1 - sigma) * x0 + sigma * noise, jnp.float32)
    assert relative_error(schedule.to_network(x, schedule.sigmas), alpha * x0 + s * noise) <= 1e-6
    field = schedule.velocity(jnp.asarray(alpha * noise - s * x0, jnp.float32), x, schedule.sigmas)
    assert relative_error(field, noise - x0) <= 2e-6


@CONFIGS
def test_the_ends_are_stated(config):
    schedule = Schedule.from_config(config)
    assert schedule.sigma_min_trained == pytest.approx({3.0: 0.0481, 1.0: 0.0283}[config["snr_shift_scale"]], abs=1e-4)
    assert schedule.sigma_max == schedule.sigmas[-1] == 1.0
    assert (np.diff(schedule.sigmas) > 0).all()


@CONFIGS
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 61, 100, 333, 1000])
def test_grids_have_the_trailing_timesteps_and_end_at_a_clean_state(config, steps):
    schedule = Schedule.from_config(config)
    grid = schedule.grid(steps)
    assert grid.shape == (steps + 1,)
    assert grid[0] == 1.0
    assert grid[-1] == 0.0
    expected = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    np.testing.assert_array_equal(schedule.timestep(schedule.rounded(grid[:-1])), expected)


def test_integer_timesteps_survive_float32_inside_a_program():
    schedule = Schedule.from_config(SMALL)
    labels = schedule.rounded(schedule.sigmas)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(jax.jit(schedule.timestep)(jnp.asarray(labels)), np.arange(1000))
    np.testing.assert_array_equal(schedule.timestep(labels), np.arange(1000))


def test_labels_between_timesteps_are_interpolated_and_below_the_trained_ones_are_0():
    schedule = Schedule.from_config(SMALL)
    between = (schedule.sigmas[500] + 3 * schedule.sigmas[501]) / 4
    assert schedule.timestep(between) == pytest.approx(500.75, abs=1e-3)
    assert schedule.timestep(jnp.float32(between)) == pytest.approx(500.75, abs=1e-3)
    assert schedule.timestep(schedule.rounded(between)) == 501
    np.testing.assert_array_equal(schedule.timestep(np.array([0.0, 0.02, schedule.sigma_min_trained])), 0)
    assert jax.grad(schedule.timestep)(float(between)) == pytest.approx(
        1 / (schedule.sigmas[501] - schedule.sigmas[500]), rel=1e-3
    )


@pytest.fixture(scope="module")
def pipeline():
    config = CogVideoXTransformerConfig(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=12, num_layers=2, sample_width=8, sample_height=4, sample_frames=5,
    )  # fmt: skip
    network = Network.init(CogVideoXTransformer, config, 3)
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return Pipeline(network.replace(jax.tree.unflatten(tree, leaves)), CogVideoX(), Schedule.from_config(SMALL))


def state(seed=5):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, 2, 4, 8, 4)).astype(np.float32), rng.standard_normal((1, 3, 12)).astype(np.float32)


def test_ddim_label_is_the_published_inversion(pipeline):
    """v of the state at its own level, told the next timestep; then a DDIM step up (100 of them)."""
    x0, text = state()
    squared = squared_alphas(SMALL)
    z, now = x0.astype(np.float64), 1.0
    for t in range(9, 1000, 10):
        v = np.asarray(pipeline.denoise(z.astype(np.float32), t, text), np.float64)
        z, now = ddim(z, v, now, squared[t]), squared[t]
    ours = jaxdiff.invert(pipeline, x0, Conditioning(text=text), steps=100, solver="ddim_label")
    assert relative_error(ours.latents, z) <= 1e-4  # at sigma 1 both coordinates are the same
    # Telling the network its own timestep instead is another inversion: the bound above can tell them apart.
    plain = jaxdiff.invert(pipeline, x0, Conditioning(text=text), steps=100, labels="scheduler")
    assert relative_error(plain.latents, z) > 1e-3


def test_denoise_is_the_raw_output_and_velocity_the_field(pipeline):
    x, text = state(8)
    for t in (0, 500, 999):
        sigma = np.float32(pipeline.schedule.sigmas[t])
        v = pipeline.denoise(pipeline.schedule.to_network(jnp.asarray(x), sigma), t, text)
        alpha, s = (f(squared_alphas(SMALL)[t]) for f in (np.sqrt, lambda a: np.sqrt(1 - a)))
        z = x * (alpha + s)
        expected = (s * z + alpha * np.asarray(v)) - (alpha * z - s * np.asarray(v))
        assert relative_error(pipeline.velocity(x, sigma, text), expected) <= 1e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SMALL | {"prediction_type": "epsilon"}, "prediction_type='epsilon' is not supported"),
        (SMALL | {"timestep_spacing": "leading"}, "timestep_spacing='leading' is not supported"),
        (SMALL | {"rescale_betas_zero_snr": False}, "rescale_betas_zero_snr=False is not supported"),
        (SMALL | {"beta_schedule": "linear"}, "beta_schedule='linear' is not supported"),
        (SMALL | {"set_alpha_to_one": False}, "set_alpha_to_one=False is not supported"),
        (SMALL | {"trained_betas": [0.1]}, "trained_betas"),
        (SMALL | {"snr_shift_scal": 1.0}, "did you mean 'snr_shift_scale'"),
        (SMALL | {"beta_start": 0.5}, "0 < beta_start <= beta_end < 1"),
        ({"_class_name": "CogVideoXDPMScheduler"}, "prediction_type='epsilon'"),  # the class's own default
    ],
)
def test_what_cannot_be_reproduced_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Schedule.from_config(config)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ConfigError, match="1001 steps are more than the 1000 timesteps"):
        Schedule.from_config(SMALL).grid(1001)


def test_the_shift_of_the_reference_is_assumed_where_the_file_has_none():
    silent = {key: value for key, value in SMALL.items() if key != "snr_shift_scale"}
    assert Schedule.from_config(silent) == Schedule.from_config(SMALL)
    assert Schedule.from_config(SMALL) != Schedule.from_config(LARGE)


def test_schedules_are_hashable_and_both_classes_are_one_field():
    schedule = Schedule.from_config(SMALL)
    noisy = Schedule.from_config(SMALL | {"_class_name": "CogVideoXDPMScheduler"})
    assert dataclasses.asdict(schedule) == dataclasses.asdict(noisy)
    assert (schedule.solver.name, noisy.solver.name) == ("euler", "dpmpp_2m_sde")
    assert schedule != noisy
    assert hash(schedule) == hash(dataclasses.replace(schedule))
