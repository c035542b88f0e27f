"""Small T5 and UMT5 encoders of transformers with random tensors."""

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from tests.text import encoder_state

TINY = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
# The reference's class and what differs from the tiny model; `heads`: their width is not d_model.
CASES = {
    "t5": (T5EncoderModel, {"feed_forward_proj": "gated-gelu"}),
    "umt5": (UMT5EncoderModel, {"feed_forward_proj": "gated-gelu"}),
    "heads": (UMT5EncoderModel, {"num_heads": 3, "d_kv": 16, "layer_norm_epsilon": 1e-3, "vocab_size": 100}),
    "relu": (T5EncoderModel, {"feed_forward_proj": "relu", "d_kv": 16, "num_heads": 2}),
    "buckets": (
        T5EncoderModel,
        {
            "feed_forward_proj": "gated-silu",
            "relative_attention_num_buckets": 12,
            "relative_attention_max_distance": 40,
        },
    ),
}


def encoder(kind: type, seed: int = 0, **config) -> torch.nn.Module:
    """A reference encoder in which every tensor is random; the two names of its embedding are one tensor."""
    made = {T5EncoderModel: T5Config, UMT5EncoderModel: UMT5Config}[kind](**{**TINY, **config})
    model = kind(made).eval()
    tied = "encoder.embed_tokens.weight"
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != tied}
    state = encoder_state(shapes, seed)
    state[tied] = state["shared.weight"]
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return model


def batch(vocabulary: int, tokens: int = 150, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Ids [2, N], longer than the largest distance with a bucket of its own, and a mask of 2/3 and all of them."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (2, tokens))
    return ids.astype(np.int32), np.arange(tokens) < np.array([[tokens * 2 // 3], [tokens]])


@torch.no_grad()
def run(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The reference's embeddings, float32."""
    attention = None if mask is None else torch.from_numpy(mask).long()
    return model(torch.from_numpy(ids).long(), attention).last_hidden_state.float().numpy()
