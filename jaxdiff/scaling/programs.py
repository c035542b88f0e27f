"""The programs that a study or a training runs, on a mesh, with shapes for weights and clips."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxdiff.errors import ConfigError
from jaxdiff.scaling.models import MODELS, outline

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxdiff.conditioning import Conditioning
    from jaxdiff.models.network import Remat
    from jaxdiff.pipeline import Pipeline

GUIDANCE = 6.0  # of samples: any but 1 makes two evaluations of a step


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done, of which model.

    Parameters
    ----------
    model : a name of `MODELS`.
    program : "invert" with the means of every block at every tenth of the way, "sample" with guidance, "finetune" or
        "finetune_lora": a step with LaMo's drift loss.
    clips_per_device : clips at once, for each part that a batch is split into.
    frames, size : of a clip; None and () for the published ones.
    rank : of finetune_lora.
    steps : of invert and sample.
    remat : what the backward pass recomputes of every block, see `jaxdiff.models.network.scan`.
    """

    model: str
    program: str
    clips_per_device: int = 1
    frames: int | None = None
    size: tuple[int, ...] = ()
    rank: int = 128
    steps: int = 100
    remat: "Remat" = "all_but_attention"

    def __post_init__(self):
        if min(self.clips_per_device, self.rank, self.steps) < 1:
            raise ConfigError("--clips_per_device, --rank and --steps must be at least 1")
        if self.model not in MODELS or self.program not in PROGRAMS:
            raise ConfigError(f"no model {self.model!r} or program {self.program!r}: {', '.join((*MODELS, *PROGRAMS))}")
        if len(self.size) not in (0, 2):
            raise ConfigError(f"--size={','.join(map(str, self.size))}: write height,width")
        self.latents()

    def latents(self) -> tuple[int, int, int, int]:
        """[T', H', W', C] of a clip."""
        return MODELS[self.model].latents(self.frames, self.size)


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and the shapes of its arguments, for one mesh.

    Attributes
    ----------
    clips : that one call works on, over all devices; steps : that one call makes.
    """

    function: Any
    arguments: tuple[Any, ...]
    clips: int
    steps: int

    def argument_bytes(self) -> int:
        """Of the arguments, on each device."""
        import jax

        def size(leaf: Any) -> int:
            shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
            return math.prod(shape) * leaf.dtype.itemsize

        return sum(map(size, jax.tree.leaves(self.arguments)))


def program_of(work: Work, mesh: "Mesh") -> Program:
    """The program of some work on a mesh; nothing is traced yet."""
    pipeline = outline(MODELS[work.model], mesh)
    return PROGRAMS[work.program](work, mesh, pipeline)


def _batch(work: Work, mesh: "Mesh", pipeline: "Pipeline") -> tuple[Any, "Conditioning"]:
    """Latents and what they are told, split over the mesh."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from jaxdiff.conditioning import Conditioning
    from jaxdiff.mesh import clip_spec, data_size

    split, clips = NamedSharding(mesh, clip_spec(mesh)), work.clips_per_device * data_size(mesh)
    latents = jax.ShapeDtypeStruct((clips, *work.latents()), jnp.float32, sharding=split)
    text = pipeline.family.example(pipeline.transformer, latents.shape).text
    mask: Any = None
    if pipeline.family.text is not None and pipeline.family.text.pass_mask:
        mask = jax.ShapeDtypeStruct((clips, text.shape[1]), jnp.bool_, sharding=split)
    told: Any = jax.ShapeDtypeStruct((clips, *text.shape[1:]), jnp.float32, sharding=split)
    return latents, Conditioning(text=told, text_mask=mask)


def _trajectory(work: Work, mesh: "Mesh", pipeline: "Pipeline") -> Program:
    """A whole inversion or a whole sample, placed as `jaxdiff.invert` would place its arrays."""
    import jax
    import jax.numpy as jnp

    from jaxdiff.flow import invert, sample
    from jaxdiff.flow.placement import placed, placement_of
    from jaxdiff.taps import Tap

    latents, cond = _batch(work, mesh, pipeline)
    placement = placement_of((pipeline, None), latents)

    def run(pipeline, latents, cond):
        with contextlib.nullcontext() if placement is None else placed(placement):
            if work.program == "invert":
                found = invert(pipeline, latents, cond, steps=work.steps, taps=(Tap("block_out", "mean"),))
            else:
                negative = jax.tree.map(jnp.zeros_like, cond)
                found = sample(pipeline, latents, cond, steps=work.steps, guidance_scale=GUIDANCE, negative=negative)
        return found.latents, found.captured

    return Program(jax.jit(run), (pipeline, latents, cond), latents.shape[0], work.steps)


def _finetuning(work: Work, mesh: "Mesh", pipeline: "Pipeline") -> Program:
    """One step of `jaxdiff.train.finetune` with the drift loss, a LoRA or all weights."""
    import jax
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxdiff.conditioning import Conditioning
    from jaxdiff.lamo import DriftLoss
    from jaxdiff.models.lora import LoRA, adapter_shardings
    from jaxdiff.train.finetune import FineTuning, trainable, training_loss
    from jaxdiff.train.loop import TrainState, update

    lora = LoRA(work.rank, float(work.rank)) if work.program == "finetune_lora" else None
    latents, cond = _batch(work, mesh, pipeline)
    tuning = FineTuning(batch=latents.shape[0], lora=lora, losses={"drift": DriftLoss()}, remat=work.remat)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def at(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    network = pipeline.transformer
    params = jax.eval_shape(lambda net, key: trainable(net, lora, key)[0], network, jax.random.key(0))
    if lora is None:
        places, frozen = jax.tree.map(lambda leaf: leaf.sharding, network.params), None
    else:
        places, frozen = adapter_shardings(network.params, params), network.params
    state = jax.eval_shape(lambda params: TrainState.create(params, tuning.recipe), params)
    optimizer = optax.tree_utils.tree_map_params(
        tuning.recipe.optimizer(), at, state.opt_state, places, transform_non_params=lambda leaf: at(leaf, everywhere)
    )
    state = TrainState(
        at(state.step, everywhere),
        jax.tree.map(at, state.params, places),
        jax.tree.map(at, state.ema, places),
        optimizer,
    )
    empty = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype, sharding=everywhere),
        Conditioning(text=cond.text, text_mask=cond.text_mask),
    )
    step = jax.jit(
        update(training_loss(pipeline, tuning), tuning.recipe, mesh=mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None),
    )
    number = jax.ShapeDtypeStruct((), "int32", sharding=everywhere)
    given = (number, (latents, cond.text, cond.text_mask))
    return Program(step, (state, (frozen, empty), given), latents.shape[0], 1)


PROGRAMS: dict[str, Callable[[Work, Any, Any], Program]] = {
    "invert": _trajectory,
    "sample": _trajectory,
    "finetune": _finetuning,
    "finetune_lora": _finetuning,
}
