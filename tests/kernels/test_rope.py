"""Rotary embedding: its defining properties, not its code over again."""

import numpy as np

from jaxdiff import kernels


def test_scores_depend_on_relative_position_only():
    grid, depth = (4, 3, 5), 16
    cos, sin = kernels.rope_3d(grid, depth)
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.standard_normal(depth), (1, 60, 1, depth)).astype(np.float32) for _ in range(2))
    rq, rk = (np.asarray(kernels.rotate_pairs(x, cos, sin))[0, :, 0] for x in (q, k))
    scores = (rq @ rk.T).reshape(*grid, *grid)
    # The same offset (1, 1, -2) from three different starts.
    pairs = [((0, 0, 2), (1, 1, 0)), ((1, 1, 3), (2, 2, 1)), ((2, 0, 4), (3, 1, 2))]
    values = [scores[a + b] for a, b in pairs]
    np.testing.assert_allclose(values, values[0], rtol=1e-4)  # float32 rounding
    assert abs(scores[0, 0, 0, 0, 0, 0] - values[0]) > 1e-2  # and another offset gives another score


def test_rotation_keeps_lengths_and_is_identity_at_the_origin():
    cos, sin = kernels.rope_3d((2, 2, 2), 12)
    x = np.random.default_rng(1).standard_normal((1, 8, 2, 12)).astype(np.float32)
    y = np.asarray(kernels.rotate_pairs(x, cos, sin))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(y[:, 0], x[:, 0])


def test_channels_are_split_between_time_height_and_width_as_published():
    # 128 -> 44, 42, 42 channels (Wan); the first frame's tokens differ only in the spatial part.
    sin = kernels.rope_3d((2, 3, 3), 128)[1].reshape(2, 3, 3, 64)
    assert np.all(sin[0, ..., :22] == 0) and np.all(sin[1, ..., :22] != 0)
    assert np.all(sin[:, 0, :, 22:43] == 0) and np.all(sin[:, 1, :, 22:43] != 0)
    assert np.all(sin[:, :, 0, 43:] == 0) and np.all(sin[:, :, 1, 43:] != 0)


def test_every_clip_may_have_angles_of_its_own():
    tables = [kernels.rope_3d(grid, 12) for grid in ((2, 2, 2), (1, 2, 4))]
    x = np.random.default_rng(1).standard_normal((2, 8, 2, 12)).astype(np.float32)
    both = kernels.rotate_pairs(x, *(np.stack(part) for part in zip(*tables, strict=True)))
    for i, table in enumerate(tables):
        np.testing.assert_array_equal(both[i], kernels.rotate_pairs(x[i : i + 1], *table)[0])


def test_the_split_layout_is_the_paired_one_with_channels_reordered():
    cos, sin = kernels.rope_3d((2, 2, 2), 12)
    x = np.random.default_rng(1).standard_normal((1, 8, 2, 12)).astype(np.float32)
    order = np.arange(12).reshape(6, 2).T.ravel()  # the first of every pair, then the second
    ours = kernels.rotate_halves(x[..., order], cos, sin)
    np.testing.assert_array_equal(ours, np.asarray(kernels.rotate_pairs(x, cos, sin))[..., order])
