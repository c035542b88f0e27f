"""Folders of video encoders, as transformers and OpenGVLab publish them.

::

    config.json                             architecture; says by model_type and architectures which encoder it is
    *.safetensors                           weights, single or sharded
    video_preprocessor_config.json, preprocessor_config.json or processor_config.json
                                            how frames are resized, cropped and normalised
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdiff.encoder import Encoder
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.vision import ResNet, VideoMAE
from jaxdiff.models.vision.pictures import IMAGENET_MEAN, IMAGENET_STD, PictureConfig
from ports.families import ENCODERS
from ports.filling import save_params
from ports.folder import load_network, read_json

# model_type -> the class that it means where a file names none.
PLAIN = {"vjepa2": "VJEPA2Model", "videomae": "VideoMAEModel", "resnet": "ResNetModel"}
V2 = "videomaev2"  # begins the model_type of every VideoMAE V2, whatever its size
WEIGHTS = "model.safetensors"


def open_encoder(folder: str | Path, *, dtype: Any = None) -> Encoder:
    """Load a folder as an `Encoder`; see `jaxdiff.load_encoder`."""
    path = Path(folder)
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: no folder of an encoder; it would hold a config.json and *.safetensors")
    network = load_network(path, dtype=dtype, class_name=encoder_class(file, read_json(file)))
    return Encoder(network, pictures(path, network), frames_of(network.config))


def encoder_class(file: Path, values: dict[str, Any]) -> str:
    """The entry of `ports.families.ENCODERS` that a config.json means.

    Raises
    ------
    CheckpointError
        It means none.
    """
    kind, names = str(values.get("model_type")), values.get("architectures") or []
    if kind.lower().startswith(V2):
        return "VideoMAEv2"
    if not names and kind in PLAIN:
        return PLAIN[kind]
    if names and names[0] in ENCODERS:
        return names[0]
    raise CheckpointError(
        f"{file}: model_type={kind!r}, architectures={names!r} is no video encoder that is known "
        f"({', '.join(ENCODERS)}). Other sizes of V-JEPA 2, VideoMAE and ResNet are read by their config.json; diffusion "
        "models are opened with jaxdiff.load"
    )


def pictures(path: Path, network: Network) -> PictureConfig:
    """How frames are made ready, as the folder says, or, where it has no such file, as all published ones do.

    Raises
    ------
    ConfigError
        A processor, key or value that is not known, or pictures of another size than the network takes.
    """
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        file = path / name
        if not file.is_file():
            continue
        values = read_json(file)
        if name.startswith("processor"):  # of several processors in one, since transformers 5
            values = values.get("video_processor", values.get("image_processor", {}))
        if values:
            try:
                return _fitting(PictureConfig.from_dict(values), network)
            except (ConfigError, TypeError) as error:
                raise ConfigError(f"{file}: {error}") from error
    return default_pictures(network)


def default_pictures(network: Network) -> PictureConfig:
    """ImageNet's mean and deviation; V-JEPA 2 and ResNet cut 224 out of 256 parts, VideoMAE the whole."""
    if network.module is ResNet:
        return PictureConfig(256, 3, (224, 224), image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    size = network.config.shape.size
    short = size if network.module is VideoMAE else int(size * 256 / 224)
    return PictureConfig(short, 2, (size, size), image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


def frames_of(config: Any) -> int | None:
    """How many frames the encoder was trained on; None for pictures."""
    return getattr(config, "frames_per_clip", getattr(config, "num_frames", None))


def save_encoder(encoder: Encoder, folder: str | Path) -> Path:
    """Write an encoder as a folder that `jaxdiff.load_encoder` opens, its weights under the published names.

    Returns
    -------
    Path of the folder.
    """
    path, network = Path(folder), encoder.network
    name = next(name for name, port in ENCODERS.items() if port.module is network.module)
    kind = next(kind for kind, plain in PLAIN.items() if plain == name)
    path.mkdir(parents=True, exist_ok=True)
    save_params(network.params, ENCODERS[name].table(network.config), path / WEIGHTS)
    config = {"architectures": [name], "model_type": kind, **dataclasses.asdict(network.config)}
    for file, values in (("preprocessor_config.json", encoder.pictures.to_dict()), ("config.json", config)):
        (path / file).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def _fitting(config: PictureConfig, network: Network) -> PictureConfig:
    if network.module is ResNet:
        return config
    size = network.config.shape.size
    made = config.crop_size or config.size
    if made != (size, size):
        raise ConfigError(f"makes pictures of {made}, and the encoder takes {(size, size)}")
    return config
