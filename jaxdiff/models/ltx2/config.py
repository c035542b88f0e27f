"""Architecture numbers of LTX-2.0: of its transformer and of its text connectors."""

import dataclasses
from typing import Any

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import ConfigFromDict

ROPE_TYPES = ("interleaved", "split")


@dataclasses.dataclass(frozen=True)
class LTX2TransformerConfig(ConfigFromDict):
    """Architecture numbers, named as in the published transformer/config.json.

    Fields that begin with `audio_` are those of the audio stream; the widths of the attention between the two streams
    are the audio stream's. `perturbed_attn` and `use_prompt_adaln_single` are of later versions and change nothing in
    what is computed here.

    Raises
    ------
    ConfigError : a value that no checkpoint of 2.0 has and that changes the computation (2.3 and 2.5 have several), or
        sizes that do not fit.
    """

    in_channels: int = 128
    out_channels: int | None = 128
    patch_size: int = 1
    patch_size_t: int = 1
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    cross_attention_dim: int = 4096
    vae_scale_factors: tuple[int, int, int] = (8, 32, 32)
    pos_embed_max_pos: int = 20
    base_height: int = 2048
    base_width: int = 2048
    gated_attn: bool = False
    cross_attn_mod: bool = False
    audio_in_channels: int = 128
    audio_out_channels: int | None = 128
    audio_patch_size: int = 1
    audio_patch_size_t: int = 1
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_cross_attention_dim: int = 2048
    audio_scale_factor: int = 4
    audio_pos_embed_max_pos: int = 20
    audio_sampling_rate: int = 16000
    audio_hop_length: int = 160
    audio_gated_attn: bool = False
    audio_cross_attn_mod: bool = False
    num_layers: int = 48
    activation_fn: str = "gelu-approximate"
    qk_norm: str = "rms_norm_across_heads"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int = 3840
    attention_bias: bool = True
    attention_out_bias: bool = True
    rope_theta: float = 10000.0
    rope_double_precision: bool = True
    causal_offset: int = 1
    timestep_scale_multiplier: int = 1000
    cross_attn_timestep_scale_multiplier: int = 1000
    rope_type: str = "interleaved"
    use_prompt_embeddings: bool = True
    perturbed_attn: bool = False
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_prompt_adaln_single: bool = True
    use_keyframes_abs_pos_embedding: bool = False

    def __post_init__(self):
        _only(
            self,
            "LTX2Transformer",
            gated_attn=False,
            cross_attn_mod=False,
            audio_gated_attn=False,
            audio_cross_attn_mod=False,
            use_prompt_embeddings=True,
            ff_bias=True,
            audio_ff_bias=True,
            use_keyframes_abs_pos_embedding=False,
            patch_size=1,
            patch_size_t=1,
            audio_patch_size=1,
            audio_patch_size_t=1,
            activation_fn="gelu-approximate",
            qk_norm="rms_norm_across_heads",
            norm_elementwise_affine=False,
            rope_double_precision=True,
            # The texts are projected to the streams' widths before they are attended to.
            cross_attention_dim=self.width,
            audio_cross_attention_dim=self.audio_width,
        )
        _check_rotation("LTX2Transformer", self.rope_type, self.width, self.num_attention_heads)
        _check_rotation("LTX2Transformer audio", self.rope_type, self.audio_width, self.audio_num_attention_heads)
        _check_rotation("LTX2Transformer video to audio", self.rope_type, self.audio_width, self.num_attention_heads)

    @property
    def width(self) -> int:
        """Of the video stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def audio_width(self) -> int:
        """Of the audio stream."""
        return self.audio_num_attention_heads * self.audio_attention_head_dim

    @property
    def text_dim(self) -> int:
        """Channels of the text embeddings, as the connectors make them."""
        return self.caption_channels

    @classmethod
    def ltx_2_0(cls) -> "LTX2TransformerConfig":
        """Lightricks/LTX-2: 18,876,174,592 parameters."""
        return cls(rope_type="split")


@dataclasses.dataclass(frozen=True)
class LTX2ConnectorsConfig(ConfigFromDict):
    """Architecture numbers, named as in the published connectors/config.json.

    `causal_temporal_positioning`, `video_hidden_dim` and `audio_hidden_dim` change nothing in what is computed here.

    Raises
    ------
    ConfigError : a value that no checkpoint of 2.0 has and that changes the computation, or sizes that do not fit.
    """

    caption_channels: int = 3840
    text_proj_in_factor: int = 49
    video_connector_num_attention_heads: int = 30
    video_connector_attention_head_dim: int = 128
    video_connector_num_layers: int = 2
    video_connector_num_learnable_registers: int = 128
    video_gated_attn: bool = False
    audio_connector_num_attention_heads: int = 30
    audio_connector_attention_head_dim: int = 128
    audio_connector_num_layers: int = 2
    audio_connector_num_learnable_registers: int = 128
    audio_gated_attn: bool = False
    connector_rope_base_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_double_precision: bool = True
    causal_temporal_positioning: bool = False
    rope_type: str = "interleaved"
    per_modality_projections: bool = False
    video_hidden_dim: int = 4096
    audio_hidden_dim: int = 2048
    proj_bias: bool = False

    def __post_init__(self):
        _only(
            self,
            "LTX2Connectors",
            video_gated_attn=False,
            audio_gated_attn=False,
            per_modality_projections=False,
            rope_double_precision=True,
        )
        for stream in ("video", "audio"):
            heads, head_dim, registers = (
                getattr(self, f"{stream}_connector_{key}")
                for key in ("num_attention_heads", "attention_head_dim", "num_learnable_registers")
            )
            if heads * head_dim != self.caption_channels:
                raise ConfigError(
                    f"LTX2Connectors: the {stream} connector has {heads} heads of {head_dim} channels, which do not make "
                    f"caption_channels={self.caption_channels}"
                )
            if not registers:
                raise ConfigError(
                    f"LTX2Connectors: {stream}_connector_num_learnable_registers={registers!r} is not supported, only a "
                    "positive number"
                )
            _check_rotation(f"LTX2Connectors {stream}", self.rope_type, self.caption_channels, heads)

    @classmethod
    def ltx_2_0(cls) -> "LTX2ConnectorsConfig":
        """Lightricks/LTX-2: 1,431,475,200 parameters."""
        return cls(rope_type="split")


def _only(config: Any, name: str, **supported: Any) -> None:
    for key, value in supported.items():
        if getattr(config, key) != value:
            raise ConfigError(
                f"{name}: {key}={getattr(config, key)!r} is not supported, only {value!r}, which LTX-2.0 has"
            )


def _check_rotation(name: str, rope_type: str, width: int, heads: int) -> None:
    if rope_type not in ROPE_TYPES:
        raise ConfigError(f"{name}: rope_type={rope_type!r} is not supported, only {' or '.join(ROPE_TYPES)}")
    if width % (2 * heads if rope_type == "split" else 2):
        raise ConfigError(f"{name}: {width} channels in {heads} heads cannot be rotated in pairs")
