"""transformers' video encoders on tiny configurations, every tensor random."""

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from tests.encoders import PROCESSORS, encoder_state

CONFIGS = {"VJEPA2": "VJEPA2Config", "VideoMAE": "VideoMAEConfig", "ResNet": "ResNetConfig"}


def model(name: str, config: dict, seed: int) -> torch.nn.Module:
    """A published class with random weights."""
    family = next(prefix for prefix in CONFIGS if name.startswith(prefix))
    made = getattr(transformers, name)(getattr(transformers, CONFIGS[family])(**config))
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in encoder_state(shapes, seed).items()}
    made.load_state_dict(state, strict=True)
    return made.eval()


@torch.no_grad()
def states(made: torch.nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """What enters the blocks (or stages), what leaves each of them, and of transformers the last hidden state.

    pixels : [B, T, H, W, C]; ResNet's states are [B, T, h, w, D], all others [B, S, D].
    """
    clip = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
    base = getattr(made, made.base_model_prefix, made)
    if isinstance(made, transformers.ResNetPreTrainedModel):
        found = base(clip.flatten(0, 1), output_hidden_states=True).hidden_states
        return [x.permute(0, 2, 3, 1).reshape(*pixels.shape[:2], *x.shape[2:], x.shape[1]).numpy() for x in found]
    seen: list[torch.Tensor] = []

    def record(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    video = isinstance(made, transformers.VJEPA2PreTrainedModel)
    embeddings = base.encoder.embeddings if video else base.embeddings
    hooks = [module.register_forward_hook(record) for module in (embeddings, *base.encoder.layer)]
    last = (base(clip, skip_predictor=True) if video else base(clip)).last_hidden_state
    for hook in hooks:
        hook.remove()
    return [x.numpy() for x in (*seen, last)]


def processed(case: str, video: np.ndarray) -> np.ndarray:
    """What the published processor makes of a clip [T, H, W, 3]: [T, h, w, 3].

    V-JEPA 2's processor needs torchvision, which is not here; it is written out on what that library calls: torch's
    antialiased interpolation of bytes, a crop whose offset is rounded down, and normalisation in units of bytes.
    """
    numbers = {k: v for k, v in PROCESSORS[case].items() if not k.endswith("_type")}
    if case == "vjepa2":
        return vjepa2_pixels(video, numbers["crop_size"], numbers["image_mean"], numbers["image_std"])
    kind = VideoMAEImageProcessorPil if case == "videomae" else ConvNextImageProcessorPil
    frames = [Image.fromarray(frame) for frame in video]
    made = kind(**numbers)(frames, return_tensors="np")["pixel_values"]
    return np.asarray(made).reshape(len(video), 3, *made.shape[-2:]).transpose(0, 2, 3, 1)


def vjepa2_pixels(video: np.ndarray, crop: int, mean, std) -> np.ndarray:
    """See `processed`."""
    height, width = video.shape[1:3]
    short = int(crop * 256 / 224)
    sides = [
        short if side == min(height, width) else int(short * side / min(height, width)) for side in (height, width)
    ]
    x = torch.from_numpy(video).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, sides, mode="bilinear", antialias=True)
    top, left = (int((side - crop) / 2.0) for side in sides)
    x = x[..., top : top + crop, left : left + crop].float()
    mean, std = (255.0 * torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((x - mean) / std).permute(0, 2, 3, 1).numpy()
