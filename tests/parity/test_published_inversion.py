"""The inversion released with arXiv 2606.05328, written on diffusers with forward hooks, against ours."""

import numpy as np
import pytest
from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

import jaxdiff
from benchmarks import published
from jaxdiff import Conditioning, Tap
from jaxdiff.study.levels import published_steps
from tests.parity import cogvideox_reference, ltx_reference
from tests.parity.torch_models import TINY_WAN, save_wan, wan_transformer
from tests.reference import (
    COGVIDEOX_SCHEDULER,
    LTX_SHIFTED,
    WAN_SCHEDULER,
    cogvideox_inputs,
    ltx_inputs,
    relative_error,
    wan_inputs,
)

# FlowMatchEulerDiscreteScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
STEPS = 100
AT = published_steps(STEPS)


def wan(folder):
    """(ours, latents, conditioning, what the published inversion reads)"""
    model = wan_transformer()
    latents, _, text = wan_inputs(TINY_WAN, (3, 4, 6))
    scheduler = UniPCMultistepScheduler.from_config(WAN_SCHEDULER)
    found = published.wan(model, scheduler, latents, text, steps=STEPS, at=AT)
    return jaxdiff.load(save_wan(folder, model)), latents, Conditioning(text=text), found


def cogvideox(folder, changes):
    model = cogvideox_reference.transformer(changes)
    grid = (3, 8, 12)
    given = cogvideox_inputs({**cogvideox_reference.TINY, **changes}, grid)
    scheduler = CogVideoXDDIMScheduler.from_config(COGVIDEOX_SCHEDULER)
    rope = cogvideox_reference.rope(model, grid)
    found = published.cogvideox(model, scheduler, given.latents, given.text, rope, steps=STEPS, at=AT)
    ours = jaxdiff.load(cogvideox_reference.save(folder, model))
    return ours, given.latents, Conditioning(text=given.text), found


def ltx(folder):
    model = ltx_reference.transformer()
    latents, _, text, mask = ltx_inputs(ltx_reference.TINY, (3, 4, 5))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(LTX_SHIFTED)
    found = published.ltx(model, scheduler, latents, text, mask, steps=STEPS, at=AT)
    return jaxdiff.load(ltx_reference.save(folder, model)), latents, Conditioning(text=text, text_mask=mask), found


MODELS = {
    "wan": wan,
    "cogvideox_2b": lambda folder: cogvideox(folder, {}),
    "cogvideox_5b": lambda folder: cogvideox(folder, cogvideox_reference.ROTARY),
    "ltx": ltx,
}


@pytest.mark.parametrize("name", MODELS)
def test_block_features_are_those_of_the_published_inversion(name, tmp_path):
    pipeline, latents, cond, found = MODELS[name](tmp_path / "model")

    def run(solver):
        taps = (Tap("block_out"),)
        return jaxdiff.invert(pipeline, latents, cond, steps=STEPS, solver=solver, taps=taps, capture_at=AT)

    ours = run("ddim_label")
    features = np.asarray(ours.captured["block_out.mean"])
    assert features.shape == found.features.shape and len(features) == 11
    # The bar, at every captured step and block; sums of a hundred steps in another order differ by less.
    worst = max(
        relative_error(features[step, block], found.features[step, block])
        for step, block in np.ndindex(*features.shape[:2])
    )
    assert worst <= 1e-3, worst
    assert relative_error(ours.latents, found.end) <= 1e-3
    # The comparison sees a label that is not shifted.
    other = np.asarray(run("euler").captured["block_out.mean"])
    assert relative_error(other, found.features) > 10 * worst
