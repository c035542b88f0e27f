"""Convolutions made of others equal the ones that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import convolutions
from jaxdiff.models.convolutions import fold, unfold
from tests.reference import relative_error


def noise(*shape):
    return np.random.default_rng(shape[1]).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("inputs", [5, convolutions.NARROW + 1], ids=["narrow", "wide"])
@pytest.mark.parametrize("size, stride", [((3, 3, 3), 1), ((3, 1, 1), 1), ((3, 1, 1), 2)])
def test_conv3d_equals_the_three_dimensional_convolution(inputs, size, stride):
    x, kernel = noise(2, 7, 4, 5, inputs), noise(*size, inputs, 6)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, 1, 1),
        [(0, 0), *[((n - 1) // 2, n // 2) for n in size[1:]]],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    assert relative_error(convolutions.conv3d(x, kernel, stride), expected) <= 1e-6


def test_upsampled_conv2d_equals_upsampling_and_then_the_convolution():
    x, kernel = noise(2, 4, 5, 3), noise(3, 3, 3, 6)
    doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    expected = jax.lax.conv_general_dilated(doubled, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert relative_error(convolutions.upsampled_conv2d(x, jnp.asarray(kernel)), expected) <= 1e-6


@pytest.mark.parametrize("strides", [(1, 4, 4), (2, 3, 1)])
@pytest.mark.parametrize("columns_first", [False, True])
def test_fold_is_inverted_by_unfold(strides, columns_first):
    x = np.random.default_rng(0).standard_normal((2, 4, 12, 12, 3)).astype(np.float32)
    folded = fold(x, strides, columns_first=columns_first)
    assert folded.shape == (2, 4 // strides[0], 12 // strides[1], 12 // strides[2], 3 * np.prod(strides))
    # Channels are ordered (C, t, h, w), or (C, t, w, h).
    offset = 1 if columns_first else strides[2]
    assert folded[0, 0, 0, 0, np.prod(strides) + offset] == x[0, 0, 1, 0, 1]
    np.testing.assert_array_equal(unfold(folded, strides, columns_first=columns_first), x)
