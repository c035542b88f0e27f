"""What a study probes: the states, the null controls, and the comparisons that may be as good."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import Source
from jaxdiff.study.features import Features, input_features, stored_features
from jaxdiff.study.reading import INPUT
from jaxdiff.study.results import INPUTS

_NAMES = {"structureless": "structure-less model", "untrained": "untrained model, gates open"}


def blocks_and_input(features: Features) -> tuple[Features, Features]:
    """What the blocks gave, and what entered the first of them."""
    entering = [name for name in features.arrays if name.startswith(f"{INPUT}.")]
    return features.only([name for name in features.arrays if name not in entering]), features.only(entering)


def make_sources(
    stores: Mapping[str, ActivationStore],
    noised: Mapping[str, ActivationStore],
    table: Mapping[str, np.ndarray],
    kept: Sequence[int],
) -> list[Source]:
    """Everything that is probed, in the order of the headline table.

    Parameters
    ----------
    stores, noised : of each model, itself first: read along the inversion, and on noised latents.
    table : `read_inputs`.
    kept : clips of `stores` that are used; `noised` and `table` hold no others.
    """
    main = next(iter(stores))
    read = {name: blocks_and_input(stored_features(store, kept)) for name, store in stores.items()}
    states, entering = read.pop(main)
    sources = [Source("states", "inverted states", "states", main, states, "all blocks and noise levels")]
    for name, (blocks, enters) in read.items():
        sources.append(Source(name, _NAMES[name], "null", name, blocks, "same inversion and probes"))
        if enters.arrays:
            sources.append(Source(INPUTS[name], f"what enters the {_NAMES[name]}", "null", name, enters, listed=False))
    note = "labels permuted inside scenes"
    sources.append(Source("shuffled", "shuffled labels", "null", main, states, note, shuffled=True))
    # A linear statistic of the latents adds up over frames; these two multiply frames with frames.
    crossing = [name for name in table if name in ("latents.frame_products", "latents.moments")]
    linear = [name for name in table if name.startswith("latents.") and name not in crossing]
    sources += [
        Source("pixels", "pixels", "null", "", input_features(table, "pixels"), "4 x 4 colours of every frame"),
        Source(
            "latents", "VAE latents", "null", "", input_features({n: table[n] for n in linear}, "latents"),
            "mean, frame mean, 4 x 4 grid: what adds up over frames",
        ),
        Source(
            "products", "VAE latents, products between frames", "comparison", "",
            input_features({n: table[n] for n in crossing}, "latents"),
            "products of frames, moments over time: these see before and after together",
        ),
    ]  # fmt: skip
    if entering.arrays:
        note = "the inverted x_sigma, embedded"
        sources.append(Source("input", "what enters block 0", "comparison", main, entering, note))
    if main in noised:
        features, _ = blocks_and_input(stored_features(noised[main], range(len(kept))))
        note = "one forward pass per level"
        sources.append(Source("noised", "noised latents, no inversion", "comparison", main, features, note))
    return sources
