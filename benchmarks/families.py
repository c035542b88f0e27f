"""Mid-sized transformers of other families: ours, and the same weights in diffusers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.depth import COGVIDEOX, FLOW
from benchmarks.rows import need
from benchmarks.subject import loaded, randomised
from jaxdiff.conditioning import Conditioning
from jaxdiff.pipeline import Pipeline

# As `subject.MID`: 8 layers, 6 heads of 64, 1280 tokens of video, 64 of text; and a toy.
LAYERS, HEADS, TEXT = (8, 2), (6, 2), (64, 8)


@dataclasses.dataclass(frozen=True)
class Twin:
    """Ours and theirs. `run(timestep)` is one forward of the peer; `channels_last` makes ours of its output."""

    pipeline: Pipeline
    latents: jax.Array  # [B, T', H', W', C]
    cond: Conditioning
    run: Callable[[float], Any]
    channels_last: Callable[[np.ndarray], np.ndarray]

    def theirs(self, timestep: float) -> np.ndarray:
        return self.channels_last(self.run(timestep).numpy())


def cogvideox(tiny: bool) -> Twin:
    """Text to video, positions as of the 2B."""
    need("torch", "diffusers")
    import torch
    from diffusers import CogVideoXTransformer3DModel

    side, count = (8, TEXT[1]) if tiny else (32, TEXT[0])
    model = randomised(
        CogVideoXTransformer3DModel(
            num_attention_heads=HEADS[tiny], attention_head_dim=64, num_layers=LAYERS[tiny], text_embed_dim=128,
            max_text_seq_length=count, sample_width=side, sample_height=side, sample_frames=17,
        )
    )  # fmt: skip
    latents, text = _random((1, 5, side, side, 16), (1, count, 128))
    moved, words = torch.from_numpy(latents).permute(0, 1, 4, 2, 3).contiguous(), torch.from_numpy(text)

    @torch.inference_mode()
    def run(timestep):
        return model(moved, words, torch.full((1,), timestep), return_dict=False)[0]

    pipeline = loaded(model, "CogVideoXPipeline", COGVIDEOX)
    return Twin(
        pipeline, jnp.asarray(latents), Conditioning(text=jnp.asarray(text)), run, lambda x: x.transpose(0, 1, 3, 4, 2)
    )


def ltx(tiny: bool) -> Twin:
    """Text to video, as the 2B of 0.9.0."""
    need("torch", "diffusers")
    import torch
    from diffusers import LTXVideoTransformer3DModel

    heads, side, count = (HEADS[1], 4, TEXT[1]) if tiny else (HEADS[0], 16, TEXT[0])
    model = randomised(
        LTXVideoTransformer3DModel(
            num_attention_heads=heads, attention_head_dim=64, num_layers=LAYERS[tiny], cross_attention_dim=64 * heads,
            caption_channels=128,
        )
    )  # fmt: skip
    latents, text = _random((1, 5, side, side, 128), (1, count, 128))
    moved, words = torch.from_numpy(latents).reshape(1, -1, 128), torch.from_numpy(text)
    real = torch.ones(1, count, dtype=torch.int64)
    where = {"num_frames": 5, "height": side, "width": side, "rope_interpolation_scale": (8 / 25, 32, 32)}

    @torch.inference_mode()
    def run(timestep):
        return model(moved, words, torch.full((1,), timestep), real, return_dict=False, **where)[0]

    cond = Conditioning(text=jnp.asarray(text), text_mask=jnp.ones((1, count), bool))
    pipeline = loaded(model, "LTXPipeline", FLOW)
    return Twin(pipeline, jnp.asarray(latents), cond, run, lambda x: x.reshape(latents.shape))


def _random(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
