"""States that blow up: who is named, and who is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Edit
from jaxdiff.errors import NonFiniteError
from jaxdiff.flow import DivergedError, invert
from tests.flow.pipelines import ROUNDING, TAPS, WAN, close, inputs, toy


def explode(h, key, sigma):
    """Clip 1 becomes infinite from sigma 0.6 on."""
    bad = (jnp.arange(h.shape[0]) == 1) & (sigma > 0.6)
    return jnp.where(bad[:, None, None], jnp.inf, h)


def test_a_state_that_blows_up_names_clip_step_and_sigma():
    pipeline, (x, text) = toy(), inputs(3)
    edits = (Edit("block_out", None, explode),)
    with pytest.raises(DivergedError, match=r"clip\(s\) 1 .* step 2 of 5, from sigma 0.66\d* to 0.81") as caught:
        invert(pipeline, x, text, steps=5, edits=edits, taps=TAPS)
    error = caught.value
    assert isinstance(error, NonFiniteError)
    assert error.exit_code == 4
    assert (error.clips, error.step) == ([1], 2)
    assert error.sigma == pytest.approx(WAN.grid(5)[::-1][2])
    np.testing.assert_array_equal(error.trajectory.failed_at, [-1, 2, -1])
    # The neighbours' results are there and good.
    good = invert(pipeline, x, text, steps=5, taps=TAPS)
    keep = np.array([0, 2])
    np.testing.assert_allclose(error.trajectory.latents[keep], good.latents[keep], **ROUNDING)
    close(
        {key: value[:, :, keep] for key, value in error.trajectory.captured.items()},
        {key: value[:, :, keep] for key, value in good.captured.items()},
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_named_before_anything_runs(value, log):
    pipeline, (x, text) = toy(), inputs(3)
    with pytest.raises(DivergedError, match=r"clip\(s\) 2 .* not finite before step 0, at sigma 0") as caught:
        invert(pipeline, x.at[2, 0, 0, 0, 0].set(value), text, steps=5)
    assert caught.value.clips == [2]
    assert caught.value.trajectory is None
    assert log.traces == 0


def test_under_a_callers_jit_failures_are_marked_and_not_raised():
    pipeline, (x, text) = toy(), inputs()
    run = jax.jit(lambda x: invert(pipeline, x, text, steps=4))(x.at[0].set(jnp.nan))
    np.testing.assert_array_equal(run.failed_at, [0, -1])
