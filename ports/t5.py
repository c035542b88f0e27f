"""T5 and UMT5 encoders: names of `T5EncoderModel` and `UMT5EncoderModel` -> leaves of `T5Encoder`."""

from jaxdiff.models.text.t5 import T5Config
from ports.rules import BACK, INTO
from ports.table import Rule, Table
from ports.transforms import linear

BLOCK = "encoder.block.{block}.layer"
BIAS = "SelfAttention.relative_attention_bias.weight"


def encoder_table(config: T5Config) -> Table:
    """The rules for one configuration. Norms and relative position biases stay float32: they are small, and used in
    float32.
    """
    first, second = f"{BLOCK}.0", f"{BLOCK}.1"
    mlp = {"wi_0": "mlp_gate", "wi_1": "mlp_into"} if config.gated else {"wi": "mlp_into"}
    bias = (
        (f"{first}.{BIAS}", "blocks/relative_bias/embedding")
        if config.bias_per_block
        else (f"encoder.block.0.layer.0.{BIAS}", "relative_bias/embedding")
    )
    return (
        # One tensor that both modules of the reference share; files hold it under either name or both.
        Rule("shared.weight", "embedding", spec=(None, "fsdp"), aliases=("encoder.embed_tokens.weight",)),
        Rule(*bias, keep_float32=True),
        Rule(f"{first}.layer_norm.weight", "blocks/attention_norm/scale", keep_float32=True),
        Rule(f"{first}.SelfAttention.q.weight", "blocks/query/kernel", linear, INTO),
        Rule(f"{first}.SelfAttention.k.weight", "blocks/key/kernel", linear, INTO),
        Rule(f"{first}.SelfAttention.v.weight", "blocks/value/kernel", linear, INTO),
        Rule(f"{first}.SelfAttention.o.weight", "blocks/out/kernel", linear, BACK),
        Rule(f"{second}.layer_norm.weight", "blocks/mlp_norm/scale", keep_float32=True),
        *(
            Rule(f"{second}.DenseReluDense.{name}.weight", f"blocks/{leaf}/kernel", linear, INTO)
            for name, leaf in mlp.items()
        ),
        Rule(f"{second}.DenseReluDense.wo.weight", "blocks/mlp_out/kernel", linear, BACK),
        Rule("encoder.final_layer_norm.weight", "norm/scale", keep_float32=True),
    )
