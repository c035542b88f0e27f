"""The inversion that was released with The Invisible Hand of Physics (arXiv 2606.05328), on diffusers with forward hooks.

Written from its formulas, as the peer of ``jaxdiff.invert(..., solver="ddim_label")``. The state at place i is evaluated
with the network told the timestep of place i + 1; what is read is the output of every block in that evaluation, averaged
over the video's tokens. From place 0 (clean) on, of models that predict the flow's velocity v (Wan, LTX),

    x_{i+1} = x_i + (sigma_{i+1} - sigma_i) v(x_i, t_{i+1}),

and of CogVideoX, which predicts v in variance-preserving coordinates, with a for the cumulated alpha (a_0 = 1),

    x0 = sqrt(a_i) z_i - sqrt(1 - a_i) v,   noise = sqrt(1 - a_i) z_i + sqrt(a_i) v,
    z_{i+1} = sqrt(a_{i+1}) x0 + sqrt(1 - a_{i+1}) noise.

Latents and results are channels-last NumPy arrays; torch is imported where it is used.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.subject import SCHEDULER, Size, inputs, twins
from jaxdiff.pipeline import Pipeline


class Read(NamedTuple):
    """What an inversion leaves: `features` [captured, blocks, B, D] and the end state [B, T', H', W', C]."""

    features: np.ndarray
    end: np.ndarray


@dataclasses.dataclass
class BlockMeans:
    """Forward hooks on every block, while `reading` is set: they copy its video tokens to the CPU, as the released code does, or
    (`pool`) keep only the tokens' mean, where the tokens are."""

    blocks: Sequence[Any]
    pool: bool = False
    reading: bool = False
    kept: dict[int, Any] = dataclasses.field(default_factory=dict)

    def __enter__(self) -> "BlockMeans":
        self._handles = [block.register_forward_hook(self._hook(i)) for i, block in enumerate(self.blocks)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: int) -> Callable:
        def keep(module, args, output):
            if self.reading:
                video = output[0] if isinstance(output, tuple) else output  # CogVideoX: (video, text)
                self.kept[index] = video.float().mean(1) if self.pool else video.detach().to("cpu", copy=True)

        return keep

    def stacked(self):
        """Means [blocks, B, D] of the last evaluation, on the CPU."""
        import torch

        means = [self.kept[i] if self.pool else self.kept[i].float().mean(1) for i in range(len(self.blocks))]
        return torch.stack(means).cpu()


def wan(model, scheduler, latents: np.ndarray, text: np.ndarray, *, steps: int, at: Sequence[int]) -> Read:
    """Of a `WanTransformer3DModel`: latents [B, T', H', W', C], text [B, N, D], read at the steps `at`."""
    import torch

    scheduler.set_timesteps(steps)
    words = torch.from_numpy(text)

    def velocity(x, timestep):
        return model(x, timestep.expand(len(x)), words, return_dict=False)[0]

    start = torch.from_numpy(latents).permute(0, 4, 1, 2, 3).contiguous()
    end, features = _flow(model.blocks, velocity, start, scheduler.sigmas, scheduler.timesteps, at)
    return Read(features, end.permute(0, 2, 3, 4, 1).numpy())


def ltx(model, scheduler, latents: np.ndarray, text, mask, *, steps: int, at: Sequence[int], fps: float = 25.0) -> Read:
    """Of an `LTXVideoTransformer3DModel`; text [B, N, D], its mask [B, N]. The grid's shift grows with the video's tokens."""
    import torch

    batch, frames, rows, columns, channels = latents.shape
    c = scheduler.config
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    shift = c.base_shift + slope * (frames * rows * columns - c.base_image_seq_len)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    words, real = torch.from_numpy(text), torch.from_numpy(mask.astype(np.int64))
    where = {"num_frames": frames, "height": rows, "width": columns, "rope_interpolation_scale": (8 / fps, 32, 32)}

    def velocity(x, timestep):
        return model(x, words, timestep.expand(batch), real, return_dict=False, **where)[0]

    start = torch.from_numpy(latents).reshape(batch, -1, channels)
    end, features = _flow(model.transformer_blocks, velocity, start, scheduler.sigmas, scheduler.timesteps, at)
    return Read(features, end.numpy().reshape(latents.shape))


def cogvideox(model, scheduler, latents: np.ndarray, text: np.ndarray, rope, *, steps: int, at: Sequence[int]) -> Read:
    """Of a `CogVideoXTransformer3DModel`; `rope` as its pipeline makes it, None for the 2B."""
    import torch

    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.flip(0)
    kept = [1.0, *(float(scheduler.alphas_cumprod[t]) for t in timesteps)]
    words = torch.from_numpy(text)

    def advance(z, i):
        v = model(z, words, timesteps[i].expand(len(z)), image_rotary_emb=rope, return_dict=False)[0]
        (here, there) = kept[i : i + 2]
        clean = here**0.5 * z - (1 - here) ** 0.5 * v
        noise = (1 - here) ** 0.5 * z + here**0.5 * v
        return there**0.5 * clean + (1 - there) ** 0.5 * noise

    start = torch.from_numpy(latents).permute(0, 1, 4, 2, 3).contiguous()
    end, features = _walk(model.transformer_blocks, advance, start, steps, at)
    return Read(features, end.permute(0, 1, 3, 4, 2).numpy())


def _flow(blocks, velocity, state, sigmas, timesteps, at):
    """The flow's steps over a sampler's grid, from its end to its start."""
    sigmas, timesteps = sigmas.flip(0), timesteps.flip(0)

    def advance(x, i):
        return x + (sigmas[i + 1] - sigmas[i]) * velocity(x, timesteps[i])

    return _walk(blocks, advance, state, len(timesteps), at)


def _walk(blocks, advance, state, steps: int, at):
    """End state, and features [captured, blocks, B, D]."""
    import torch

    wanted, found = set(at), []
    with torch.inference_mode(), BlockMeans(blocks) as means:
        for i in range(steps):
            means.reading = i in wanted
            state = advance(state, i)
            if means.reading:
                found.append(means.stacked())
        return state, torch.stack(found).numpy()


def peer(size: Size, steps: int, at: Sequence[int]) -> tuple[Pipeline, Callable[[], Read]]:
    """Our pipeline, and the published inversion of the same weights and inputs on diffusers."""
    model, pipeline = twins(size)
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler.from_config(SCHEDULER)
    latents, text = inputs(size)
    return pipeline, lambda: wan(model, scheduler, latents, text, steps=steps, at=at)
