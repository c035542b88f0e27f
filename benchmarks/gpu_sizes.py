"""What the parts of the suite gpu share, without jax or torch: sizes (the toys are to see that everything runs), and how they
tell what they have measured so far."""

from collections.abc import Callable
from typing import Any

from benchmarks.subject import Size
from jaxdiff.models.wan import WanTransformerConfig, WanVAEConfig

LIMIT = 75.0  # seconds after which no further round of a comparison starts
TEXT = (1, 512, 4096)
LATENTS = {  # [B, T', H', W', C]
    "long": (1, 21, 60, 104, 16),  # 81 frames of 480 x 832: 32,760 tokens
    "study": (1, 21, 32, 32, 16),  # 81 frames of 256 x 256: 5,376 tokens
    "forward_14b": (1, 21, 60, 104, 16),
}
Tell = Callable[[dict[str, Any]], None]
TOY = WanTransformerConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    ffn_dim=48,
    num_layers=2,
    text_dim=16,
    freq_dim=32,
    rope_max_seq_len=32,
)


def of(name: str, tiny: bool) -> Size:
    """The model and inputs of a part."""
    if tiny:
        return Size(TOY, (1, 3, 4, 4, 16), (1, 4, 16))
    config = WanTransformerConfig.t2v_14b() if name == "forward_14b" else WanTransformerConfig.t2v_1_3b()
    return Size(config, LATENTS[name], TEXT)


def batches(tiny: bool) -> tuple[int, ...]:
    """Clips at once that are tried at the study's shape."""
    return (1, 2) if tiny else (1, 4)


def side(tiny: bool) -> int:
    """Of the square matrices of the ceiling."""
    return 32 if tiny else 8192


def video(tiny: bool) -> tuple[WanVAEConfig, tuple[int, ...]]:
    """The VAE, and one clip of the study [B, T, H, W, 3]."""
    if tiny:
        return WanVAEConfig.nano(), (1, 5, 16, 16, 3)
    return WanVAEConfig(), (1, 81, 256, 256, 3)


def transformer_settings(size: Size) -> dict[str, Any]:
    """Arguments of diffusers' class."""
    c = size.config
    names = ("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim", "freq_dim",
             "ffn_dim", "num_layers", "cross_attn_norm", "qk_norm", "eps", "rope_max_seq_len")  # fmt: skip
    return {name: getattr(c, name) for name in names}


def untold(found: dict[str, Any]) -> None:
    """For parts that are called by no `benchmarks.gpu.serve`."""
