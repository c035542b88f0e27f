"""What a backward pass needs of attention, kept under a name, so that no backward pass has to run attention forward again."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

SELF_ATTENTION = "self_attention"
_CUDNN = "dot_product_attention_fwd"  # how the names of jax.nn's primitives for cuDNN's forward pass begin


def named(output: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """The output of attention under the name by which `keep_self_attention` finds it, where q and k are of the same tokens."""
    return checkpoint_name(output, SELF_ATTENTION) if q.shape == k.shape else output


def keep_self_attention(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """A policy for `jax.checkpoint`: keep what self-attention gives and its backward pass reads again, recompute all else.

    That is the output [B, S, K, d], and of flash kernels the logarithm of the sum of each row [B, K, S]; q, k and v, which
    linear layers make, are recomputed. Attention to other tokens is recomputed too: a byte that is kept saves two operations
    a key, less than in any linear layer where the keys are few words.
    """
    if primitive.name.startswith(_CUDNN):  # jax.nn has no name for what it keeps
        return inputs[0].shape == inputs[1].shape
    return primitive.name == "name" and params["name"] == SELF_ATTENTION
