"""Motion heatmaps on clips whose drift is known, and which video frames a latent frame stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.lamo import MotionField, MotionFieldConfig, motion_maps
from jaxdiff.lamo.heatmaps import video_frames
from jaxdiff.models.network import Network


@pytest.fixture(scope="module")
def network():
    config = MotionFieldConfig(2, 3, width=4, blocks=1, groups=2, condition_width=4, squeeze=2)
    made, rng = Network.abstract(MotionField, config), np.random.default_rng(0)
    return made.replace(jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), made.params))


def test_maps_are_those_of_their_equations(network):
    rng = np.random.default_rng(1)
    clips = rng.standard_normal((2, 5, 4, 6, 2)).astype(np.float32)
    clips[0, 3] += 2.0  # the pair (1, 3) drifts most
    clips[1, 4] -= 3.0  # the pair (2, 4)
    text = rng.standard_normal((2, 4, 3)).astype(np.float32)
    maps = motion_maps(network, clips, text)
    change = clips[:, 2:] - clips[:, :-2]
    mu = change.mean((2, 3))
    np.testing.assert_allclose(maps.drift_size, np.linalg.norm(mu, axis=-1), rtol=1e-5)
    assert maps.strongest.tolist() == [1, 2]
    unit = mu / np.linalg.norm(mu, axis=-1, keepdims=True)
    np.testing.assert_allclose(maps.drift, np.abs((change * unit[:, :, None, None]).sum(-1)), rtol=1e-4, atol=1e-4)
    frames = np.concatenate([clips[:, :-2], clips.mean(1, keepdims=True)], 1)
    found = np.asarray(jax.jit(lambda network, *args: network(*args))(network, frames, text))
    expected = found[:, :-1] - found[:, -1:]
    np.testing.assert_allclose(maps.field, np.linalg.norm(expected, axis=-1), rtol=1e-4, atol=1e-4)


def test_a_clip_at_rest_has_no_drift_and_nothing_beyond_its_mean_frame(network):
    rest = np.repeat(np.random.default_rng(2).standard_normal((1, 1, 4, 6, 2)), 5, 1).astype(np.float32)
    maps = motion_maps(network, np.concatenate([rest, rest]))
    assert not np.any(maps.drift) and not np.any(maps.drift_size)
    np.testing.assert_allclose(maps.field, 0.0, atol=1e-4)


def test_the_first_latent_frame_stands_for_one_video_frame_and_the_others_for_a_stride_each():
    assert video_frames(9, 3) == [range(1), range(1, 5), range(5, 9)]
    assert [len(span) for span in video_frames(49, 13)] == [1, *[4] * 12]
    for frames, latent in ((10, 3), (5, 1), (0, 1)):
        with pytest.raises(ConfigError, match="1 \\+ k strides"):
            video_frames(frames, latent)
