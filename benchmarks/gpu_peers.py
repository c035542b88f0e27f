"""Parts of the suite gpu that are torch's; `benchmarks.gpu` starts each in a process of its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import gpu_sizes
from benchmarks.gpu_sizes import Tell, untold
from benchmarks.published import BlockMeans
from benchmarks.rows import PeerMissing, Settings, compared, need
from benchmarks.subject import TINY, Size
from benchmarks.timing import interleaved, listed

CHAIN = 8  # products of one call of the ceiling
TOLERANCE = 1e-4
BACKENDS = ("native", "_native_cudnn")  # diffusers' names: what torch chooses by itself, and cuDNN's flash attention

Seconds = dict[str, dict[str, dict[str, np.ndarray]]]  # shape -> batch, or recipe and batch -> call


def check(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """One forward of twins with the same float32 weights: the output, and what hooks and taps read."""
    need("torch", "diffusers")
    import os

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two libraries on one card
    import jax
    import jax.numpy as jnp
    import torch

    from benchmarks.inversion import MEANS
    from benchmarks.subject import inputs, twins

    torch.backends.cudnn.allow_tf32 = False
    model, pipeline = twins(TINY)
    model, (latents, text), when = model.to(_device()), inputs(TINY), 700.0
    moved, words = (torch.from_numpy(x).to(_device()) for x in (np.moveaxis(latents, -1, 1).copy(), text))
    evaluate = jax.jit(lambda pipeline, *state: pipeline.evaluate(*state, taps=MEANS))
    errors: dict[str, float] = {}
    for pool in (False, True):
        with torch.inference_mode(), BlockMeans(model.blocks, pool, reading=True) as means:
            theirs = model(moved, torch.full((1,), when, device=_device()), words, return_dict=False)[0].cpu().numpy()
            read = means.stacked().numpy()
        # The label is what the network is told; the state is the network's own, as it is for a flow.
        sigma = jnp.float32(when / 1000)
        ours, captured = evaluate(pipeline, jnp.asarray(latents), sigma, jnp.asarray(text))
        errors |= compared("output", ours, np.moveaxis(theirs, 1, -1), TOLERANCE)
        errors |= compared(f"block means, pool={pool}", captured["block_out.mean"], read, TOLERANCE)
    return {"errors": errors, "device": _name(), "versions": _versions()}


def eager(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Forwards with no hooks, with hooks that copy tokens to the CPU, and with hooks that pool where the tokens are."""
    need("torch", "diffusers")
    ceiling = _ceiling(settings)
    found: Seconds = {}
    for shape, batches in (("study", gpu_sizes.batches(settings.tiny)), ("long", (1,))):
        size = gpu_sizes.of(shape, settings.tiny)
        model = _model(size)
        found[shape] = {}
        for batch in batches:
            run = _forward(model, size, batch)
            calls = {
                "ceiling": ceiling, "none": run, "cpu": _reading(model, run, False), "pool": _reading(model, run, True),
            }  # fmt: skip
            found[shape][str(batch)] = interleaved(calls, settings.pairs, warmup=1, limit=gpu_sizes.LIMIT)
            tell(_told(settings, found))
    return _told(settings, found)


def compiled(settings: Settings, tell: Tell = untold) -> dict[str, Any]:
    """Forwards by torch.compile, block by block as diffusers advises, for each of its attention backends that works here."""
    need("torch", "diffusers")
    import torch

    ceiling = _ceiling(settings)
    found: Seconds = {}
    failed: dict[str, str] = {}

    def forwards() -> dict[str, Any]:
        told = _told(settings, found) | {"failed": failed}
        return told | {shape: {way: s["forward"] for way, s in told[shape].items()} for shape in found if found[shape]}

    for shape, batches in (("study", gpu_sizes.batches(settings.tiny)), ("long", (1,))):
        size = gpu_sizes.of(shape, settings.tiny)
        found[shape] = {}
        for backend in BACKENDS:
            torch.compiler.reset()
            try:
                model = _model(size)
                model.set_attention_backend(backend)  # which stays diffusers' default for the next model
                model.compile_repeated_blocks(fullgraph=True, dynamic=False)
                for batch in batches:
                    calls = {"ceiling": ceiling, "forward": _forward(model, size, batch)}
                    seconds = interleaved(calls, settings.pairs, warmup=2, limit=gpu_sizes.LIMIT)
                    found[shape][f"{backend} {batch}"] = seconds
                    tell(forwards())
            except Exception as error:  # a backend that is not built in, a graph that breaks
                failed[f"{shape} {backend}"] = str(error).strip()[:500]
        if not any(found.values()):
            raise PeerMissing(f"no compiled recipe works: {failed}")
    return forwards()


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"check": check, "eager": eager, "compiled": compiled}

# ------------------------------------------------------------------------------------------------------ inside


def _device() -> str:
    need("torch")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _versions() -> dict[str, Any]:
    import diffusers
    import torch

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "cuda": torch.version.cuda}


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _model(size: Size) -> Any:
    """Random bfloat16 weights, made where they stay."""
    import torch
    from diffusers import WanTransformer3DModel

    with torch.device(_device()):
        model = WanTransformer3DModel(**gpu_sizes.transformer_settings(size)).eval()
    for name, value in model.named_parameters():
        if not any(kept in name for kept in model._keep_in_fp32_modules):  # as `from_pretrained` does
            value.data = value.data.to(torch.bfloat16)
    return model


def _forward(model: Any, size: Size, batch: int) -> Callable[[], None]:
    import torch

    make = {"device": _device(), "dtype": torch.bfloat16}
    frames, rows, columns, channels = size.latents[1:]
    latents = torch.randn(batch, channels, frames, rows, columns, **make)
    text = torch.randn(batch, *size.text[1:], **make)
    when = torch.full((batch,), 700.0, device=_device())

    @torch.inference_mode()
    def run():
        model(latents, when, text, return_dict=False)
        _wait()

    return run


def _reading(model: Any, run: Callable[[], None], pool: bool) -> Callable[[], None]:
    def read():
        with BlockMeans(model.blocks, pool, reading=True) as means:
            run()
            if pool:  # to the host; what is there as tokens is averaged some other time
                means.stacked()

    return read


def _ceiling(settings: Settings) -> Callable[[], None]:
    """As `gpu_ours._ceiling`, by torch."""
    import torch

    side = gpu_sizes.side(settings.tiny)
    x, w = (torch.randn(side, side, device=_device(), dtype=torch.bfloat16) for _ in range(2))

    @torch.inference_mode()
    def run():
        y = x
        for _ in range(CHAIN):
            y = (y @ w) * side**-0.5
        _wait()

    return run


def _told(settings: Settings, found: Seconds) -> dict[str, Any]:
    ceilings = np.concatenate([seconds["ceiling"] for ways in found.values() for seconds in ways.values()])
    flops = CHAIN * 2 * gpu_sizes.side(settings.tiny) ** 3
    plain = {
        shape: {way: {name: listed(values) for name, values in seconds.items()} for way, seconds in ways.items()}
        for shape, ways in found.items()
    }
    return {
        "device": _name(), "versions": _versions(), "ceiling_tflops": flops / float(np.median(ceilings)) / 1e12, **plain,
    }  # fmt: skip


if __name__ == "__main__":
    from benchmarks.gpu import serve

    serve(PARTS, _device)
