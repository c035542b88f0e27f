"""The written-out gradient of conv2d against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.kernels import conv2d


def plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(
    "size, stride, padding",
    [
        ((3, 3), 1, ((1, 1), (1, 1))),
        ((3, 3), 2, ((0, 1), (0, 1))),
        ((1, 1), 1, ((0, 0), (0, 0))),
        ((3, 2), 1, ((1, 1), (0, 1))),
        ((3, 3), 2, ((1, 1), (1, 1))),
        ((2, 2), 1, ((1, 1), (1, 1))),  # more outputs than inputs
    ],
)
def test_gradients_equal_those_of_the_plain_convolution(size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 6, 3)).astype(np.float32)
    kernel = rng.standard_normal((*size, 3, 5)).astype(np.float32)

    def scalar(convolve):
        return lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, stride, padding)))

    np.testing.assert_allclose(conv2d(x, kernel, stride, padding), plain(x, kernel, stride, padding), atol=1e-5)
    got = jax.grad(scalar(conv2d), (0, 1))(x, kernel)
    want = jax.grad(scalar(plain), (0, 1))(x, kernel)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)  # float32, sums of up to 96 terms of order one
