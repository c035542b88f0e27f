"""Record the samples of `tests.flow.sampler_cases` as diffusers makes them: python -m tests.parity.record_samplers"""

import contextlib
import json

import numpy as np

from tests.flow.sampler_cases import CASES, GOLDEN, RUNS, VARIANCE_PRESERVING, model, start


def reference(config: dict, steps: int) -> dict[str, np.ndarray]:
    """What the scheduler does: timesteps [steps], and every state of its sample, [steps + 1, ...]."""
    import diffusers
    import torch

    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    x, noises = (torch.from_numpy(value) for value in start(steps))
    states, clean = [x], None
    for i, t in enumerate(scheduler.timesteps):
        output = model(x, t.to(torch.float32), torch)
        if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
            back = scheduler.timesteps[i - 1] if i else None
            with drawing(noises[i]):
                x, clean = scheduler.step(output, clean, t, back, x)
        elif "sde" in config.get("algorithm_type", ""):
            x = scheduler.step(output, t, x, variance_noise=noises[i]).prev_sample
        else:
            x = scheduler.step(output, t, x).prev_sample
        states.append(x)
    return {"timesteps": scheduler.timesteps.numpy(), "states": torch.stack(states).float().numpy()}


@contextlib.contextmanager
def drawing(noise):
    """Whatever CogVideoX's scheduler draws is this noise; it can be handed none."""
    from diffusers.schedulers import scheduling_dpm_cogvideox as module

    before = module.randn_tensor
    module.randn_tensor = lambda *_, **__: noise
    try:
        yield
    finally:
        module.randn_tensor = before


def alphas(config: dict) -> np.ndarray:
    """The squared alphas of a CogVideoX scheduler, float64 [1000]."""
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config).alphas_cumprod.numpy()


def main() -> None:
    arrays = {"cases": np.array(json.dumps({name: config for name, (config, _) in CASES.items()}))}
    for name, steps in RUNS:
        for key, value in reference(CASES[name][0], steps).items():
            arrays[f"{name}_{steps}_{key}"] = value
    for name in VARIANCE_PRESERVING:
        arrays[f"{name}_alphas"] = alphas(CASES[name][0])
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
