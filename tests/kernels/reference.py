"""Attention in NumPy, float64, and inputs for which a wrong map looks wrong."""

import numpy as np


def reference(q, k, v, bias=0.0):
    """The output [B, Sq, K, d] and the weights [B, K, Sq, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqkd,bskd->bkqs", q, k, optimize=True) * q.shape[-1] ** -0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bkqs,bskd->bqkd", weights, v, optimize=True), weights


def inputs(batch=2, queries=96, keys=96, heads=3, depth=16, gain=3.0, dtype=np.float32):
    """q, k, v, normal."""
    rng = np.random.default_rng(0)
    # A gain of 3 gives peaked softmax rows: with flat ones a wrong map would look right.
    q = (gain * rng.standard_normal((batch, queries, heads, depth))).astype(dtype)
    k, v = (rng.standard_normal((batch, keys, heads, depth)).astype(dtype) for _ in range(2))
    return q, k, v
