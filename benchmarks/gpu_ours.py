"""Parts of the suite gpu that are ours; `benchmarks.gpu` starts each in a process of its own."""

import collections
import functools
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_sizes, probes
from benchmarks.gpu_sizes import LIMIT, Tell, untold
from benchmarks.inversion import MAPS, MEANS
from benchmarks.rows import Settings
from benchmarks.subject import SCHEDULER, Size
from benchmarks.timing import interleaved, listed
from jaxdiff.flow import invert
from jaxdiff.flow.schedule import Schedule
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanVAE
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from ports.table import expected_names, flatten, rebuild
from ports.wan import transformer_table
from ports.wan_vae import vae_table

CHAIN = 8  # products of one call of the ceiling


def long(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Forward, captures and maps of Wan 1.3B at 32,760 tokens."""
    size = gpu_sizes.of("long", settings.tiny)
    pipeline = _pipeline(size)
    latents, text = _inputs(size)
    found = _told(size, settings, steps=1, forward=_json(_against_ceiling(pipeline, latents, text, settings)))
    found["copy_gb_s"] = _copy_rate(settings)
    tell(found)
    return found | _readings(pipeline, latents, text, 1, settings)


def study(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Batches of Wan 1.3B at 5,376 tokens; then captures and maps at the batch that is fastest a clip."""
    size, steps = gpu_sizes.of("study", settings.tiny), 2
    pipeline, by_batch, found = _pipeline(size), {}, {}
    for batch in gpu_sizes.batches(settings.tiny):
        latents, text = _inputs(size, batch)
        by_batch[str(batch)] = _json(_against_ceiling(pipeline, latents, text, settings))
        best = min(map(int, by_batch), key=lambda n: float(np.median(by_batch[str(n)]["forward"])) / n)
        found = _told(size, settings, steps=steps, best_batch=best, by_batch=by_batch)
        tell(found)
    latents, text = _inputs(size, found["best_batch"])
    found |= _readings(pipeline, latents, text, steps, settings)
    tell(found)
    # Last: a callback that waits for ever would end the part.
    return found | _streaming(pipeline, latents, text, steps, settings)


def forward_14b(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Forward of Wan 14B at 32,760 tokens."""
    size = gpu_sizes.of("forward_14b", settings.tiny)
    latents, text = _inputs(size)
    seconds = _against_ceiling(_pipeline(size), latents, text, settings, twice=False)
    return _told(size, settings, forward=_json(seconds))


def encode(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Wan's VAE on one clip of the study."""
    config, shape = gpu_sizes.video(settings.tiny)
    nothing = Network(WanTransformer, gpu_sizes.of("study", settings.tiny).config, {})
    pipeline = Pipeline(nothing, Wan(), Schedule.from_config(SCHEDULER), _random(WanVAE, config, vae_table))
    video = jax.random.uniform(jax.random.key(2), shape, jnp.float32, -1, 1)
    seconds = interleaved(
        {"encode": lambda: jax.block_until_ready(pipeline.encode(video))}, settings.pairs, limit=LIMIT
    )
    return {"device": _device(), "shapes": {"video": shape}, "seconds": _json(seconds)}


def finetune(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Steps of fine-tuning all weights: float32 weights, optimiser and average beside bfloat16 products, all but attention
    recomputed."""
    from jaxdiff.train.finetune import FineTuning, trainable, training_loss
    from jaxdiff.train.loop import TrainState, update

    size = gpu_sizes.of("long", settings.tiny)
    config = FineTuning(batch=size.latents[0], prompt_dropout=0.0)
    pipeline = _pipeline(size)
    loss, recipe = training_loss(pipeline, config), config.recipe
    params, frozen = trainable(pipeline.transformer, None, jax.random.key(1))
    state = TrainState.create(params, recipe)
    latents, text = _inputs(size)
    del pipeline, params
    lowered = jax.jit(update(loss, recipe), donate_argnums=0).lower(
        state, (frozen, None), (jnp.int32(0), (latents, text, None))
    )
    step, made = lowered.compile(), 0
    memory: Any = step.memory_analysis()

    def once():
        nonlocal state, made
        state, metrics = step(state, (frozen, None), (jnp.int32(made), (latents, text, None)))
        jax.block_until_ready(metrics)
        made += 1

    seconds = interleaved({"ceiling": _ceiling(settings), "step": once}, settings.pairs, limit=LIMIT)
    if int(state.step) != made:
        raise AssertionError(f"{made} steps were made, but the state says {int(state.step)}: one was not finite")
    kernels = collections.Counter(re.findall(r"@__(cudnn\$fmha\w*)", lowered.as_text()))  # in loops they stand once
    temporary = round(memory.temp_size_in_bytes / 1e9, 2)
    witness = {"remat": config.remat, "temporary_gb": temporary, "attention_kernels": kernels}
    return _told(size, settings, seconds=_json(seconds), witness=witness) | {"flops": 3 * size.flops()}


def grid(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Probes on the card, and scikit-learn in processes on the host."""
    shape = probes.TOY if settings.tiny else probes.Grid(rounds=2)
    found = probes.measure(shape, ["scikit-learn"])
    return {
        "device": _device(),
        "ours": listed(found.ours),
        "peer": listed(found.peers["scikit-learn"]),
        "gap": float(found.gaps.max()),
        "sets": shape.sets,
        "fits": probes.fits(shape),
    }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "long": long,
    "study": study,
    "forward_14b": forward_14b,
    "encode": encode,
    "finetune": finetune,
    "probes": grid,
}

# ------------------------------------------------------------------------------------------------------ inside


def _random(module: Any, config: Any, table: Any) -> Network:
    """Random weights, bfloat16 but for those that stay float32 when a checkpoint is loaded so, made in one program: the float32
    ones are never all in memory."""
    abstract = Network.abstract(module, config).params
    groups = expected_names(table(config), abstract)[0]

    def make():
        leaves = flatten(Network.init(module, config, 0).params)
        return rebuild(
            abstract, {path: leaf.astype(groups[path].rule.dtype(jnp.bfloat16)) for path, leaf in leaves.items()}
        )

    return Network(module, config, jax.block_until_ready(jax.jit(make)()))


def _pipeline(size: Size) -> Pipeline:
    network = _random(WanTransformer, size.config, transformer_table)
    return Pipeline(network, Wan(), Schedule.from_config(SCHEDULER))


def _inputs(size: Size, batch: int = 1) -> tuple[jax.Array, jax.Array]:
    shapes = (batch, *size.latents[1:]), (batch, *size.text[1:])
    one, other = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    return one, other


def _against_ceiling(pipeline, latents, text, settings: Settings, twice: bool = True) -> dict[str, np.ndarray]:
    """Seconds of the ceiling's products and of the forward, interleaved, the forward `twice` for its control."""
    when = jnp.full(latents.shape[0], 700.0, jnp.float32)

    def forward():
        jax.block_until_ready(pipeline.denoise(latents, when, text))

    calls = {"ceiling": _ceiling(settings), "forward": forward} | ({"control": forward} if twice else {})
    return interleaved(calls, settings.pairs, limit=LIMIT)


@functools.cache
def _ceiling(settings: Settings) -> Callable[[], None]:
    """`CHAIN` square products of normal numbers, each of the last: what the card does at best."""
    side = gpu_sizes.side(settings.tiny)
    x, w = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    # The scale keeps the numbers normal: how fast a card multiplies depends on what.
    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, CHAIN, lambda _, x: (x @ w) * jnp.bfloat16(side**-0.5), x))

    def call():
        jax.block_until_ready(run(x, w))

    return call


def _copy_rate(settings: Settings) -> float:
    """GB/s of reading an array and writing another."""
    x = jnp.zeros((1 << 10) if settings.tiny else (1 << 30), jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    seconds = interleaved({"copy": lambda: jax.block_until_ready(copy(x))}, settings.pairs)
    return float(2 * x.nbytes / np.median(seconds["copy"]) / 1e9)


def _readings(pipeline, latents, text, steps: int, settings: Settings) -> dict[str, Any]:
    """Seconds of inversions that read nothing, block means, and frame maps; and what of these does not work here."""

    def run(taps):
        return lambda: _done(jax.block_until_ready(invert(pipeline, latents, text, steps=steps, taps=taps)))

    calls, failed = {"none": (none := run(()))}, {}
    none()
    for name, taps in (("means", MEANS), ("maps", MAPS)):
        try:
            calls[name] = run(taps)
            calls[name]()
        except Exception as error:  # a kernel that refuses these shapes; the other readings are not to be lost with it
            del calls[name]
            failed[name] = f"{type(error).__name__}: {error}"[:1000]
    reads = interleaved(calls | {"control": none}, settings.pairs, warmup=0, limit=LIMIT)
    return {"reads": _json(reads), "failed": failed}


def _streaming(pipeline, latents, text, steps: int, settings: Settings) -> dict[str, Any]:
    """Seconds of inversions that read nothing, and that hand block means to a store while they run."""
    batch = latents.shape[0]
    shapes = pipeline.tap_shapes(MEANS, latents.shape)
    specs = {name: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype) for name, x in shapes.items()}
    counted = itertools.count(0, batch)
    with tempfile.TemporaryDirectory() as folder:
        clips = batch * (settings.pairs + 1)
        with ActivationStore.create(Path(folder) / "store", clips=clips, slots=steps, specs=specs) as store:

            def none():
                jax.block_until_ready(invert(pipeline, latents, text, steps=steps))

            def streamed():
                ids = np.arange(batch) + next(counted)
                jax.block_until_ready(invert(pipeline, latents, text, steps=steps, taps=MEANS, sink=store.sink(ids)))
                store.finish(ids)

            calls = {"none": none, "streamed": streamed, "control": none}
            return {"streaming": _json(interleaved(calls, settings.pairs, warmup=1, limit=LIMIT))}


def _done(_: Any) -> None:
    """Let go of a result: what a call returns is kept by no one."""


def _json(seconds: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: listed(values) for name, values in seconds.items()}


def _device() -> str:
    return jax.devices()[0].device_kind


def _told(size: Size, settings: Settings, **found: Any) -> dict[str, Any]:
    """What every part says beside its seconds."""
    flops = CHAIN * 2 * gpu_sizes.side(settings.tiny) ** 3
    ceilings = [values["ceiling"] for values in _dicts(found) if "ceiling" in values]
    return {
        "device": _device(),
        "shapes": size.shapes(),
        "flops": size.flops(),
        "ceiling_flops": flops,
        "ceiling_tflops": flops / float(np.median(np.concatenate(ceilings))) / 1e12,
        **found,
    }


def _dicts(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict):
        yield found
        for value in found.values():
            yield from _dicts(value)


if __name__ == "__main__":
    from benchmarks.gpu import serve

    serve(PARTS, _device)
