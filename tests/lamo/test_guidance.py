"""Guides in `jaxdiff.sample`, on a flow whose guided and plain solutions are known in closed form.

Data that are standard normal in every coordinate have the velocity ``a(s) x`` with ``a = (2s - 1) / q``, ``q = (1-s)^2 + s^2``,
and predict the clean latent ``(1 - s) / q x``. A motion field that expects no motion makes the energy of three latent frames
``|z_2 - z_0|^2``, whose gradient turns the guided flow into a linear one in ``z_2 - z_0`` and leaves all else as it was.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Schedule, sample
from jaxdiff.lamo import MotionField, MotionFieldConfig, MotionGuidance
from jaxdiff.models.network import Network
from tests.flow.pipelines import WAN

TINY = MotionFieldConfig(channels=2, text_dim=3, width=8, blocks=1, groups=2, condition_width=4, squeeze=2)
SHAPE, STEPS = (2, 3, 4, 4, 2), 24
COND = Conditioning(text=jnp.ones((1, 2, 3)))
COGVIDEOX = Schedule.from_config(
    {
        "_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
)  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Standard normal data: a pipeline without a network."""

    schedule: Schedule = dataclasses.field(default=WAN, metadata={"static": True})

    def evaluate(self, latents, sigma, cond, *, label=None, taps=(), edits=(), key=None):
        return (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2) * latents, {}


def noise():
    return jax.random.normal(jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def still():
    """A field that expects no motion."""
    return Network.init(MotionField, TINY)


@pytest.fixture(scope="module")
def moving(still):
    """A field with random weights."""
    leaves, tree = jax.tree.flatten(still.params)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return still.replace(jax.tree.unflatten(tree, drawn))


def difference(latents):
    return np.asarray(latents[:, 2] - latents[:, 0])


def lowered(guide):
    def run(pipeline, x, cond):
        return sample(pipeline, x, cond, steps=4, guide=guide)

    return jax.jit(run).lower(Gaussian(), noise(), COND).as_text()


def test_a_scale_that_is_known_to_be_0_compiles_to_plain_sampling(moving):
    plain = lowered(None)
    assert lowered(MotionGuidance(moving, 0.0)) == plain
    assert lowered(MotionGuidance(moving, 0)) == plain
    assert len(lowered(MotionGuidance(moving, 1e-9))) > len(plain)  # and one that is not 0 does not
    assert not sample(Gaussian(), noise(), COND, steps=4, guide=MotionGuidance(moving, 0.0)).metrics


def test_as_the_scale_goes_to_0_the_sample_goes_to_the_plain_one_linearly(moving):
    plain = sample(Gaussian(), noise(), COND, steps=STEPS).latents
    scales = np.array([1e-3, 2e-3, 4e-3])
    moved = [
        np.asarray(sample(Gaussian(), noise(), COND, steps=STEPS, guide=MotionGuidance(moving, s, "velocity")).latents)
        - plain
        for s in scales.tolist()
    ]
    sizes = np.array([np.linalg.norm(m) for m in moved])
    assert sizes[0] > 1e-3
    np.testing.assert_allclose(sizes / scales, sizes[0] / scales[0], rtol=0.03)  # what is left is quadratic
    np.testing.assert_allclose(moved[1], 2 * moved[0], atol=0.03 * np.abs(moved[1]).max())


@pytest.mark.parametrize(("solver", "schedule"), [("heun", WAN), ("unipc", WAN), ("midpoint", COGVIDEOX)])
def test_guidance_moves_the_linear_gaussian_flow_where_the_algebra_says(still, solver, schedule):
    """``d' = (a + 4 L s (1 - s) / q) d`` for d = z_2 - z_0, whose integral over (0, 1) is 0 + 4 L (pi / 4 - 1 / 2)."""
    guide = MotionGuidance(still, 0.7, "velocity", 1.0)
    run = sample(Gaussian(schedule), noise(), COND, steps=STEPS, solver=solver, guide=guide)
    factor = np.exp(-4 * 0.7 * (np.pi / 4 - 0.5))
    # What is left is the solvers' own error in 24 steps.
    np.testing.assert_allclose(difference(run.latents), factor * difference(noise()), rtol=5e-3)
    plain = sample(Gaussian(schedule), noise(), COND, steps=STEPS, solver=solver).latents
    np.testing.assert_allclose(run.latents[:, 1], plain[:, 1], atol=1e-5)
    np.testing.assert_allclose(run.latents[:, 0] + run.latents[:, 2], plain[:, 0] + plain[:, 2], atol=1e-5)


@pytest.mark.parametrize("space", ["noise", "velocity"])
def test_ddim_steps_of_a_v_prediction_model_are_guided_as_the_algebra_says(still, space):
    """Every step multiplies d by ``1 + h (a + 4 L w)`` with ``w = s (1 - s) / q`` in velocity space and, with
    r = s / (1 - s), ``w = r (1 + r) (1 - s) / q`` in noise space; the noisiest fifth by ``1 + h a``."""
    scale = 0.05
    run = sample(Gaussian(COGVIDEOX), noise(), COND, steps=STEPS, guide=MotionGuidance(still, scale, space))
    sigmas = np.asarray(run.sigmas, np.float64)
    s, h = sigmas[:-1], np.diff(sigmas)
    q, r = (1 - s) ** 2 + s**2, s / np.maximum(1 - s, 1e-12)
    weight = s * (1 - s) / q if space == "velocity" else r * (1 + r) * (1 - s) / q
    on = np.arange(STEPS) / STEPS >= 0.2
    factor = np.prod(1 + h * ((2 * s - 1) / q + np.where(on, 4 * scale * weight, 0)))
    np.testing.assert_allclose(difference(run.latents), factor * difference(noise()), rtol=1e-3)


def test_every_step_reports_its_energy_and_change_and_the_noisiest_fifth_is_left_alone(still):
    guide = MotionGuidance(still, 0.3, "velocity")
    run = sample(Gaussian(), noise(), COND, steps=STEPS, solver="euler", guide=guide)
    energy, change = (np.asarray(run.metrics[name]) for name in ("energy", "change"))
    assert energy.shape == change.shape == (STEPS, SHAPE[0])
    off = np.arange(STEPS) / STEPS < 0.2
    assert not change[off].any() and (change[~off] > 0).all()
    # The first state is the noise, and what it predicts is known.
    s = run.sigmas[0]
    clean = (1 - s) / ((1 - s) ** 2 + s**2) * difference(noise())
    np.testing.assert_allclose(energy[0], (clean**2).sum((1, 2, 3)), rtol=1e-3, atol=1e-9)
    plain = sample(Gaussian(), noise(), COND, steps=STEPS, solver="euler")
    left = [(difference(made.latents) ** 2).sum((1, 2, 3)) for made in (run, plain)]
    assert (left[0] < 0.9 * left[1]).all()


def test_a_faint_guide_changes_nothing_and_tells_the_scale_of_a_wanted_change(moving):
    guide = MotionGuidance(moving, 1.0, "velocity").faint()
    plain = sample(Gaussian(), noise(), COND, steps=STEPS)
    faint = sample(Gaussian(), noise(), COND, steps=STEPS, guide=guide)
    np.testing.assert_allclose(faint.latents, plain.latents, atol=1e-6)
    measured = faint.metrics["change"]
    calibrated = guide.calibrated(0.005, measured)
    run = sample(Gaussian(), noise(), COND, steps=STEPS, guide=calibrated)
    change = np.asarray(run.metrics["change"])[np.arange(STEPS) / STEPS >= 0.2]
    np.testing.assert_allclose(change.mean(), 0.005, rtol=0.1)  # the states of the guided sample are others
    np.testing.assert_allclose(guide.calibrated(0.01, measured).scale, 2 * calibrated.scale)
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        guide.calibrated(0.005, np.zeros((STEPS, 2)))
    with pytest.raises(ConfigError, match="must be positive"):
        guide.calibrated(0.0, measured)


def test_both_spaces_make_one_sample_near_the_clean_end(moving):
    grid = [0.02, 0.01, 0.0]
    ends = [
        sample(Gaussian(), noise(), COND, sigmas=grid, guide=MotionGuidance(moving, 5.0, space, 1.0)).latents
        for space in ("noise", "velocity")
    ]
    plain = sample(Gaussian(), noise(), COND, sigmas=grid).latents
    moved = [np.asarray(end - plain) for end in ends]
    assert np.abs(moved[0]).max() > 1e-4
    np.testing.assert_allclose(moved[0], moved[1], atol=0.05 * np.abs(moved[0]).max())


def test_any_function_of_the_state_guides_and_hears_the_prompt_of_each_clip():
    def towards(x, velocity, sigma, done, cond):
        clean = x - sigma * velocity
        away = clean - cond.text[:, 0, 0].reshape(-1, 1, 1, 1, 1)
        return velocity + 5.0 * sigma * away, {"away": jnp.abs(away).mean((1, 2, 3, 4))}

    told = Conditioning(text=jnp.array([-2.0, 2.0]).reshape(2, 1, 1))
    guide = jax.tree_util.Partial(towards)
    run = sample(Gaussian(), noise(), told, steps=STEPS, guide=guide, guidance_scale=2.0, negative=jnp.zeros((1, 1, 1)))
    assert run.metrics["away"].shape == (STEPS, 2)
    means = np.asarray(run.latents).mean((1, 2, 3, 4))
    assert means[0] < -0.5 and means[1] > 0.5


@pytest.mark.parametrize("solver", ["fireflow", "fixed_point"])
def test_solvers_that_do_not_evaluate_their_start_take_no_guide(still, solver):
    with pytest.raises(ConfigError, match=rf"{solver} does not evaluate the field where a step starts.*heun"):
        sample(Gaussian(), noise(), COND, steps=2, solver=solver, guide=MotionGuidance(still))


def test_a_field_of_another_model_and_too_short_a_video_are_refused(still):
    guide = MotionGuidance(still)
    guide.check(3, 2, 3)
    with pytest.raises(ConfigError, match="latents of 2 channels and text embeddings of 3, but the model has 16 and 3"):
        guide.check(3, 16, 3)
    with pytest.raises(ConfigError, match=r"2 latent frames have no two that are 2 apart.*at least 3"):
        sample(Gaussian(), noise()[:, :2], COND, steps=2, guide=guide)
