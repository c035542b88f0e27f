"""A study's answers from invented features, small enough to probe in a second."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.study import predictions
from jaxdiff.study.analysis import Labels, Protocol, Source, analyse
from jaxdiff.study.features import Candidate, Features
from jaxdiff.study.inputs import Surprise
from jaxdiff.study.results import result_json
from jaxdiff.study.sources import blocks_and_input
from jaxdiff.workdir import Workdir

SIGMAS = (0.0, 0.5)
COLOURS = "red", "green", "blue", "cyan", "magenta", "yellow"
PROTOCOL = Protocol(penalties=(1.0, 100.0), outer=3, inner=2, published_seeds=2)


def clips(scenes=12, world=0):
    return [
        Clip(
            f"w{world}/{scene}/{i}",
            Path("/nowhere"),
            f"w{world}/{scene:02d}",
            ("O1", "O2")[scene % 2],
            i < 2,
            (("colour", COLOURS[scene // 2]),),
        )
        for scene in range(scenes)
        for i in range(4)
    ]


def features(rng, y, strength, input_strength=0.0):
    """Two blocks and the input at two levels; `strength` [2] says how far each block separates the labels."""
    arrays, candidates = {}, {}
    for name, site, blocks, how in (
        ("block_out.mean", "block_out", (0, 1), strength),
        ("input.mean", "input", (-1,), (input_strength,)),
    ):
        places = [Candidate(site, "mean", block, slot, sigma) for block in blocks for slot, sigma in enumerate(SIGMAS)]
        values = rng.standard_normal((len(places), len(y), 3)).astype(np.float32)
        for place, value in zip(places, values, strict=True):
            value[:, 0] += how[max(place.block, 0)] * (2 * y - 1)
        arrays[name], candidates[name] = values, tuple(places)
    return Features(arrays, candidates)


def answers(items, seed=0, strength=2.0, **protocol):
    rng, labels = np.random.default_rng(seed), Labels.of(items)
    y = labels.possible
    states, entering = blocks_and_input(features(rng, y, (0.0, strength)))
    control, enters = blocks_and_input(features(rng, y, (0.0, 0.0)))
    latents = rng.standard_normal((1, len(y), 4)).astype(np.float32)
    place = (Candidate("latents", "mean", -1, 0, 0.0),)
    sources = [
        Source("states", "inverted states", "states", "trained", states, title="trained"),
        Source("structureless", "structure-less model", "null", "structureless", control, title="structure-less"),
        Source("structureless.input", "its input", "null", "structureless", enters, listed=False),
        Source("shuffled", "shuffled labels", "null", "trained", states, shuffled=True),
        Source("latents", "VAE latents", "null", "", Features({"latents.mean": latents}, {"latents.mean": place})),
        Source("input", "what enters block 0", "comparison", "trained", entering),
    ]
    return analyse(sources, labels, dataclasses.replace(PROTOCOL, **protocol)), labels


def surprises(rng, labels):
    loss = rng.standard_normal((len(labels.possible), 2)) - labels.possible[:, None]
    return {"trained": Surprise(np.array(SIGMAS), loss), "structureless": Surprise(np.array(SIGMAS[1:]), loss[:, 1:])}


@dataclasses.dataclass(frozen=True)
class Config:
    """The part of a study's configuration that its aggregate reads."""

    model: str
    world_seed: int
    structureless: str = "s"
    dataset: str = "world"
    data_dir: str | None = None
    seed: int = 0
    steps: int = 20


def write_study(folder, training, world, strength=None, **protocol):
    """A finished workdir of a study of invented numbers."""
    items = clips(world=world)
    found, labels = answers(
        items, seed=10 * training + world, strength=1.0 + training if strength is None else strength, **protocol
    )
    surprise = surprises(np.random.default_rng(world), labels)
    with Workdir(folder, Config(f"model{training}", world)) as work:
        data = predictions.pack(found, labels, surprise, SIGMAS, items, np.ones(len(items)))
        work.write(predictions.FILE, data)
        scenes = len(set(labels.groups.tolist()))
        work.write_result({**result_json(found, labels, surprise, 0), "clips": len(items), "scenes": scenes})
        work.finish(("result.json", predictions.FILE))
