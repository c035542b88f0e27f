"""Two networks in one pipeline: which one answers, what is read of them, and what is compiled."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import ExpertGuidance
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan
from jaxdiff.study.controls import untrained
from tests.flow.pipelines import inputs, tiny_wan
from tests.flow.test_program import opcodes, program

LAYERS = 5  # a leading size that no activation has
BOUNDARY = 0.6
TAPS = (Tap("block_out"), Tap("self_attention_map"))
GRID = np.array([0.0, 0.2, 0.45, 0.6, 0.8, 1.0])


@pytest.fixture(scope="module")
def one():
    return tiny_wan(LAYERS)


@pytest.fixture(scope="module")
def two(one):
    second = Network.init(one.transformer.module, one.transformer.config, 1)
    return dataclasses.replace(one, transformer_2=second, family=Wan(boundary_ratio=BOUNDARY))


@pytest.fixture(scope="module")
def alone(one, two):
    """The pipelines of either network: (high noise, low noise)."""
    return one, dataclasses.replace(one, transformer=two.transformer_2)


def test_the_label_chooses_the_network_at_the_boundary_the_first(two, alone):
    x, text = inputs(text_dim=8)
    run = jax.jit(lambda p, x, sigma, label: p.velocity(x, sigma, text, label=label))
    for label in (0.1, 0.599, 0.6, 0.9):
        expected = alone[0 if label >= BOUNDARY else 1]
        got = run(two, x, jnp.float32(0.3), jnp.float32(label))
        np.testing.assert_array_equal(got, run(expected, x, jnp.float32(0.3), jnp.float32(label)))
    np.testing.assert_array_equal(two.denoise(x, 600.0, text), alone[0].denoise(x, 600.0, text))
    np.testing.assert_array_equal(two.denoise(x, 599.0, text), alone[1].denoise(x, 599.0, text))


def test_an_inversion_across_the_boundary_reads_each_network_where_it_answers(two, alone):
    x, text = inputs(text_dim=8)
    ours = jaxdiff.invert(two, x, text, sigmas=GRID, taps=TAPS, capture_at=(0, 2, 3, 4, 5))
    # By hand: the low-noise network up to the boundary, the other one from there.
    turn = int(np.searchsorted(GRID, BOUNDARY))
    low = jaxdiff.invert(alone[1], x, text, sigmas=GRID[: turn + 1], taps=TAPS, capture_at=(0, 2))
    high = jaxdiff.invert(alone[0], low.latents, text, sigmas=GRID[turn:], taps=TAPS, capture_at=(0, 1, 2))
    np.testing.assert_allclose(ours.latents, high.latents, rtol=1e-5, atol=1e-6)
    for name, captured in ours.captured.items():
        expected = np.concatenate([low.captured[name], high.captured[name]])
        np.testing.assert_allclose(captured, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("solver", ["fixed_point", "heun"])
def test_a_round_trip_crosses_the_boundary_and_comes_back(two, solver):
    x, text = inputs(text_dim=8)
    grid = np.linspace(0.0, 1.0, 21) if solver == "fixed_point" else np.linspace(0.0, 1.0, 201)
    there = jaxdiff.invert(two, x, text, sigmas=grid, solver=solver, taps=TAPS, capture_at=(0, 12, -1))
    back = jaxdiff.sample(
        two, there.latents, text, sigmas=grid[::-1], solver="euler" if solver == "fixed_point" else solver,
        labels="sigma",
    )  # fmt: skip
    assert float(jnp.abs(there.latents - x).max()) > 0.1
    # Of an implicit step Euler's is the inverse; Heun's there and back differ by its own error, which is largest at the
    # boundary, where the field jumps.
    bound = 1e-5 if solver == "fixed_point" else 2e-2
    assert float(jnp.abs(back.latents - x).max() / jnp.abs(x).max()) <= bound


def test_an_edit_reaches_whichever_network_answers(two, alone):
    x, text = inputs(text_dim=8)

    edits = (Edit("mlp_out", None, lambda h, key, sigma: 0 * h),)

    @jax.jit
    def run(pipeline, label):
        return pipeline.evaluate(x, 0.5, text, label=label, edits=edits, key=jax.random.key(0))[0]

    for label, expected in ((0.9, alone[0]), (0.1, alone[1])):
        np.testing.assert_array_equal(run(two, jnp.float32(label)), run(expected, jnp.float32(label)))
        assert float(jnp.abs(run(two, jnp.float32(label)) - two.velocity(x, 0.5, text, label=label)).max()) > 1e-3


def test_each_network_has_its_guidance_scale(two, alone):
    x, text = inputs(text_dim=8)
    scale = ExpertGuidance(3.0, 2.0, two.boundary)
    grid = GRID[::-1]
    ours = jaxdiff.sample(two, x, text, negative=-text, guidance_scale=scale, sigmas=grid).latents
    turn = int(np.flatnonzero(grid < BOUNDARY)[0])
    middle = jaxdiff.sample(alone[0], x, text, negative=-text, guidance_scale=3.0, sigmas=grid[: turn + 1]).latents
    end = jaxdiff.sample(alone[1], middle, text, negative=-text, guidance_scale=2.0, sigmas=grid[turn:]).latents
    np.testing.assert_allclose(ours, end, rtol=1e-4, atol=1e-5)


def test_a_scale_changes_with_the_network_where_sigma_is_the_boundary_in_float32():
    scale = ExpertGuidance(3.0, 2.0, 900.0)
    label = np.float32(0.9)  # a little below it
    assert float(label) * 1000 < 900.0 <= np.float32(label * np.float32(1000))
    np.testing.assert_array_equal(scale(np.array([float(label) * 1000, 899.99]), 2), [3.0, 2.0])


def test_a_timestep_a_clip_is_refused_and_vmap_gives_each_its_own(two, alone):
    x, text = inputs(text_dim=8)
    each = jnp.array([0.9, 0.1])
    with pytest.raises(ConfigError, match="give one number"):
        two.velocity(x, each, text)
    with pytest.raises(ConfigError, match="give one number"):
        two.denoise(x, 1000 * each, text)
    ours = jax.vmap(lambda x, sigma, text: two.velocity(x[None], sigma, text[None])[0])(x, each, text)
    for i in range(2):
        expected = alone[i].velocity(x[i : i + 1], each[i], text[i : i + 1])[0]
        np.testing.assert_allclose(ours[i], expected, rtol=1e-4, atol=1e-5)


def test_networks_that_do_not_belong_together_are_refused(one, two):
    x, text = inputs(text_dim=8)
    with pytest.raises(ConfigError, match="no boundary_ratio"):
        dataclasses.replace(two, family=Wan()).velocity(x, 0.5, text)
    other = tiny_wan(LAYERS + 1).transformer
    with pytest.raises(ConfigError, match="same configuration"):
        dataclasses.replace(two, transformer_2=other).velocity(x, 0.5, text)


def test_the_untrained_control_keeps_no_trained_network(two):
    control = untrained(two, 7)
    for name in ("transformer", "transformer_2"):
        new, old = getattr(control, name), getattr(two, name)
        assert new.config == old.config
        assert not np.array_equal(new.params["out"]["kernel"], old.params["out"]["kernel"])
    first, second = control.transformer.params["out"]["kernel"], control.transformer_2.params["out"]["kernel"]
    assert not np.array_equal(first, second)


def run(pipeline, x, text):
    return jaxdiff.invert(pipeline, x, text, steps=4, taps=TAPS)


def test_loops_over_two_networks_copy_no_weights(two):
    x, text = inputs(text_dim=8)
    leaves = jax.tree.leaves(two.transformer.params)
    shapes = {leaf.shape for leaf in leaves if leaf.ndim == 3 and leaf.shape[0] == LAYERS}
    hlo = program(run, two, x, text)
    assert re.search(r"\bconditional\(", hlo)
    assert len(shapes) == 4
    assert opcodes(hlo, shapes) == set()


def test_with_one_network_nothing_is_chosen(one):
    x, text = inputs(text_dim=8)
    hlo = program(run, one, x, text)
    assert "while(" in hlo
    assert not re.search(r"\bconditional\(", hlo)
