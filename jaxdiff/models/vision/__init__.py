"""Vision: pictures to the tokens that transformers are conditioned on."""

from jaxdiff.models.vision.clip import CLIPVision, CLIPVisionConfig, CLIPVisionOutput
from jaxdiff.models.vision.pictures import PictureConfig, to_pixels

__all__ = ["CLIPVision", "CLIPVisionConfig", "CLIPVisionOutput", "PictureConfig", "to_pixels"]
