"""V-JEPA 2's encoder: names of `VJEPA2Model` and `VJEPA2ForVideoClassification` -> leaves of `VJEPA2`."""

from jaxdiff.models.vision.vjepa2 import VJEPA2Config
from ports.rules import BACK, INTO, layer, norm, prefixed
from ports.table import Ignore, Table
from ports.transforms import linear, patch_matmul

BLOCK = "encoder.layer.{block}"
PREDICTOR = "the predictor of its training; states are read from the encoder"
POOLER = "the classifier that it was fine-tuned with; states are read from the encoder"


def encoder_table(config: VJEPA2Config) -> Table:
    """The rules of `VJEPA2Model`."""
    patch = patch_matmul(config.in_chans, config.shape.patch)
    block = (
        *norm(f"{BLOCK}.norm1", "blocks/attention_norm"),
        *layer(f"{BLOCK}.attention.query", "blocks/query", linear, INTO),
        *layer(f"{BLOCK}.attention.key", "blocks/key", linear, INTO),
        *layer(f"{BLOCK}.attention.value", "blocks/value", linear, INTO),
        *layer(f"{BLOCK}.attention.proj", "blocks/out", linear, BACK),
        *norm(f"{BLOCK}.norm2", "blocks/mlp_norm"),
        *layer(f"{BLOCK}.mlp.fc1", "blocks/mlp/into", linear, INTO),
        *layer(f"{BLOCK}.mlp.fc2", "blocks/mlp/out", linear, BACK),
    )
    ends = ("layernorm.weight", "layernorm.bias", "proj.weight", "proj.bias")
    embeddings = ("mask_tokens", "predictor_embeddings.weight", "predictor_embeddings.bias")
    return (
        *layer("encoder.embeddings.patch_embeddings.proj", "patch_embedding", patch, (None, "fsdp")),
        *block,
        *norm("encoder.layernorm", "norm"),
        *(Ignore(rule.source.replace("encoder", "predictor", 1), PREDICTOR) for rule in block),
        *(Ignore(f"predictor.{name}", PREDICTOR) for name in ends),
        *(Ignore(f"predictor.embeddings.{name}", PREDICTOR) for name in embeddings),
    )


def classifier_table(config: VJEPA2Config) -> Table:
    """The rules of `VJEPA2ForVideoClassification`."""
    parts = ["pooler.query_tokens", "classifier.weight", "classifier.bias"]
    for where in ("pooler.cross_attention_layer", "pooler.self_attention_layers.{block}"):
        attention = ("self_attn", "cross_attn")["cross" in where]
        names = [f"{attention}.{name}_proj" for name in "qkv"] + ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
        names += [f"{attention}.out_proj"] if attention == "self_attn" else []
        parts += [f"{where}.{name}.{kind}" for name in names for kind in ("weight", "bias")]
    return (*prefixed(encoder_table(config), "vjepa2."), *(Ignore(name, POOLER) for name in parts))
