"""Arrays in, arrays out: the numerical kernels, importable alone into other JAX code.

>>> import jax, jaxdiff.kernels as kernels
>>> q = k = v = jax.numpy.ones((1, 640, 4, 64))        # [B, S, K heads, d]
>>> kernels.attention(q, k, v).shape
(1, 640, 4, 64)
>>> kernels.attention_with_frame_map(q, k, v, frames=5)[1].shape      # [B, K, query frame, key frame]
(1, 4, 5, 5)
"""

from jaxdiff.kernels.attention import Between, attention, compiling_for
from jaxdiff.kernels.convolution import conv2d
from jaxdiff.kernels.frame_map import attention_with_frame_map, frame_attention_map, sampled_frame_attention_map
from jaxdiff.kernels.optical_flow import lucas_kanade
from jaxdiff.kernels.remat import keep_self_attention
from jaxdiff.kernels.rope import rope_3d, rotate_halves, rotate_pairs
from jaxdiff.kernels.sequence import self_attention

__all__ = [
    "Between",
    "attention",
    "attention_with_frame_map",
    "compiling_for",
    "conv2d",
    "frame_attention_map",
    "keep_self_attention",
    "lucas_kanade",
    "rope_3d",
    "rotate_halves",
    "rotate_pairs",
    "sampled_frame_attention_map",
    "self_attention",
]
