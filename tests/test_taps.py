"""Taps and edits: reducers against their definitions, and the network around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.taps import Edit, Full, Grid, Moments, Project, SemanticMoments, Tap

GRID = (3, 4, 6)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).standard_normal((2, 72, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    config = dataclasses.replace(
        WanTransformerConfig.nano(), num_layers=4, num_attention_heads=2, attention_head_dim=8, ffn_dim=16
    )
    return Network.init(WanTransformer, config, seed=0)


@pytest.fixture(scope="module")
def call():
    rng = np.random.default_rng(1)
    return (
        rng.standard_normal((2, 3, 4, 4, 16)).astype(np.float32),
        np.array([900.0, 20.0], np.float32),
        rng.standard_normal((2, 3, 16)).astype(np.float32),
    )


def run(network, call, **reading):
    return jax.jit(lambda n, *a: n(*a, **reading))(network, *call)


def test_grid_cells_are_means_of_their_tokens(tokens):
    got = Grid(2, 3)(tokens, GRID)
    cells = tokens.reshape(2, 3, 2, 2, 3, 2, 5).mean((3, 5))
    np.testing.assert_allclose(got, cells, atol=1e-6)


def test_grid_finer_than_the_tokens_repeats_them(tokens):
    got = np.asarray(Grid(8, 6)(tokens, GRID))
    np.testing.assert_allclose(got, np.repeat(tokens.reshape(2, 3, 4, 6, 5), 2, axis=2), atol=1e-6)


def test_moments_are_mean_std_and_skewness_over_time(tokens):
    x = tokens.reshape(2, 3, 24, 5).astype(np.float64)
    mean, std = x.mean(1), x.std(1)
    skewness = ((x - mean[:, None]) ** 3).mean(1) / (std**3 + 1e-6)
    want = np.stack([mean.mean(1), std.mean(1), skewness.mean(1)], 1)
    np.testing.assert_allclose(Moments()(tokens, GRID), want, atol=1e-5)


def test_semantic_moments_are_scaled_weighted_and_of_length_one(tokens):
    x = tokens.reshape(2, 3, 24, 5).astype(np.float64)
    mean, std = x.mean(1), x.std(1, ddof=1)  # torch.std, which the published code calls, divides by T - 1
    skewness = ((x - mean[:, None]) ** 3).mean(1) / (std**3 + 1e-6)
    parts = [moment.mean(1) for moment in (mean, std, skewness)]
    parts = [w * part / np.linalg.norm(part, axis=-1, keepdims=True) for w, part in zip((1, 8, 4), parts, strict=True)]
    want = np.concatenate(parts, -1) / 9  # sqrt(1 + 64 + 16)
    np.testing.assert_allclose(SemanticMoments()(tokens, GRID), want, atol=1e-6)
    still = SemanticMoments()(tokens[:, :24], (1, 4, 6))
    np.testing.assert_allclose(np.linalg.norm(still, axis=-1), 1.0, atol=1e-6)
    assert np.all(np.asarray(still)[:, 5:] == 0)  # one frame has a mean only


def test_projection_is_linear_fixed_and_keeps_lengths_on_average():
    x = np.random.default_rng(2).standard_normal((64, 1, 256)).astype(np.float32)
    y = np.asarray(Project(128, seed=3)(x, (1, 1, 1)))
    np.testing.assert_array_equal(y, Project(128, seed=3)(x, (1, 1, 1)))
    assert not np.allclose(y, Project(128, seed=4)(x, (1, 1, 1)))
    ratio = np.mean(np.sum(y**2, -1)) / np.mean(np.sum(x**2, (1, 2)))
    assert abs(ratio - 1) < 0.1  # standard error of the ratio is about 0.016


def test_captured_rows_are_the_blocks_that_were_asked_for(network, call):
    _, everything = run(network, call, taps=(Tap("block_out"), Tap("mlp_out", "frame_mean")))
    _, some = run(network, call, taps=(Tap("block_out", blocks=(-1, 1)), Tap("mlp_out", "frame_mean", blocks=(2,))))
    assert everything["block_out.mean"].shape == (4, 2, 16)
    np.testing.assert_array_equal(some["block_out.mean"], everything["block_out.mean"][jnp.array([3, 1])])
    np.testing.assert_array_equal(some["mlp_out.frame_mean"], everything["mlp_out.frame_mean"][2:3])


def test_a_block_starts_where_the_last_one_ended(network, call):
    taps = (Tap("block_in", Full()), Tap("block_out", Full()))
    _, got = run(network, call, taps=taps)
    inputs, outputs = (got[tap.name] for tap in taps)
    np.testing.assert_array_equal(inputs[1:], outputs[:-1])
    assert inputs.dtype == jnp.bfloat16


def test_reading_does_not_change_the_output(network, call):
    sites = ("block_in", "self_attention_out", "cross_attention_out", "mlp_out", "block_out")
    bare, _ = run(network, call)
    read, captured = run(network, call, taps=tuple(Tap(site) for site in sites))
    np.testing.assert_allclose(bare, read, atol=1e-6)  # other fusions may round otherwise
    assert len(captured) == len(sites)


def test_no_taps_and_no_edits_compile_to_the_bare_program(network, call):
    def text(**reading):
        # As lowered, where no file names and line numbers of the caller get in.
        return jax.jit(lambda n, *a: n(*a, **reading)[0]).lower(network, *call).as_text()

    assert text() == text(taps=(), edits=())
    assert text() != text(edits=(Edit("block_out", None, lambda h, key, sigma: h + 1),))


def test_an_edit_writes_at_its_site_and_blocks_only(network, call):
    def erase(h, key, sigma):
        return jnp.zeros_like(h)

    taps = (Tap("block_out"), Tap("mlp_out"))
    plain_out, plain = run(network, call, taps=taps)
    out, edited = run(network, call, taps=taps, edits=(Edit("mlp_out", (2,), erase),))
    np.testing.assert_allclose(edited["block_out.mean"][:2], plain["block_out.mean"][:2], atol=1e-6)
    assert np.all(edited["mlp_out.mean"][2] == 0) and np.all(edited["mlp_out.mean"][1] != 0)
    assert np.abs(edited["block_out.mean"][2] - plain["block_out.mean"][2]).max() > 1e-4
    assert np.abs(out - plain_out).max() > 1e-5


def test_edit_keys_differ_between_blocks_and_sigma_arrives(network, call):
    def noise(h, key, sigma):
        return sigma * jax.random.normal(key, h.shape)

    tap = (Tap("block_out", Full()),)
    _, got = run(network, call, taps=tap, edits=(Edit("block_out", None, noise),), sigma=2.0, key=jax.random.key(5))
    values = np.asarray(got[tap[0].name], np.float32)
    assert abs(values.std() - 2.0) < 0.15  # four standard errors for 1536 values
    assert np.abs(np.corrcoef(values.reshape(4, -1)) - np.eye(4)).max() < 0.2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Tap("block_output"), "did you mean 'block_out'"),
        (lambda: Tap("block_out", "meen"), "did you mean 'mean'"),
        (lambda: Tap("block_out", "frame_map"), "go together"),
        (lambda: Edit("text_attn", None, print), "did you mean 'text_attention'"),
        (lambda: Tap("text_attention"), "unknown site"),
        (lambda: Edit("mlp_out", None, 3), "must be a function"),
    ],
)
def test_impossible_taps_and_edits_are_refused_at_once(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_block_that_does_not_exist_is_an_error(network, call):
    with pytest.raises(ConfigError, match="block 4 does not exist; this network has 4 blocks"):
        run(network, call, taps=(Tap("block_out", blocks=(4,)),))


def test_an_edit_that_changes_the_shape_is_an_error(network, call):
    with pytest.raises(ConfigError, match="turned"):
        run(network, call, edits=(Edit("mlp_out", None, lambda h, key, sigma: h[..., :3]),))
