"""Fidelity measures against what they are defined to be, and against inputs whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import FixedPoint, fidelity, invert, sample
from jaxdiff.taps import Tap
from tests.flow.pipelines import WAN, inputs, tiny_wan, toy


def relative_rms(a, b):
    axes = tuple(range(1, a.ndim))
    return np.sqrt(np.mean(np.square(a - b), axes) / np.mean(np.square(b), axes))


@pytest.mark.parametrize("solver", ["euler", "ab2", "fireflow", "ddim_label"])
def test_self_convergence_compares_a_run_with_one_of_half_the_steps(solver):
    pipeline, (x, text) = toy(), inputs(3)
    coarse = WAN.grid(5)[::-1]
    fine = np.interp(np.arange(11) / 2, np.arange(6), coarse)
    errors = []
    for i in range(1, 6):
        a = invert(pipeline, x, text, sigmas=coarse[: i + 1], solver=solver).latents
        b = invert(pipeline, x, text, sigmas=fine[: 2 * i + 1], solver=solver).latents
        errors.append(relative_rms(np.asarray(a), np.asarray(b)))
    got = fidelity.self_convergence(pipeline, x, text, steps=5, solver=solver)
    # Differences of float32 states, relative 1e-7 each, over errors of 1e-3 and more.
    np.testing.assert_allclose(got["self_convergence_end"], errors[-1], rtol=1e-3)
    np.testing.assert_allclose(got["self_convergence_mean"], np.mean(errors, 0), rtol=1e-3)
    np.testing.assert_allclose(got["self_convergence_worst"], np.max(errors, 0), rtol=1e-3)
    assert all(value.shape == (3,) for value in got.values())
    sigmas, curve = fidelity.convergence_curve(pipeline, x, text, steps=5, solver=solver)
    np.testing.assert_array_equal(sigmas, coarse[1:])
    np.testing.assert_allclose(curve, errors, rtol=1e-3)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("fireflow", 2)])
def test_self_convergence_falls_with_the_solvers_order(solver, order):
    pipeline, (x, text) = toy(), inputs()
    coarse, fine = (
        fidelity.self_convergence(pipeline, x, text, sigmas=np.linspace(0, 1, n + 1), solver=solver)[
            "self_convergence_end"
        ]
        for n in (8, 16)
    )
    # 8 steps are not yet in the limit; half an order to each side tells 1 from 2.
    assert np.all(np.abs(np.log2(coarse / fine) - order) < 0.5)


def test_round_trip_tells_an_exact_inverse_from_an_approximate_one():
    pipeline, (x, text) = toy(), inputs(3)
    psnr = {}
    for solver in ("euler", "ddim_label", FixedPoint(30)):
        run = invert(pipeline, x, text, steps=20, solver=solver)
        back = fidelity.reconstruct(pipeline, run, text)
        errors = fidelity.round_trip(x, back)
        np.testing.assert_allclose(errors["round_trip_rms"], np.sqrt(np.mean((x - back) ** 2, (1, 2, 3, 4))), rtol=1e-4)
        psnr[getattr(solver, "name", solver)] = errors["round_trip_psnr"]
    assert psnr["euler"].shape == (3,)
    # The label shift is one iteration towards the implicit step; the solved one is exact.
    assert np.all(psnr["fixed_point"] > psnr["ddim_label"] + 30)
    assert np.all(psnr["fixed_point"] > 110)
    assert np.all(psnr["euler"] < 60)


def test_psnr_is_taken_against_each_clips_own_range():
    x = jnp.stack([jnp.linspace(-1, 1, 32), jnp.linspace(-10, 10, 32)]).reshape(2, 2, 2, 2, 4)
    errors = fidelity.round_trip(x, x + 0.02)
    np.testing.assert_allclose(errors["round_trip_rms"], [0.02, 0.02], rtol=1e-4)
    np.testing.assert_allclose(errors["round_trip_psnr"], [40, 60], atol=1e-3)
    same = fidelity.round_trip(x, x)
    np.testing.assert_allclose(same["round_trip_psnr"], [120, 120], rtol=1e-6)
    assert np.isfinite(fidelity.round_trip(0 * x, 0 * x)["round_trip_psnr"]).all()


def test_white_noise_looks_white():
    noise = jax.random.normal(jax.random.key(0), (4, 5, 16, 16, 8))
    got = fidelity.noise_statistics(noise)
    n = noise[0].size
    # Five standard errors of 10240 samples; kurtosis has variance 24 / n.
    for name, value in got.items():
        assert value.shape == (4,), name
        want = {"noise_std": 1.0, "noise_channel_correlation": (5 * 16 * 16) ** -0.5}.get(name, 0.0)
        assert np.all(np.abs(value - want) < 5 * n**-0.5 * (24**0.5 if "kurtosis" in name else 1.2)), name
    assert len(got) == 7


def test_structure_in_noise_is_seen_where_it_is():
    white = jax.random.normal(jax.random.key(0), (2, 6, 12, 12, 6))
    n = white[0].size

    def differs(x):
        got, base = fidelity.noise_statistics(x), fidelity.noise_statistics(white)
        return {name for name in got if np.all(np.abs(got[name] - base[name]) > 0.2)}

    for axis, name in ((1, "time"), (2, "height"), (3, "width")):
        smooth = (white + jnp.roll(white, 1, axis)) / 2**0.5  # lag-1 correlation 1/2
        assert differs(smooth) == {f"noise_correlation_{name}"}
        correlation = fidelity.noise_statistics(smooth)[f"noise_correlation_{name}"]
        np.testing.assert_allclose(correlation, 0.5, atol=6 * n**-0.5 + 0.03)
    assert differs(2 * white) == {"noise_std"}
    assert differs(white + 1) == {"noise_mean"}
    assert differs(jnp.sign(white)) == {"noise_kurtosis"}
    np.testing.assert_allclose(fidelity.noise_statistics(jnp.sign(white))["noise_kurtosis"], -2, atol=0.02)
    mixed = white @ (jnp.eye(6) + 0.5) / jnp.sqrt(1.5**2 + 5 * 0.25)
    assert differs(mixed) == {"noise_channel_correlation"}


def test_correlations_that_do_not_exist_are_left_out():
    got = fidelity.noise_statistics(jnp.ones((2, 1, 4, 4, 1)))
    assert set(got) == {
        "noise_mean",
        "noise_std",
        "noise_kurtosis",
        "noise_correlation_height",
        "noise_correlation_width",
    }
    assert all(np.isfinite(value).all() for value in got.values())


def test_a_solver_that_adds_noise_has_no_convergence():
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match="only goes down"):
        fidelity.self_convergence(pipeline, x, text, steps=4, solver="dpmpp_2m_sde")


def test_a_known_trajectory_is_the_one_that_the_clip_was_made_on():
    pipeline, steps, refine = tiny_wan(2), 3, 2
    noise, text = inputs(2, text_dim=8)
    known = fidelity.known_trajectory(pipeline, noise, text, steps=steps, refine=refine)
    grid = WAN.grid(steps)[::-1]
    fine = np.interp(np.arange(steps * refine + 1) / refine, np.arange(steps + 1), grid)[::-1]

    def made(points):
        """The state after so many of the fine steps."""
        return sample(pipeline, noise, text, sigmas=fine[: points + 1], solver="ab2", labels="sigma").latents

    tap = Tap("self_attention_map", name="map")
    run = invert(pipeline, made(steps * refine), text, steps=steps, taps=(tap,), capture_at=(1,))
    np.testing.assert_array_equal(known.sigmas, grid[1:])
    np.testing.assert_allclose(known.error[-1], relative_rms(np.asarray(run.latents), np.asarray(noise)), rtol=1e-3)
    flat, true = (np.asarray(x).reshape(2, -1) for x in (run.latents, noise))
    cosine = (flat * true).sum(1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(true, axis=1)
    np.testing.assert_allclose(known.state[-1], cosine, rtol=1e-4)
    state = made((steps - 1) * refine)  # where the inversion is after its first step
    maps = pipeline.evaluate(state, jnp.float32(grid[1]), text, taps=(tap,))[1]["map"]
    a, b = (np.moveaxis(np.asarray(m), 1, 0).reshape(2, -1) - 0.5 for m in (run.captured["map"][0], maps))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert known.attention.shape == (steps - 1, 2)
    np.testing.assert_allclose(known.attention[0], cosine, rtol=1e-4)
