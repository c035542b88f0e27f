"""`invert` and `sample`: what they integrate, what the network is told, what is read where, and what is
refused.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxdiff import Conditioning, Edit, Tap
from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.flow import SOLVERS, DivergedError, FixedPoint, integrate, invert, sample
from tests.flow.pipelines import LAYERS, LOG, WAN, inputs, tiny_wan, toy

TAPS = (Tap("block_out"), Tap("block_in", "frame_mean", blocks=(0, -1)))
# A program's fusions differ between calls of different shape, and float32 sums with them.
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def log():
    LOG.traces, LOG.timesteps = 0, []
    return LOG


def close(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **ROUNDING)


# ------------------------------------------------------------------------------------------ what is integrated


@pytest.mark.parametrize("name", SOLVERS)
def test_invert_integrates_the_pipelines_field_over_the_schedules_grid(name):
    pipeline, (x, text) = toy(), inputs()
    grid = WAN.grid(6)[::-1]
    labels = WAN.rounded(grid) if name == "ddim_label" else grid

    def field(x, sigma, label):
        # integrate labels by the grid's own sigmas; look up what the scheduler would have sent.
        label = jnp.interp(label, grid, labels)
        return pipeline.evaluate(x, sigma, text, label=label)[0]

    run = invert(pipeline, x, text, steps=6, solver=name)
    np.testing.assert_allclose(run.latents, integrate(field, x, grid, name), **ROUNDING)
    np.testing.assert_array_equal(run.sigmas, grid)
    assert run.latents.dtype == jnp.float32
    assert not np.array_equal(run.latents, x)


def test_sample_goes_down_the_same_grid():
    pipeline, (x, text) = toy(), inputs()
    run = sample(pipeline, x, text, steps=6, labels="sigma")
    want = integrate(lambda x, sigma: pipeline.evaluate(x, sigma, text)[0], x, WAN.grid(6))
    np.testing.assert_allclose(run.latents, want, **ROUNDING)
    np.testing.assert_array_equal(run.sigmas, WAN.grid(6))


def test_fixed_point_inversion_is_undone_by_sampling_on_its_grid():
    pipeline, (x, text) = toy(), inputs()
    there = invert(pipeline, x, text, steps=20, solver=FixedPoint(30))
    back = sample(pipeline, there.latents, text, sigmas=there.sigmas[::-1], labels=there.labels)
    np.testing.assert_allclose(back.latents, x, **ROUNDING)
    explicit = invert(pipeline, x, text, steps=20)
    back = sample(pipeline, explicit.latents, text, sigmas=explicit.sigmas[::-1], labels="sigma")
    assert np.abs(back.latents - x).max() > 1e-2


def test_an_explicit_grid_replaces_the_schedules():
    pipeline, (x, text) = toy(), inputs()
    grid = [0.05, 0.2, 0.7]
    run = invert(pipeline, x, text, sigmas=grid)
    np.testing.assert_array_equal(run.sigmas, grid)
    assert run.evaluations == 2


def test_text_may_be_an_array_a_conditioning_or_one_for_all():
    pipeline, (x, text) = toy(), inputs()
    runs = [
        invert(pipeline, x, cond, steps=2).latents
        for cond in (text[:1], np.asarray(text[:1]), Conditioning(text=text[:1]), jnp.repeat(text[:1], 2, 0))
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


# ------------------------------------------------------------------------------------------ what the network is told


def told(run, x, text, **kwargs):
    LOG.timesteps = []
    jax.block_until_ready(run(dataclasses.replace(toy(), listens=True), x, text, **kwargs).latents)
    jax.effects_barrier()
    return LOG.timesteps


def test_samplers_and_ddim_label_send_the_schedulers_integers_and_others_their_own():
    x, text = inputs()
    grid = WAN.grid(4)
    integers = np.trunc(grid * 1000)
    assert told(sample, x, text, steps=4) == list(integers[:4])
    assert told(invert, x, text, steps=4, solver="ddim_label") == list(integers[:4][::-1])
    # float32 timesteps
    np.testing.assert_allclose(told(invert, x, text, steps=4), grid[:0:-1] * 1000, rtol=1e-6)
    assert told(invert, x, text, steps=4, labels="scheduler") == list(integers[:0:-1])
    np.testing.assert_allclose(told(sample, x, text, steps=4, labels="sigma"), grid[:4] * 1000, rtol=1e-6)


def test_intermediate_stages_of_a_sampler_are_rounded_too():
    x, text = inputs()
    grid = WAN.grid(3)
    middles = (grid[:-1] + grid[1:]) / 2
    want = np.trunc(np.stack([grid[:-1], middles], 1).ravel() * 1000)
    assert told(sample, x, text, steps=3, solver="midpoint") == list(want)


@pytest.mark.parametrize("capture_at", [(1, 4), None])
@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted(name, capture_at):
    x, text = inputs()
    run = functools.partial(invert, steps=4, solver=name, taps=TAPS, capture_at=capture_at)
    assert run(toy(), x, text).evaluations == len(told(run, x, text))


# ------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("name", SOLVERS)
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


@pytest.mark.parametrize("name", SOLVERS)
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


# ------------------------------------------------------------------------------------------ edits, sink, guidance


def add_noise(h, key, sigma):
    return h + sigma * jax.random.normal(key, h.shape)


def test_edits_write_into_the_network_and_depend_on_the_key():
    pipeline, (x, text) = toy(), inputs()
    edits = (Edit("block_out", (1,), add_noise),)
    run = functools.partial(invert, pipeline, x, text, steps=3, taps=TAPS)
    plain, edited = run(), run(edits=edits)
    assert np.abs(edited.latents - plain.latents).max() > 1e-2
    # At sigma 0 this edit does nothing; afterwards block 0 still sees only what came through the state.
    close(
        {key: value[0] for key, value in edited.captured.items()},
        {key: value[0] for key, value in plain.captured.items()},
    )
    np.testing.assert_array_equal(run(edits=edits).latents, edited.latents)
    np.testing.assert_array_equal(run(edits=edits, key=jax.random.key(0)).latents, edited.latents)
    assert not np.array_equal(run(edits=edits, key=jax.random.key(1)).latents, edited.latents)


def keep_noise(h, key, sigma):
    return jax.random.normal(key, h.shape)


def test_every_step_draws_its_own_key():
    pipeline, (x, text) = toy(), inputs()
    run = invert(pipeline, x, text, steps=4, taps=(Tap("block_in"),), edits=(Edit("block_in", (1,), keep_noise),))
    seen = np.asarray(run.captured["block_in.mean"])[:, 1]
    assert all(np.abs(a - b).min() > 1e-6 for a, b in itertools.combinations(seen, 2))


SUNK = []


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ids"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Sink:
    """Takes captures to the host, the way a store does."""

    ids: jax.Array

    def emit(self, captured, slot):
        def take(ids, slot, captured):
            SUNK.append((np.asarray(ids).copy(), int(slot), jax.tree.map(np.array, captured)))

        io_callback(take, None, self.ids, slot, captured, ordered=False)


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


def test_guidance_mixes_two_evaluations_and_taps_see_the_conditional_one():
    pipeline, (x, text) = toy(), inputs()
    negative = jnp.zeros_like(text[:1])

    def field(x, sigma):
        conditional = pipeline.evaluate(x, sigma, text)[0]
        unconditional = pipeline.evaluate(x, sigma, negative)[0]
        return unconditional + 3.5 * (conditional - unconditional)

    run = sample(
        pipeline, x, text, guidance_scale=3.5, negative=negative, steps=4, labels="sigma", taps=TAPS, capture_at=[0]
    )  # fmt: skip
    np.testing.assert_allclose(run.latents, integrate(field, x, WAN.grid(4)), **ROUNDING)
    plain = sample(pipeline, x, text, steps=4, labels="sigma", taps=TAPS, capture_at=[0])
    close(run.captured, plain.captured)
    assert np.abs(plain.latents - run.latents).max() > 0.1


def test_guidance_scale_one_is_no_guidance(log):
    pipeline, (x, text) = toy(), inputs()
    plain = sample(pipeline, x, text, steps=4)
    traces = log.traces
    off = sample(pipeline, x, text, guidance_scale=1.0, negative=jnp.zeros_like(text), steps=4)
    np.testing.assert_array_equal(plain.latents, off.latents)
    assert log.traces == traces


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (None, "needs negative="),
        (jnp.zeros((1, 2, 4)), r"negative.text has the shape \(2, 2, 4\), but cond's is \(2, 3, 4\)"),
        (Conditioning(text=jnp.zeros((1, 3, 4)), fps=25.0), r"\['text'\] and the other \['fps', 'text'\]"),
    ],
)
def test_guidance_without_a_fitting_negative_is_refused(negative, message):
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match=message):
        sample(pipeline, x, text, guidance_scale=2.0, negative=negative, steps=2)


# ------------------------------------------------------------------------------------------ programs


def test_nothing_of_equal_shape_is_traced_twice(log):
    x, text = inputs()
    negative = jnp.zeros_like(text)

    def calls(pipeline, x, sigmas, capture_at, scale, offset):
        for solver in ("euler", "ab2"):
            invert(pipeline, x, text, sigmas=sigmas, solver=solver, taps=TAPS, capture_at=capture_at)
        invert(
            pipeline,
            x,
            text,
            sigmas=sigmas,
            taps=TAPS,
            capture_at=capture_at,
            sink=Sink(jnp.arange(2) + offset),
        )
        sample(pipeline, x, text, sigmas=sigmas[::-1], guidance_scale=scale, negative=negative)

    calls(toy(0), x, np.linspace(0, 1, 7), (0, 2), 2.0, 0)
    traces = log.traces
    # other weights, latents, grid, captured steps, guidance and clips
    calls(toy(1), x + 1, np.linspace(0, 0.9, 7) ** 2, (3, 5), 4.0, 5)
    assert traces
    assert log.traces == traces


def test_memory_grows_with_captured_steps_and_not_with_steps():
    pipeline, (x, text) = toy(), inputs()
    tap = (Tap("block_out", "full"),)

    def bytes_used(steps, captured):
        run = jax.jit(lambda x: invert(pipeline, x, text, steps=steps, taps=tap, capture_at=range(captured)))
        memory = run.lower(x).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    one = LAYERS * x.size * 2  # bfloat16
    base = bytes_used(20, 4)
    # A step more costs a few scalars of grid; a capture more costs what it holds (up to alignment).
    assert abs(bytes_used(160, 4) - base) < 140 * 100
    assert abs(bytes_used(20, 16) - base - 12 * one) < 0.25 * one
    assert base > 4 * one


def test_runs_under_a_callers_jit_vmap_and_grad():
    pipeline, (x, text) = toy(), inputs()

    def run(pipeline, x, solver="heun"):
        return invert(pipeline, x, text, steps=3, solver=solver, taps=TAPS, capture_at=[0, 2])

    want = run(pipeline, x)
    jitted = jax.jit(run)(pipeline, x)
    np.testing.assert_allclose(jitted.latents, want.latents, **ROUNDING)
    close(jitted.captured, want.captured)
    assert jitted.evaluations == want.evaluations

    stacked = jnp.stack([x, x + 0.5, x - 0.5])
    mapped = jax.vmap(run, (None, 0))(pipeline, stacked)
    np.testing.assert_allclose(mapped.latents[0], want.latents, **ROUNDING)
    np.testing.assert_allclose(mapped.latents[2], run(pipeline, stacked[2]).latents, **ROUNDING)

    def loss(pipeline):
        trajectory = run(pipeline, x)
        return jnp.sum(trajectory.latents**2) + jnp.sum(trajectory.captured["block_out.mean"] ** 2)

    slope = jax.grad(loss)(pipeline).weights
    step = jax.random.normal(jax.random.key(3), slope.shape)
    up, down = (loss(dataclasses.replace(pipeline, weights=pipeline.weights + s * step)) for s in (1e-2, -1e-2))
    # central difference in float32
    np.testing.assert_allclose(jnp.sum(slope * step), (up - down) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_a_gradient(name):
    pipeline, (x, text) = toy(), inputs()
    slope = jax.grad(lambda x: invert(pipeline, x, text, steps=2, solver=name).latents.sum())(x)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def test_a_traced_grid_is_taken_as_it_is():
    pipeline, (x, text) = toy(), inputs()
    grid = np.linspace(0, 1, 5)
    run = jax.jit(lambda sigmas: invert(pipeline, x, text, sigmas=sigmas, taps=TAPS, capture_at=[1]))(grid)
    want = invert(pipeline, x, text, sigmas=grid, taps=TAPS, capture_at=[1])
    np.testing.assert_allclose(run.latents, want.latents, **ROUNDING)
    assert run.capture_sigmas == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="traced sigmas"):
        jax.jit(lambda sigmas: sample(pipeline, x, text, sigmas=sigmas).latents)(grid[::-1])


# ------------------------------------------------------------------------------------------ states that blow up


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


# ------------------------------------------------------------------------------------------ refused arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "positive integer"),
        ({"sigmas": [1.0, 0.5, 0.0]}, r"invert goes up.*pass sigmas\[::-1\]"),
        ({"sigmas": [0.0, 1.5]}, r"\[0, 1\]"),
        ({"sigmas": [0.0, 0.5, 0.4, 1.0]}, "strictly monotone"),
        ({"solver": "huen"}, "did you mean 'heun'"),
        ({"labels": "rounded"}, "'sigma', 'scheduler' or None"),
        ({"capture_at": [0]}, "no taps="),
        ({"capture_sigmas": [0.5]}, "no taps="),
        ({"sink": Sink(jnp.arange(2))}, "no taps="),
        (
            {"taps": TAPS, "steps": 4, "capture_at": [5]},
            "step 5 does not exist; this grid has steps 0 to 3, and 4",
        ),
        ({"taps": TAPS, "steps": 4, "capture_at": [-5]}, "step -5 does not exist"),
        ({"taps": TAPS, "capture_at": [0.5]}, "go into capture_sigmas"),
        ({"taps": TAPS, "capture_sigmas": [1.2]}, "1.2 lies outside of the grid"),
        ({"taps": TAPS, "capture_sigmas": [np.nan]}, "nan lies outside of the grid"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(arguments, message, log):
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match=message):
        invert(pipeline, x, text, **arguments)
    assert log.traces == 0


def test_sample_refuses_a_rising_grid():
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match="sample goes down"):
        sample(pipeline, x, text, sigmas=[0.0, 1.0])


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
