"""Fine-tuning of text-to-video checkpoints on encoded clips: all weights or a LoRA, with any further losses beside."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow.schedule import Schedule
from jaxdiff.flow.variance_preserving import VariancePreserving
from jaxdiff.lamo.drift_loss import predicted_clean
from jaxdiff.mesh import data_size, on_host
from jaxdiff.models.lora import LoRA, adapted, adapter_shardings, new_adapters
from jaxdiff.models.network import Network, Remat, cast, check_remat
from jaxdiff.pipeline import Pipeline
from jaxdiff.train.loop import Loss, Recipe, fit


class ExtraLoss(Protocol):
    """A loss beside the denoising loss, weight included: what a new training signal has to be."""

    def __call__(self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array) -> jax.Array:
        """A float32 scalar from the clean latents as predicted and as they are [B, T', H', W', C] and sigma [B]."""


class PromptedLoss(Protocol):
    """An `ExtraLoss` that also looks at what the network was told, and has several terms: `prompted` says so."""

    prompted: bool

    def __call__(
        self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array, cond: Conditioning
    ) -> dict[str, jax.Array]:
        """Float32 scalars, each logged under its name."""


class Clips(Protocol):
    """Encoded clips, for one `jaxdiff.store.LatentStore`."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Any:
        """What has `latents` float32 [B, T', H', W', C], `text` float32 [B, N, D], `text_mask` bool [B, N] or None.

        It may have `weight` float32 [B]: of each clip in the denoising loss, instead of 1.
        """


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """How a checkpoint is fine-tuned.

    Parameters
    ----------
    recipe : optimiser, length, average, seed.
    batch : clips a step, over all devices.
    lora : what is adapted; None trains all weights, as float32 beside the checkpoint's dtype.
    losses : name -> `ExtraLoss` or `PromptedLoss`.
    prompt_dropout : share of clips that are told the empty prompt, for classifier-free guidance.
    logit_mean, logit_std : of the noise levels of flow models, see `draw_sigmas`.
    first_frame : train the continuation of the first frame, for families that take its latents in their place (Wan 2.2
        TI2V): the first latent frame of every clip is given, and not trained on.
    remat : what the backward pass recomputes of every block, see `jaxdiff.models.network.scan`: "all_but_attention" keeps two
        arrays of a block's width a block, its input and what self-attention gave; "block" one.
    """

    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(steps=1000, learning_rate=1e-4, warmup=100))
    batch: int = 4
    lora: LoRA | None = None
    losses: Mapping[str, ExtraLoss | PromptedLoss] = dataclasses.field(default_factory=dict)
    prompt_dropout: float = 0.1
    logit_mean: float = 0.0
    logit_std: float = 1.0
    first_frame: bool = False
    remat: Remat = "all_but_attention"

    def __post_init__(self):
        check_remat(self.remat)
        if self.batch < 1 or not 0 <= self.prompt_dropout <= 1 or not self.logit_std > 0:
            raise ConfigError(
                f"batch={self.batch} and logit_std={self.logit_std} must be positive and "
                f"prompt_dropout={self.prompt_dropout} a share"
            )


def draw_sigmas(
    schedule: Schedule, key: jax.Array, batch: int, tokens: int, logit_mean: float = 0.0, logit_std: float = 1.0
) -> jax.Array:
    """Noise levels to train at, as the family is trained: float32 [batch].

    Variance-preserving (CogVideoX, arXiv 2408.06072): timesteps uniform over the trained integers. Flow: a standard normal
    n gives ``s = sigmoid(logit_mean + logit_std n)``, shifted by the schedule's k as in sampling, ``k s / (1 + (k - 1) s)``
    (Esser et al., arXiv 2403.03206, section 3.1 and eq. 23); k of dynamic schedules is that of `tokens` positions.
    """
    if isinstance(schedule, VariancePreserving):
        timesteps = jax.random.randint(key, (batch,), 0, schedule.num_train_timesteps)
        return jnp.asarray(schedule.sigmas, jnp.float32)[timesteps]
    s = jax.nn.sigmoid(logit_mean + logit_std * jax.random.normal(key, (batch,)))
    ratio = schedule.shift_ratio(tokens)
    return ratio * s / (1 + (ratio - 1) * s)


def denoising_losses(
    pipeline: Pipeline,
    latents: jax.Array,
    noise: jax.Array,
    sigma: jax.Array,
    cond: Conditioning,
    *,
    extra: Mapping[str, ExtraLoss | PromptedLoss] | None = None,
    weight: jax.Array | None = None,
    remat: Remat = "none",
) -> dict[str, jax.Array]:
    """The losses of a batch at given noise: "denoise", and one for each of `extra`, float32 scalars.

    The denoising loss is the mean square error of the network's own output, `Schedule.target`: of the velocity for flow
    models, of v for CogVideoX (whose published weight ``1 / (1 - abar)`` on the error of x0 is the same thing), of the noise
    for noise predictors. The predicted clean latents are ``x - sigma velocity`` of any of them. A first latent frame that
    `cond` gives in its place is left out of the error and true in the prediction.

    Parameters
    ----------
    latents, noise : [B, T', H', W', C] float32; the state is ``(1 - sigma) latents + sigma noise``
    sigma : [B]
    weight : of each clip in the denoising loss [B], or of each latent frame [B or 1, T']; default: all 1.
    """
    schedule = pipeline.schedule
    pipeline.validate(latents.shape, cond)
    mix = sigma[:, None, None, None, None]
    x = (1 - mix) * latents + mix * noise
    output, _ = pipeline.output(schedule.to_network(x, sigma), schedule.timestep(sigma), cond, remat=remat)
    error = output.astype(jnp.float32) - schedule.target(latents, noise, sigma)
    square = jnp.square(error)
    if weight is not None:
        square = weight.reshape(*weight.shape, *[1] * (square.ndim - weight.ndim)) * square
    in_place = getattr(cond, "image_latents", None) is not None and not pipeline.family.needs_image(
        pipeline.transformer
    )
    given = int(in_place)  # latent frames
    losses = {"denoise": jnp.mean(square[:, given:])}
    if extra:
        predicted = predicted_clean(x, schedule.velocity(output, x, sigma), sigma)
        predicted = jnp.concatenate([latents[:, :given], predicted[:, given:]], 1) if given else predicted
        for name, loss in extra.items():
            call: Any = loss
            if getattr(loss, "prompted", False):
                losses |= call(predicted, latents, sigma, cond)
            else:
                losses[name] = call(predicted, latents, sigma)
    return losses


def training_loss(pipeline: Pipeline, config: FineTuning, fps: float | None = None) -> Loss:
    """What `fit` minimises: ``loss(params, ((frozen, empty), batch), key)``.

    `frozen` are the network's weights where a LoRA is trained, and None otherwise; `empty` is the empty prompt, a
    `Conditioning` of batch 1, or None without dropout; a batch is (latents, text, text_mask or None), with the clips' weights as a fourth where
    they have any. Nothing of the pipeline but its configuration is kept: its leaves may be shapes.
    """
    trained = rebuilt(pipeline.transformer, config.lora)
    rest = Pipeline(pipeline.transformer.replace({}), pipeline.family, pipeline.schedule)

    def loss(params, given, key):
        (frozen, empty), (latents, text, mask, *weight) = given
        level, spread, dropped = jax.random.split(key, 3)
        batch, tokens = latents.shape[0], int(np.prod(latents.shape[1:4]))
        sigma = draw_sigmas(rest.schedule, level, batch, tokens, config.logit_mean, config.logit_std)
        if empty is not None:
            told = jax.random.bernoulli(dropped, 1.0 - config.prompt_dropout, (batch, 1))
            text = jnp.where(told[..., None], text, empty.text)
            mask = None if mask is None else jnp.where(told, mask, empty.text_mask)
        losses = denoising_losses(
            dataclasses.replace(rest, transformer=trained(params, frozen)),
            latents,
            jax.random.normal(spread, latents.shape),
            sigma,
            Conditioning(text, mask, image_latents=latents[:, :1] if config.first_frame else None, fps=fps),
            extra=config.losses,
            weight=weight[0] if weight else None,
            remat=config.remat,
        )
        return sum(losses.values()), losses

    return loss


def finetune(
    pipeline: Pipeline,
    data: Clips,
    config: FineTuning,
    workdir: Path | None = None,
    *,
    empty: Conditioning | None = None,
    fps: float | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    **options: Any,
) -> Pipeline:
    """Train the transformer of a pipeline on encoded clips; continue from `workdir` if it holds a checkpoint.

    Parameters
    ----------
    pipeline : a text-to-video checkpoint, loaded on `mesh` where there is one.
    mesh : clips are split over ``data`` and ``fsdp``, weights over ``fsdp``, the tokens of a clip over ``seq``. It may be of
        several processes, all of which call this and read the same clips.
    data : the clips. Step i sees those that i and the seed decide: each clip once an epoch, in an order of the epoch's own.
    empty : the empty prompt, of batch 1; default: ``pipeline.condition("")``. Needed for prompt dropout only.
    fps : frames per second of the clips, for families that are told it.
    options : of `fit`, as `checkpoint_every`.

    Returns
    -------
    The pipeline with averaged weights. A LoRA lies beside the weights, as `jaxdiff.models.lora.adapted` puts it:
    `ports.lora_writer.save_lora` writes it and `jaxdiff.models.lora.merged` adds it.

    Raises
    ------
    ConfigError : the checkpoint needs an image or has two networks, a target is unknown, the clips do not fit the network
        or are too short for a loss, or the batch does not divide over the mesh; before anything slow.
    NonFiniteError : as `fit`; the newest checkpoint is the state before.
    """
    check_pipeline(pipeline)
    shards = 1 if mesh is None else data_size(mesh)
    if config.batch % shards:
        raise ConfigError(f"batch={config.batch} does not divide over the {shards} devices of the axes data and fsdp")
    if config.prompt_dropout and empty is None:
        empty = pipeline.condition("")
    network, recipe = pipeline.transformer, config.recipe
    key = jax.random.fold_in(jax.random.key(recipe.seed), recipe.steps)  # none of the steps' own
    params, frozen = trainable(network, config.lora, key)
    if config.lora is not None and all(map(_on_a_mesh, jax.tree.leaves(frozen))):
        params = jax.device_put(params, adapter_shardings(frozen, params))

    def batch(step: int):
        found = data.read(rows(step, config.batch, len(data), recipe.seed))
        weight = getattr(found, "weight", None)
        return found.latents, found.text, found.text_mask, *(() if weight is None else (weight,))

    check_clips(pipeline, config, data.read([0]), fps)
    loss, given = training_loss(pipeline, config, fps), (frozen, empty if config.prompt_dropout else None)
    state = fit(loss, params, recipe, given, batches=batch, mesh=mesh, workdir=workdir, report=report, **options)
    return dataclasses.replace(pipeline, transformer=rebuilt(network, config.lora)(on_host(state.ema), frozen))


def check_pipeline(pipeline: Pipeline) -> None:
    """Raise a `ConfigError` for a checkpoint that cannot be fine-tuned on latents and captions."""
    if pipeline.family.needs_image(pipeline.transformer):
        raise ConfigError(
            f"{pipeline.family.name} continues an image, and training it takes the pixels of each clip's first frame, which "
            "encoded clips do not hold: give a text-to-video checkpoint"
        )
    if pipeline.transformer_2 is not None:
        raise ConfigError(
            "this checkpoint has two networks, each for its own noise levels; only checkpoints with one can be fine-tuned"
        )


def check_clips(pipeline: Pipeline, config: FineTuning, batch: Any, fps: float | None = None) -> None:
    """Raise a `ConfigError` for clips that do not fit the network or are too short for a loss; nothing is computed.

    `batch` is what `Clips.read` gives; the pipeline's leaves may be shapes.
    """
    loss = training_loss(pipeline, config, fps)
    told = Conditioning(text=batch.text[:1], text_mask=None if batch.text_mask is None else batch.text_mask[:1])

    def value(network: Network, key: jax.Array):
        params, frozen = trainable(network, config.lora, key)
        return loss(params, ((frozen, told), (batch.latents, batch.text, batch.text_mask)), key)

    jax.eval_shape(value, pipeline.transformer, jax.random.key(0))


def trainable(network: Network, lora: LoRA | None, key: jax.Array) -> tuple[Any, Any]:
    """What is trained, float32, and what stays as it is: (all weights, None) or (adapters, weights)."""
    from ports.lora_writer import find_targets  # the names are those of published files, as in `jaxdiff.load`

    if lora is None:
        return cast(network.params, jnp.float32), None
    return new_adapters(network.params, find_targets(network, lora.targets), lora, key), network.params


def rebuilt(network: Network, lora: LoRA | None) -> Callable[[Any, Any], Network]:
    """The network of what is trained and of what stays, as `trainable` gives them; weights in the dtypes that they have in
    `network`, of which nothing else is kept."""
    kinds = jax.tree.map(lambda leaf: jnp.dtype(leaf.dtype), network.params)
    bare = network.replace({})

    def build(params: Any, frozen: Any) -> Network:
        if lora is not None:
            return adapted(bare.replace(frozen), params, lora.scale)
        return bare.replace(jax.tree.map(lambda leaf, kind: leaf.astype(kind), params, kinds))

    return build


def rows(step: int, batch: int, count: int, seed: int) -> np.ndarray:
    """Which of `count` clips step `step` sees, int [batch]: the next ones of an endless row of shuffled epochs."""
    places = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in np.unique(places // count)}
    return np.array([orders[place // count][place % count] for place in places])


def _on_a_mesh(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
