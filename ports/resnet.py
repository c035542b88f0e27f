"""ResNet: names of `ResNetModel` and `ResNetForImageClassification` -> leaves of `ResNet`."""

from jaxdiff.models.vision.resnet import ResNetConfig
from ports.rules import prefixed
from ports.table import Ignore, Rule, Table
from ports.transforms import conv2d

LAYER, LEAF = "encoder.stages.{i}.layers.{j}", "stages/{i}/layers/{j}"


def resnet_table(config: ResNetConfig) -> Table:
    """The rules of `ResNetModel`."""
    return (
        *_convolution("embedder.embedder", "stem"),
        *_convolution(f"{LAYER}.shortcut", f"{LEAF}/shortcut"),
        *_convolution(f"{LAYER}.layer.{{k}}", f"{LEAF}/convs/{{k}}"),
    )


def classifier_table(config: ResNetConfig) -> Table:
    """The rules of `ResNetForImageClassification`."""
    reason = "the classifier of pictures; features are read before it"
    head = (Ignore(f"classifier.1.{kind}", reason) for kind in ("weight", "bias"))
    return (*prefixed(resnet_table(config), "resnet."), *head)


def _convolution(source: str, leaf: str) -> Table:
    """A convolution and its batch norm, the statistics of which are frozen."""
    norm = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return (
        Rule(f"{source}.convolution.weight", f"{leaf}/kernel", conv2d),
        *(Rule(f"{source}.normalization.{a}", f"{leaf}/{b}", keep_float32=True) for a, b in norm.items()),
        Ignore(f"{source}.normalization.num_batches_tracked", "how often the statistics were updated"),
    )
