"""What is read during a run: which state and label, into which row, returned or handed to a sink."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert, sample
from tests.flow.pipelines import INVERTERS, LAYERS, ROUNDING, SUNK, TAPS, WAN, Sink, close, inputs, tiny_wan, toy


@pytest.mark.parametrize("name", INVERTERS)
def test_captures_are_the_field_at_the_state_and_label_they_name(name):
    pipeline, (x, text) = toy(), inputs()
    run = invert(pipeline, x, text, steps=5, solver=name, taps=TAPS, capture_at=(0, 2, 5))
    grid = WAN.grid(5)[::-1]
    np.testing.assert_array_equal(run.capture_sigmas, grid[[0, 2, 5]])
    for i, node in enumerate((0, 2, 5)):
        # The state at a node is where the run over the grid up to there ends.
        state = invert(pipeline, x, text, sigmas=grid[: node + 1], solver=name).latents if node else x
        want = pipeline.evaluate(
            state, run.capture_sigmas[i], text, label=jnp.float32(run.capture_labels[i]), taps=TAPS
        )[1]
        close({key: value[i] for key, value in run.captured.items()}, want)
    following = grid[[1, 3, 5]]  # the end of the grid has no next label
    want = WAN.rounded(following) if name == "ddim_label" else run.capture_sigmas
    np.testing.assert_array_equal(run.capture_labels, want)


@pytest.mark.parametrize("name", INVERTERS)
def test_capturing_some_steps_gives_the_rows_of_capturing_all(name):
    pipeline, (x, text) = toy(), inputs()
    every = invert(pipeline, x, text, steps=5, solver=name, taps=TAPS)
    some = invert(pipeline, x, text, steps=5, solver=name, taps=TAPS, capture_at=[3, 1])
    close(some.captured, {key: value[np.array([1, 3])] for key, value in every.captured.items()})
    assert every.captured["block_out.mean"].shape == (5, LAYERS, 2, 4)
    assert every.captured["block_in.frame_mean"].shape == (5, 2, 2, 2, 4)  # [captured, rows, B, T', D]
    np.testing.assert_array_equal(some.capture_sigmas, every.capture_sigmas[[1, 3]])
    # Reading does not disturb.
    bare = invert(pipeline, x, text, steps=5, solver=name)
    np.testing.assert_allclose(every.latents, bare.latents, **ROUNDING)
    assert bare.captured == {}
    assert bare.capture_sigmas.shape == (0,)


def test_the_end_state_can_be_read_with_every_step_and_alone():
    pipeline, (x, text) = toy(), inputs()
    every = invert(pipeline, x, text, steps=3, taps=TAPS, capture_at=range(4))
    end = invert(pipeline, x, text, steps=3, taps=TAPS, capture_at=[3])
    assert every.evaluations == 4
    assert end.evaluations == 4
    assert end.capture_sigmas == every.sigmas[-1:]
    close(end.captured, {key: value[-1:] for key, value in every.captured.items()})


def test_negative_steps_count_from_the_last():
    pipeline, (x, text) = toy(), inputs()
    run = invert(pipeline, x, text, steps=4, taps=TAPS, capture_at=[-1, 0])
    np.testing.assert_array_equal(run.capture_sigmas, run.sigmas[[0, 3]])


def test_capture_sigmas_are_put_into_the_grid_once():
    pipeline, (x, text) = toy(), inputs()
    base = WAN.grid(4)[::-1]
    wanted = [0.3, 0.9, float(base[2]) + 3e-6, 1.0]  # two new ones, one that is there, and the end
    run = invert(pipeline, x, text, steps=4, taps=TAPS, capture_sigmas=wanted)
    np.testing.assert_array_equal(run.sigmas, np.sort([*base, 0.3, 0.9]))
    np.testing.assert_array_equal(run.capture_sigmas, np.sort([0.3, 0.9, base[2], base[-1]]))
    assert run.captured["block_out.mean"].shape[0] == 4
    assert run.evaluations == 6 + 1
    same = invert(pipeline, x, text, sigmas=run.sigmas, taps=TAPS)
    index = np.flatnonzero(np.isin(run.sigmas, run.capture_sigmas))[:-1]
    close(
        {key: value[:-1] for key, value in run.captured.items()},
        {key: value[index] for key, value in same.captured.items()},
    )


def test_capture_steps_are_those_before_insertion():
    pipeline, (x, text) = toy(), inputs()
    base = WAN.grid(4)[::-1]
    run = invert(pipeline, x, text, steps=4, taps=TAPS, capture_at=[2], capture_sigmas=[0.1])
    np.testing.assert_array_equal(run.capture_sigmas, [0.1, base[2]])
    down = sample(pipeline, x, text, steps=4, taps=TAPS, capture_at=[2], capture_sigmas=[0.1])
    np.testing.assert_array_equal(down.capture_sigmas, [base[-3], 0.1])


def test_whole_token_taps_say_what_they_weigh(caplog):
    pipeline, (x, text) = toy(), inputs()
    run = invert(pipeline, x, text, steps=3, taps=(Tap("block_out", "full"),), capture_at=[1])
    assert run.captured["block_out.full"].shape == (1, LAYERS, 2, 32, 4)
    assert run.captured["block_out.full"].dtype == jnp.bfloat16
    assert "1 captures of [3, 2, 32, 4] bfloat16, 0.000 GB" in caplog.text


@pytest.mark.parametrize("capture_at", [None, (1, 2), (0, 4)])
@pytest.mark.parametrize("name", ["euler", "fireflow"])
def test_a_sink_gets_what_would_have_been_returned(name, capture_at):
    pipeline, (x, text) = toy(), inputs()
    arguments = {"steps": 4, "solver": name, "taps": TAPS, "capture_at": capture_at}
    want = invert(pipeline, x, text, **arguments)
    SUNK.clear()
    run = invert(pipeline, x, text, **arguments, sink=Sink(jnp.arange(2)))
    jax.block_until_ready(run.latents)
    jax.effects_barrier()
    assert run.captured == {}
    np.testing.assert_array_equal(run.capture_sigmas, want.capture_sigmas)
    assert sorted(slot for _, slot, _ in SUNK) == list(range(len(want.capture_sigmas)))
    for ids, slot, captured in SUNK:
        np.testing.assert_array_equal(ids, [0, 1])
        close(captured, {key: value[slot] for key, value in want.captured.items()})


# ------------------------------------------------------------------------------------------ a real transformer


def test_captures_of_a_real_transformer_are_its_evaluations():
    pipeline, (x, text) = tiny_wan(), inputs(text_dim=8)
    taps = (Tap("block_out"), Tap("mlp_out", "moments", blocks=(1,)), Tap("self_attention_map"))
    run = invert(pipeline, x, text, steps=4, taps=taps, capture_at=[0, 3])
    state = x
    for a, b in itertools.pairwise(run.sigmas[:4]):
        state = state + np.float32(b - a) * pipeline.velocity(state, a, text)
    for i, (at, sigma) in enumerate([(x, 0.0), (state, run.sigmas[3])]):
        want = jax.jit(lambda x, s: pipeline.evaluate(x, s, text, taps=taps)[1])(at, sigma)
        close({key: value[i] for key, value in run.captured.items()}, want)


def test_shapes_that_the_checkpoint_cannot_take_are_refused():
    pipeline, (x, text) = tiny_wan(), inputs(text_dim=8)
    with pytest.raises(ConfigError, match="multiples of the patch size"):
        invert(pipeline, x[:, :, :3], text, steps=2)
    with pytest.raises(ConfigError, match="text embeddings must be"):
        invert(pipeline, x, text[..., :4], steps=2)
