"""CLIP's vision tower: names of `CLIPVisionModel` -> leaves of `CLIPVision`."""

from jaxdiff.models.vision.clip import CLIPVisionConfig
from ports.rules import BACK, INTO, layer, norm, prefixed
from ports.table import Ignore, Rule, Table
from ports.transforms import linear, patch_matmul

PREFIX = "vision_model."  # of every name in files written before transformers 5
BLOCK = "encoder.layers.{block}"


def vision_table(config: CLIPVisionConfig) -> Table:
    """The rules for one configuration, by the names without the prefix."""
    patch = patch_matmul(config.num_channels, (config.patch_size, config.patch_size))
    return (
        Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", patch, spec=(None, "fsdp")),
        Rule("embeddings.class_embedding", "class_embedding"),
        Rule("embeddings.position_embedding.weight", "positions"),
        Ignore("embeddings.position_ids", "a constant that is computed here"),
        *norm("pre_layrnorm", "norm_in"),
        *norm(f"{BLOCK}.layer_norm1", "blocks/attention_norm"),
        *layer(f"{BLOCK}.self_attn.q_proj", "blocks/query", linear, INTO),
        *layer(f"{BLOCK}.self_attn.k_proj", "blocks/key", linear, INTO),
        *layer(f"{BLOCK}.self_attn.v_proj", "blocks/value", linear, INTO),
        *layer(f"{BLOCK}.self_attn.out_proj", "blocks/out", linear, BACK),
        *norm(f"{BLOCK}.layer_norm2", "blocks/mlp_norm"),
        *layer(f"{BLOCK}.mlp.fc1", "blocks/mlp/into", linear, INTO),
        *layer(f"{BLOCK}.mlp.fc2", "blocks/mlp/out", linear, BACK),
        *norm("post_layernorm", "norm_out"),
    )


def projecting_table(config: CLIPVisionConfig) -> Table:
    """The rules of `CLIPVisionModelWithProjection`."""
    projection = Ignore("visual_projection.weight", "into the space that CLIP shares with text; not used here")
    return (*prefixed(vision_table(config), PREFIX), projection)
