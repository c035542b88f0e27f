"""VideoMAE's encoder: names of `VideoMAEModel`, of the classes around it, and of VideoMAE V2 -> leaves of `VideoMAE`.

Files written before transformers 5 hold the biases of queries and values as q_bias and v_bias beside the weights; V2 holds
these, and queries, keys and values in one tensor. `named` and `v2_named` give all of them the names of the tables.
"""

from jaxdiff.models.vision.videomae import VideoMAEConfig
from ports.renaming import renamed
from ports.rules import BACK, INTO, layer, norm, prefixed
from ports.safetensors_reader import Checkpoint, Split
from ports.table import Ignore, Table
from ports.transforms import linear, patch_matmul

BLOCK = "encoder.layer.{block}"
DECODER = "the decoder of its training; states are read from the encoder"
HEAD = "the classifier that it was fine-tuned with, and the norm of the averages that it takes"
BIASES = {"q_bias": "query.bias", "v_bias": "value.bias"}
QKV = ("query", "key", "value")
ALL = [slice(None)]  # rows
# Of V2, which wraps its network in a `model`.
V2_BLOCK = "blocks.{block}"
V2_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    f"{BLOCK}.layernorm_before": f"{V2_BLOCK}.norm1",
    f"{BLOCK}.attention.attention.query": f"{V2_BLOCK}.attn.query",
    f"{BLOCK}.attention.attention.key": f"{V2_BLOCK}.attn.key",
    f"{BLOCK}.attention.attention.value": f"{V2_BLOCK}.attn.value",
    f"{BLOCK}.attention.output.dense": f"{V2_BLOCK}.attn.proj",
    f"{BLOCK}.layernorm_after": f"{V2_BLOCK}.norm2",
    f"{BLOCK}.intermediate.dense": f"{V2_BLOCK}.mlp.fc1",
    f"{BLOCK}.output.dense": f"{V2_BLOCK}.mlp.fc2",
    "layernorm": "norm",
}


def encoder_table(config: VideoMAEConfig) -> Table:
    """The rules of `VideoMAEModel`."""
    patch = patch_matmul(config.num_channels, config.shape.patch)
    return (
        *layer("embeddings.patch_embeddings.projection", "patch_embedding", patch, (None, "fsdp")),
        *_block(BLOCK, "blocks"),
        *norm("layernorm", "norm"),
    )


def pretraining_table(config: VideoMAEConfig) -> Table:
    """The rules of `VideoMAEForPreTraining`."""
    decoder = _block("decoder.decoder_layers.{block}", "none")
    ends = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    return (
        *prefixed(encoder_table(config), "videomae."),
        *(Ignore(rule.source, DECODER) for rule in decoder),
        *(Ignore(f"decoder.{name}", DECODER) for name in ends),
        *(Ignore(name, DECODER) for name in ("mask_token", "encoder_to_decoder.weight")),
    )


def classifier_table(config: VideoMAEConfig) -> Table:
    """The rules of `VideoMAEForVideoClassification`."""
    return (*prefixed(encoder_table(config), "videomae."), *_ignored("fc_norm", "classifier"))


def v2_table(config: VideoMAEConfig) -> Table:
    """The rules of OpenGVLab's VideoMAE V2."""
    table = (*renamed(encoder_table(config), V2_NAMES), *_ignored("fc_norm", "head"))
    return prefixed(table, "model.")


def named(weights: Checkpoint) -> Checkpoint:
    """A VideoMAE checkpoint, old or new, with the names of transformers 5."""
    pieces = {_renamed(name): (name, ALL) for name in weights.names() if _renamed(name) != name}
    return Split(weights, pieces) if pieces else weights


def v2_named(weights: Checkpoint) -> Checkpoint:
    """A V2 checkpoint with queries, keys and values apart, and the prefix that some copies lack."""
    pieces: dict[str, tuple[str, list[slice]]] = {}
    for name in weights.names():
        new = _renamed(name if name.startswith("model.") else f"model.{name}")
        if new.endswith(".attn.qkv.weight"):
            step = weights.shape(name)[0] // 3
            for i, part in enumerate(QKV):
                pieces[new.replace(".qkv.", f".{part}.")] = (name, [slice(i * step, (i + 1) * step)])
        elif new != name:
            pieces[new] = (name, ALL)
    return Split(weights, pieces)


def _renamed(name: str) -> str:
    head, _, kind = name.rpartition(".")
    return f"{head}.{BIASES[kind]}" if kind in BIASES else name


def _block(source: str, leaf: str) -> Table:
    attention = f"{source}.attention.attention"
    return (
        *norm(f"{source}.layernorm_before", f"{leaf}/attention_norm"),
        *(rule for part in QKV for rule in layer(f"{attention}.{part}", f"{leaf}/{part}", linear, INTO)),
        *layer(f"{source}.attention.output.dense", f"{leaf}/out", linear, BACK),
        *norm(f"{source}.layernorm_after", f"{leaf}/mlp_norm"),
        *layer(f"{source}.intermediate.dense", f"{leaf}/mlp/into", linear, INTO),
        *layer(f"{source}.output.dense", f"{leaf}/mlp/out", linear, BACK),
    )


def _ignored(*modules: str) -> Table:
    return tuple(Ignore(f"{module}.{kind}", HEAD) for module in modules for kind in ("weight", "bias"))
