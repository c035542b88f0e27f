"""Pictures to what an image encoder takes: resized, cropped, rescaled and normalised as its folder says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError

# Under which keys files name their processor.
NAMES = ("video_processor_type", "image_processor_type", "feature_extractor_type")
# Keys that change no pixel of a clip of bytes in RGB whose frames are chosen elsewhere.
IRRELEVANT = (
    "data_format", "default_to_square", "device", "disable_grouping", "do_convert_rgb", "do_sample_frames", "fps",
    "input_data_format", "model_valid_processing_keys", "num_frames", "pad_size", "processor_class", "return_metadata", "return_tensors",
    "video_metadata",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """Preprocessing of an image or video encoder, as its preprocessor_config.json has it; the defaults are CLIP's.

    Parameters
    ----------
    size : short side in pixels, or (height, width), that pictures are resized to; None: as they are.
    resample : the filter, by Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.
    crop_size : (height, width) cut out of the middle; None: nothing is cut. What is missing is black.
    rescale_factor : of the bytes; None: as they are.
    image_mean, image_std : per channel, after rescaling; None: not normalised.
    """

    size: int | tuple[int, int] | None = 224
    resample: int = 3
    crop_size: tuple[int, int] | None = (224, 224)
    rescale_factor: float | None = 1 / 255
    image_mean: tuple[float, ...] | None = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] | None = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PictureConfig":
        """From a parsed preprocessor_config.json.

        Raises
        ------
        ConfigError : a processor that is not in `PROCESSORS`, or a key or value that is not known.
        """
        values = {key: value for key, value in values.items() if not key.startswith("_") and value is not None}
        named = [values.pop(key) for key in NAMES if key in values]
        name = named[0] if named else "CLIPImageProcessor"
        for key in (*IRRELEVANT, *(["do_pad"] if values.get("do_pad") is False else [])):
            values.pop(key, None)
        if name not in PROCESSORS:
            raise ConfigError(f"image processor {name!r} is not supported; {', '.join(PROCESSORS)} are")
        plain, adapt = PROCESSORS[name]
        values = {"do_center_crop": plain.crop_size is not None} | adapt(values)
        done = {step: values.pop(f"do_{step}", True) for step in ("resize", "center_crop", "rescale", "normalize")}
        taken = {
            "size": _size(values.pop("size", plain.size)) if done["resize"] else None,
            "resample": values.pop("resample", plain.resample),
            "crop_size": _crop(values.pop("crop_size", plain.crop_size)) if done["center_crop"] else None,
            "rescale_factor": values.pop("rescale_factor", plain.rescale_factor) if done["rescale"] else None,
            "image_mean": tuple(values.pop("image_mean", plain.image_mean)) if done["normalize"] else None,
            "image_std": tuple(values.pop("image_std", plain.image_std)) if done["normalize"] else None,
        }
        # Of a step that is left out the numbers decide nothing.
        unknown = sorted(set(values) - set(taken))
        if unknown:
            raise ConfigError(f"image processor: unknown key {unknown[0]!r}={values[unknown[0]]!r}")
        return cls(**taken)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes this configuration of."""
        size, crop = self.size, self.crop_size
        steps: dict[str, dict[str, Any]] = {
            "resize": {"size": {"shortest_edge": size} if isinstance(size, int) else size and _sides(size)},
            "center_crop": {"crop_size": crop and _sides(crop)},
            "rescale": {"rescale_factor": self.rescale_factor},
            "normalize": {"image_mean": self.image_mean, "image_std": self.image_std},
        }
        values: dict[str, Any] = {"image_processor_type": "CLIPImageProcessor", "resample": self.resample}
        for step, numbers in steps.items():
            values[f"do_{step}"] = None not in numbers.values()
            values |= {key: value for key, value in numbers.items() if value is not None}
        return values


def _as_written(values: dict[str, Any]) -> dict[str, Any]:
    return values


def _vjepa2(values: dict[str, Any]) -> dict[str, Any]:
    """V-JEPA 2 resizes to 256 / 224 of what it crops, whatever the file says."""
    height, _ = _crop(values.get("crop_size", 256))
    return values | {"size": {"shortest_edge": int(height * 256 / 224)}}


def _convnext(values: dict[str, Any]) -> dict[str, Any]:
    """ConvNeXt's way: below 384 pixels the short side is resized to 1 / crop_pct of what is cropped; from 384 on the
    whole picture is pressed into the square."""
    values = dict(values)
    edge, share = _size(values.pop("size", 384)), values.pop("crop_pct", 224 / 256)
    if not isinstance(edge, int):
        raise ConfigError(f"image processor: size={edge!r} is not supported here; a short side is")
    if not values.get("do_resize", True):
        return values
    if edge >= 384:
        return values | {"size": {"height": edge, "width": edge}}
    if values.get("do_center_crop"):
        raise ConfigError("image processor: do_center_crop beside crop_pct is not supported")
    return values | {"size": int(edge / share), "crop_size": edge, "do_center_crop": True}


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (PictureConfig(), _as_written)
_VIDEOMAE = (PictureConfig(resample=2, image_mean=(0.5,) * 3, image_std=(0.5,) * 3), _as_written)
_CONVNEXT = (PictureConfig(size=384, crop_size=None, image_mean=(0.5,) * 3, image_std=(0.5,) * 3), _convnext)
# Published class -> what it does where its file is silent, and how it reads its numbers.
PROCESSORS = {
    "CLIPImageProcessor": _CLIP,
    "CLIPImageProcessorFast": _CLIP,
    "CLIPFeatureExtractor": _CLIP,
    "VideoMAEImageProcessor": _VIDEOMAE,
    "VideoMAEVideoProcessor": _VIDEOMAE,
    "VideoMAEFeatureExtractor": _VIDEOMAE,
    "VJEPA2VideoProcessor": (
        PictureConfig(292, 2, (256, 256), image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD), _vjepa2,
    ),
    "ConvNextImageProcessor": _CONVNEXT,
    "ConvNextImageProcessorFast": _CONVNEXT,
    "ConvNextFeatureExtractor": _CONVNEXT,
}  # fmt: skip


def to_pixels(pictures: np.ndarray, config: PictureConfig) -> np.ndarray:
    """Pictures as the image encoder takes them.

    Bit for bit what transformers' Pillow processor of the same configuration makes of them: resizing is Pillow's own, on
    bytes. (Its torchvision processor rounds in other places.)

    Parameters
    ----------
    pictures : uint8 [B, H, W, 3]

    Returns
    -------
    float32 [B, h, w, 3]

    Raises
    ------
    ConfigError : anything but bytes.
    """
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise ConfigError(f"pictures must be uint8 [B, H, W, 3], got {pictures.dtype} {pictures.shape}")
    x = pictures
    if config.size is not None:
        x = _resize(x, config.size, config.resample)
    if config.crop_size is not None:
        x = _middle(x, config.crop_size)
    if config.rescale_factor is not None:
        x = (x.astype(np.float64) * config.rescale_factor).astype(np.float32)
    if config.image_mean is not None:
        mean, std = (np.asarray(values, np.float32) for values in (config.image_mean, config.image_std))
        x = (x.astype(np.float32) - mean) / std
    return x.astype(np.float32)


def _resize(pictures: np.ndarray, size: int | tuple[int, int], resample: int) -> np.ndarray:
    from PIL import Image  # slow to import, and only pictures need it

    height, width = pictures.shape[1:3]
    if isinstance(size, int):
        long = int(size * max(height, width) / min(height, width))
        size = (size, long) if height <= width else (long, size)
    shape = (size[1], size[0])  # Pillow's order
    return np.stack([np.asarray(Image.fromarray(p).resize(shape, Image.Resampling(resample))) for p in pictures])


def _middle(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of [B, H, W, C]; a picture that is too small is first set on black, one pixel up and left if it does
    not come out even."""
    height, width = (max(have, want) for have, want in zip(x.shape[1:3], size, strict=True))
    top, left = -(-(height - x.shape[1]) // 2), -(-(width - x.shape[2]) // 2)
    below, right = height - x.shape[1] - top, width - x.shape[2] - left
    x = np.pad(x, ((0, 0), (top, below), (left, right), (0, 0)))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return x[:, top : top + size[0], left : left + size[1]]


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _size(size: Any) -> int | tuple[int, int]:
    match size:
        case int():
            return size
        case {"shortest_edge": int(edge), **rest} if not rest:
            return edge
        case {"height": int(height), "width": int(width), **rest} if not rest:
            return height, width
    raise ConfigError(f"image processor: size={size!r} is not supported; a short side or a height and a width are")


def _crop(size: Any) -> tuple[int, int]:
    match size:
        case int():
            return size, size
        case (int(height), int(width)) | {"height": int(height), "width": int(width)}:
            return height, width
    raise ConfigError(f"image processor: crop_size={size!r} is not supported; a height and a width are")


def first_picture(image, frame: int) -> tuple[Any, int | None]:
    """A picture [B, H, W, 3], and the number of frames if it is taken out of a video."""
    shape = np.shape(image)
    if len(shape) not in (3, 4, 5) or shape[-1] != 3:
        raise ConfigError(f"an image must be [H, W, 3], [B, H, W, 3], or a video [B, T, H, W, 3]; got {shape}")
    image = image if isinstance(image, jax.Array) else np.asarray(image)
    if image.dtype != np.uint8 and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ConfigError(f"an image must be uint8, or float in [-1, 1]; got {image.dtype}")
    if len(shape) == 5:
        return image[:, frame], shape[1]
    return (image[None] if len(shape) == 3 else image), None


def as_floats(video: jax.Array) -> jax.Array:
    """uint8 as float32 in [-1, 1]; anything else as it is."""
    return video.astype(jnp.float32) / 127.5 - 1.0 if video.dtype == jnp.uint8 else video


def as_bytes(picture: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1] as uint8; bytes as they are."""
    if picture.dtype == np.uint8:
        return picture
    return np.clip(np.round((picture.astype(np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def image_fields(
    pipeline: Any, first: jax.Array, last: jax.Array | None, pixels: Any, *, frames: int
) -> dict[str, Any]:
    """What the conditioning of a video of `frames` frames that begins with `first` (and ends with `last`), [B, H, W, 3], has
    of them; `pixels` are the same pictures as the image encoder takes them, None where the network takes no tokens."""
    tokens = None
    if pixels is not None:
        tokens = jnp.concatenate([pipeline.image_encoder(part).penultimate for part in pixels], 1)
    last = None if last is None else as_floats(last)
    return pipeline.family.image_fields(pipeline, as_floats(first), last, tokens, frames)
