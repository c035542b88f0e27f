"""What a study probes: the reads of the model, null controls, comparisons that may be as good, and baselines."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.controls import gaussian_features, random_projections
from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import Source
from jaxdiff.study.baselines import baseline_features
from jaxdiff.study.features import Candidate, Features, input_features, stored_features
from jaxdiff.study.inputs import Pool, moment_inputs
from jaxdiff.study.reading import INPUT
from jaxdiff.taps import MAP_SITE

STATES = "states"

# Sites in the order of the headline table, each with its key there and its name. The first that was read of a model is
# its states; choices among blocks, levels and poolings are made inside a site, and each site is a row of its own.
READS = {
    "block_out": ("blocks", "block outputs"),
    "self_attention_out": ("self_attention", "self-attention outputs"),
    "cross_attention_out": ("cross_attention", "text-attention outputs"),
    "mlp_out": ("mlp", "MLP outputs"),
    "self_attention_map": ("attention_maps", "attention maps"),
    "block_in": ("block_inputs", "block inputs"),
}
# Of each model its name in the table, and over its heatmap.
MODEL_NAMES = {
    "trained": ("inverted states", "trained"),
    "structureless": ("structure-less model", "structure-less"),
    "untrained": ("untrained model, gates open", "untrained, gates open"),
}
# Readings of the latents that add up over frames, and those that relate frames to frames by themselves.
LINEAR = ("latents.mean", "latents.frame_mean", "latents.grid")
CROSSING = ("latents.moments", "latents.frame_products")
ADDITIVE = ("mean", "frame_mean", "grid")  # poolings that add up over frames

# --controls: what else is read or probed. Of these, the first four cost passes of the network for every clip.
CONTROLS = {
    "untrained": "the same network with random weights, its gates open, inverted and read alike",
    "noised": "one forward pass per noise level on noised latents instead of an inversion, and the surprise",
    "shuffled_frames": "the same frames in an order drawn for each scene, inverted and read",
    "reversed": "the frames from the last to the first, inverted and read",
    "gaussian": "noise in the shapes of the states' features",
    "projections": "random projections of the latents, as many as the states have cells",
    "moments": "SemanticMoments of the latents",
    "frame_bag": "features of single frames, averaged over frames in no order",
    "flow": "histograms of optical flow",
    "difference": "squared differences of neighbouring frames",
}
ALL = "all"

# Inversions of the model itself on other inputs: the order of frames (`Reading.order`), name and note.
#
# Shuffled frames are a comparison and no null control on matched quadruplets. A clip is impossible because two things
# appear in it that do not belong together, and it still holds both in any order: what needs no order stays decodable by
# whoever relates frames to frames. A VAE that packs four frames into one mixes before and after by itself on top. The
# share that is *lost* is what rests on the order of time. The same holds for reversed time, which in the generated world
# hardly matters: its motions look the same both ways.
VARIANTS = {
    "shuffled_frames": ("shuffled", "shuffled frames", "one order a scene; what needs no order of time stays"),
    "reversed": ("reversed", "reversed time", "from the last frame to the first"),
}
PROMPT = "prompt"


def chosen_controls(names: Sequence[str]) -> tuple[str, ...]:
    """The controls of the flag, "all" written out.

    Raises
    ------
    ConfigError : an unknown name, or one twice.
    """
    names = tuple(CONTROLS) if tuple(names) == (ALL,) else tuple(names)
    for name in names:
        if name not in CONTROLS:
            raise ConfigError(f"--controls: {name!r} is unknown; choose from {', '.join(CONTROLS)}, or {ALL} alone")
        if names.count(name) > 1:
            raise ConfigError(f"--controls names {name!r} twice")
    return names


def pools(controls: Sequence[str]) -> tuple[Pool, ...]:
    """What `read_inputs` has to read for these controls."""
    found: list[Pool] = [moment_inputs] if "moments" in controls else []
    if {"frame_bag", "flow", "difference"} & {*controls}:
        found.append(baseline_features)
    return tuple(found)


def blocks_and_input(features: Features) -> tuple[Features, Features]:
    """What the blocks gave, and what entered the first of them."""
    entering = [name for name in features.arrays if name.startswith(f"{INPUT}.")]
    return features.only([name for name in features.arrays if name not in entering]), features.only(entering)


def by_site(features: Features) -> dict[str, Features]:
    """A model's features by the site that they were read at, in the order of `READS`."""
    sites = [name.partition(".")[0] for name in features.arrays]
    return {
        site: features.only([name for name, at in zip(features.arrays, sites, strict=True) if at == site])
        for site in READS
        if site in sites
    }


def read_sources(
    features: Features, key: str, name: str, kind: str, model: str, note: str = "", title: str = ""
) -> list[Source]:
    """A source for each site that was read of one model; the first has the model's own key, name and heatmap `title`.

    Further ones of the model that is studied are named by their site, those of others by both.
    """
    made: list[Source] = []
    for site, found in by_site(features).items():
        own, told = READS[site]
        if not made:
            made.append(Source(key, name, kind, model, found, note, title=title or name))
        elif key == STATES:
            note = "frame by frame, every head" if site == MAP_SITE else ""
            made.append(Source(own, told, kind, model, found, note, title=told))
        else:
            made.append(Source(f"{key}.{own}", f"{name}: {told}", kind, model, found, title=f"{title or name}: {told}"))
    return made


def make_sources(
    stores: Mapping[str, ActivationStore],
    noised: Mapping[str, ActivationStore],
    table: Mapping[str, np.ndarray],
    kept: Sequence[int],
    *,
    variants: Mapping[str, ActivationStore] | None = None,
    encoders: Mapping[str, Features] | None = None,
    controls: Sequence[str] = (),
    told: str = "",
    seed: int = 0,
) -> list[Source]:
    """Everything that is probed, in the order of the headline table.

    Parameters
    ----------
    stores, noised : of each model, itself first: read along the inversion, and on noised latents.
    table : `read_inputs`, with the `pools` of the controls.
    kept : clips of `stores` and `variants` that are used; `noised`, `table` and `encoders` hold no others.
    variants : the model's own inversions on other inputs: keys of `VARIANTS`, and "prompt".
    encoders : features of the encoders that stand beside the model, by name.
    controls : see `CONTROLS`; those that are features only are made here.
    told : the prompt of the variant "prompt", in words.
    seed : of noise, projections.
    """
    main = next(iter(stores))
    read = {name: blocks_and_input(stored_features(store, kept)) for name, store in stores.items()}
    blocks, entering = read.pop(main)
    known, title = MODEL_NAMES["trained"]
    sources = read_sources(blocks, STATES, known, "states", main, "all blocks and noise levels", title)
    states = sources[0].features
    for name, (found, enters) in read.items():
        known, title = MODEL_NAMES.get(name, (name, name))
        sources += read_sources(found, name, known, "null", name, "same inversion and probes", title)
        if enters.arrays:
            sources.append(Source(f"{name}.input", f"what enters the {known}", "null", name, enters, listed=False))
    note = "labels permuted inside scenes"
    sources.append(Source("shuffled", "shuffled labels", "null", main, states, note, shuffled=True))
    sources += _null_inputs(table, states, controls, seed)
    sources += _comparisons(table, controls)
    if entering.arrays:
        note = "the inverted x_sigma, embedded"
        sources.append(Source("input", "what enters block 0", "comparison", main, entering, note))
    if main in noised:
        features, _ = blocks_and_input(stored_features(noised[main], range(len(kept))))
        name, note = "noised latents, no inversion", "one forward pass per level"
        sources += read_sources(features, "noised", name, "comparison", main, note, "noised, no inversion")[:1]
    for key, store in (variants or {}).items():
        _, name, note = VARIANTS.get(key, ("", "another prompt", told))
        features, _ = blocks_and_input(stored_features(store, kept))
        sources += read_sources(features, key, name, "comparison", main, note)[:1]
    return [*sources, *_baselines(table, controls), *_encoders(encoders or {})]


def _null_inputs(table: Mapping[str, np.ndarray], states: Features, controls: Sequence[str], seed: int) -> list[Source]:
    """Readings of the input that add up over frames, and noise."""
    linear = {name: values for name, values in table.items() if name in LINEAR}
    sources = [
        Source("pixels", "pixels", "null", "", input_features(table, "pixels"), "4 x 4 colours of every frame"),
        Source(
            "latents", "VAE latents", "null", "", input_features(linear, "latents"),
            "mean, frame mean, 4 x 4 grid: what adds up over frames",
        ),
    ]  # fmt: skip
    cells = sum(len(array) for array in states.arrays.values())
    if "projections" in controls:
        width = min(array.shape[2] for array in states.arrays.values())
        drawn = random_projections(table["latents.grid"], cells, width, seed=seed)
        places = tuple(Candidate("latents", "projection", -1, k, 0.0) for k in range(cells))
        sources.append(
            Source(
                "projections", "VAE latents, random projections", "null", "",
                Features({"latents.projection": drawn}, {"latents.projection": places}),
                f"{cells} of the 4 x 4 grid to {width} numbers: as much to choose from as the states have",
            )
        )  # fmt: skip
    if "gaussian" in controls:
        arrays = {
            name: gaussian_features(*array.shape, seed=seed + k)
            for k, (name, array) in enumerate(states.arrays.items())
        }
        drawn_at = {
            name: tuple(dataclasses.replace(c, site="gaussian") for c in states.candidates[name]) for name in arrays
        }
        note = f"noise in the states' shapes, {cells} cells"
        sources.append(Source("gaussian", "Gaussian features", "null", "", Features(arrays, drawn_at), note))
    if "frame_bag" in controls:
        note = "colours, gradients, 4 x 4; no order"
        sources.append(
            Source("frame_bag", "bag of frames, pixels", "null", "", input_features(table, "frame_bag"), note)
        )
    return sources


def _comparisons(table: Mapping[str, np.ndarray], controls: Sequence[str]) -> list[Source]:
    """Readings of the latents that relate frames to frames by themselves."""
    crossing = {name: values for name, values in table.items() if name in CROSSING}
    sources = [
        Source(
            "products", "VAE latents, products between frames", "comparison", "",
            input_features(crossing, "latents"),
            "products of frames, moments over time: these see before and after together",
        )
    ]  # fmt: skip
    if "moments" in controls:
        found = input_features(table, "latents.semantic_moments")
        note = "mean, deviation, skewness over time; 1, 8, 4"
        sources.append(Source("semantic_moments", "VAE latents, SemanticMoments", "comparison", "", found, note))
    return sources


def _baselines(table: Mapping[str, np.ndarray], controls: Sequence[str]) -> list[Source]:
    """Classical motion."""
    told = {
        "flow": ("optical flow", "direction and speed, our Lucas-Kanade; each pair of frames, and their mean"),
        "difference": ("differences of frames", "squared, 4 x 4; each pair of frames, and their mean"),
    }
    return [
        Source(key, name, "baseline", "", input_features(table, f"{key}."), note)
        for key, (name, note) in told.items()
        if key in controls
    ]


def _encoders(encoders: Mapping[str, Features]) -> list[Source]:
    """Other networks. One that sees single frames, averaged in no order, is a bag of frames and a null control."""
    sources = []
    for name, features in encoders.items():
        found, _ = blocks_and_input(features)
        parts = [array.partition(".") for array in found.arrays]
        bag = all(site.startswith("stage") and pooling in ADDITIVE for site, _, pooling in parts)
        note = "bag of frames: single frames through a network of pictures" if bag else "all blocks, no noise"
        sources.append(
            Source(f"encoder_{name.replace('.', '_')}", name, "null" if bag else "baseline", name, found, note)
        )
    return sources
