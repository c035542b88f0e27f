"""Vision: pictures to the tokens that transformers are conditioned on, and clips to the states that are compared with
theirs."""

from jaxdiff.models.vision.clip import CLIPVision, CLIPVisionConfig, CLIPVisionOutput
from jaxdiff.models.vision.pictures import PictureConfig, to_pixels
from jaxdiff.models.vision.resnet import ResNet, ResNetConfig
from jaxdiff.models.vision.videomae import VideoMAE, VideoMAEConfig
from jaxdiff.models.vision.vjepa2 import VJEPA2, VJEPA2Config

__all__ = [
    "VJEPA2",
    "CLIPVision",
    "CLIPVisionConfig",
    "CLIPVisionOutput",
    "PictureConfig",
    "ResNet",
    "ResNetConfig",
    "VJEPA2Config",
    "VideoMAE",
    "VideoMAEConfig",
    "to_pixels",
]
