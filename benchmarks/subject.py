"""What is timed: a mid-sized Wan transformer of ours, and the same weights in diffusers."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdiff
from benchmarks.machine import cores
from benchmarks.rows import Settings, need
from jaxdiff.flow.schedule import Schedule
from jaxdiff.models.network import Network
from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline

SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "solver_order": 2,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the latents that it sees."""

    config: WanTransformerConfig
    latents: tuple[int, ...]  # [B, T', H', W', C]
    text: tuple[int, ...]  # [B, N, text_dim]

    def shapes(self) -> dict[str, Any]:
        """For `Row.shapes`."""
        c = self.config
        return {
            "latents": self.latents, "text": self.text, "tokens": self.tokens, "layers": c.num_layers,
            "heads": c.num_attention_heads, "head_dim": c.attention_head_dim, "ffn_dim": c.ffn_dim,
        }  # fmt: skip

    @property
    def tokens(self) -> int:
        return int(np.prod(self.latents[:-1])) // int(np.prod(self.config.patch_size)) // self.latents[0]

    def flops(self) -> int:
        """Multiply-adds of one forward's matmuls, times two; by hand, as cost analysis counts a loop once."""
        c, s, n = self.config, self.tokens, self.text[1]
        d = c.width
        self_attention = 4 * s * d * d + 2 * s * s * d
        cross_attention = (2 * s + 2 * n) * d * d + 2 * s * n * d
        blocks = c.num_layers * (self_attention + cross_attention + 2 * s * d * c.ffn_dim)
        patch = int(np.prod(c.patch_size)) * c.in_channels
        ends = 2 * s * patch * d + n * (c.text_dim * d + d * d) + c.freq_dim * d + 7 * d * d
        return 2 * self.latents[0] * (blocks + ends)


MID = Size(
    WanTransformerConfig(
        num_attention_heads=6, attention_head_dim=64, ffn_dim=1536, num_layers=8, text_dim=128, rope_max_seq_len=64
    ),
    (1, 5, 32, 32, 16),
    (1, 64, 128),
)
# Only to see that the benchmarks run; a number of this size says nothing.
TINY = Size(
    WanTransformerConfig(
        num_attention_heads=2, attention_head_dim=16, ffn_dim=64, num_layers=3, text_dim=16, rope_max_seq_len=32
    ),
    (1, 2, 8, 8, 16),
    (1, 8, 16),
)


def size_of(settings: Settings) -> Size:
    """The subject of the suite cpu."""
    return TINY if settings.tiny else MID


def inputs(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Latents and text, standard normal float32."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal(size.latents).astype(np.float32),
        rng.standard_normal(size.text).astype(np.float32),
    )


def random_pipeline(size: Size) -> Pipeline:
    """A pipeline with random float32 weights."""
    return Pipeline(Network.init(WanTransformer, size.config, 0), Wan(), Schedule.from_config(SCHEDULER))


def forward(pipeline: Pipeline, size: Size, timestep: float) -> Callable[[], jax.Array]:
    """Our forward; returns when the output is there."""
    latents, text = map(jax.numpy.asarray, inputs(size))
    when = jax.numpy.full(size.latents[0], timestep, jax.numpy.float32)
    return lambda: jax.block_until_ready(pipeline.denoise(latents, when, text))


def products(size: Size) -> Callable[[], jax.Array]:
    """The matrix products of the blocks of one forward and nothing else, in one program: what no forward can be faster than.

    Same shapes and count as in the network, each fed by the one before; the factors keep float32 in range.
    """
    c, d = size.config, size.config.width
    heads, head_dim = c.num_attention_heads, c.attention_head_dim
    rng = np.random.default_rng(1)

    def weights(rows, columns, count):
        return jax.numpy.asarray(
            rng.standard_normal((c.num_layers, count, rows, columns)) * rows**-0.5, jax.numpy.float32
        )

    stacked = (weights(d, d, 4), weights(d, d, 4), weights(d, c.ffn_dim, 1), weights(c.ffn_dim, d, 1))
    batch = size.latents[0]
    x, text = (rng.standard_normal((batch, n, d)).astype(np.float32) for n in (size.tokens, size.text[1]))
    dot = functools.partial(jax.numpy.einsum, precision="highest")

    def attend(x, read, w):
        q, k, v = (
            dot("bsd,de->bse", a, m).reshape(batch, -1, heads, head_dim)
            for a, m in zip((x, read, read), w[:3], strict=True)
        )
        scores = dot("bqhd,bkhd->bhqk", q, k * head_dim**-0.5)
        mixed = dot("bhqk,bkhd->bqhd", scores, v * read.shape[1] ** -0.5)
        return dot("bsd,de->bse", mixed.reshape(x.shape), w[3])

    def block(x, layer):
        own, cross, up, down = layer
        x = attend(attend(x, x, own), text, cross)
        return dot("bsf,fd->bsd", dot("bsd,df->bsf", x, up[0]), down[0]), None

    run = jax.jit(lambda x, stacked: jax.lax.scan(block, x, stacked)[0])
    return lambda: jax.block_until_ready(run(x, stacked))


def twins(size: Size) -> tuple[Any, Pipeline]:
    """diffusers' fp32 transformer, every tensor random, on all cores; and our pipeline loaded from the folder that it saved."""
    need("torch", "diffusers")
    from diffusers import WanTransformer3DModel

    names = {field.name for field in dataclasses.fields(size.config)}
    model = randomised(WanTransformer3DModel(**{name: getattr(size.config, name) for name in names}))
    return model, loaded(model, "WanPipeline", SCHEDULER)


def randomised(model: Any) -> Any:
    """Every tensor of a torch model random, and torch on all cores."""
    import torch

    torch.set_num_threads(cores())
    # Default initialisations hide differences: gains of exactly one, biases of zero.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn(value.shape, generator=generator)
            fan_in = int(np.prod(value.shape[1:]))
            value.copy_(noise / fan_in**0.5 if value.ndim > 1 else value + 0.1 * noise)
    return model.eval()


def loaded(model: Any, name: str, scheduler: dict[str, Any]) -> Pipeline:
    """Our pipeline of a diffusers transformer, by way of the folder that it saves; `name` is the class of its pipeline."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "transformer")
        write_index(folder, name, type(model).__name__, scheduler)
        pipeline = jaxdiff.load(folder, dtype=jax.numpy.float32)
        jax.block_until_ready(pipeline.transformer.params)
    return pipeline


def write_index(folder: Path, name: str, transformer: str, scheduler: dict[str, Any]) -> None:
    """What a folder in the diffusers layout holds beside its transformer."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": name,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "transformer": ["diffusers", transformer],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def diffusers_peer(
    size: Size, timestep: float
) -> tuple[Pipeline, Any, Callable[..., Any], Callable[[Any], np.ndarray]]:
    """diffusers' eager fp32 transformer, and our pipeline of the same weights.

    Returns
    -------
    pipeline : ours
    model : theirs
    run : one forward of the peer, or of a model given to it, in inference mode, on all cores, its inputs ready as torch tensors
    to_numpy : the peer's output as [B, T', H', W', C]
    """
    model, pipeline = twins(size)
    import torch

    latents, text = map(torch.from_numpy, inputs(size))
    latents = latents.permute(0, 4, 1, 2, 3).contiguous()
    when = torch.full((size.latents[0],), timestep)

    @torch.inference_mode()
    def run(model=model):
        return model(latents, when, text, return_dict=False)[0]

    return pipeline, model, run, lambda output: output.permute(0, 2, 3, 4, 1).numpy()
