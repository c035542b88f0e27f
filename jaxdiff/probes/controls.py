"""Features and labels that a probe must fail on, or may do well on for a reason that is not the model's.

Null controls must be at chance. Comparisons (between-frame products of the input) may be as good as the
states; they say how simple a computation would do.
"""

from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.inputs import check_features, check_groups, one_per_clip
from jaxdiff.probes.permutation import permute_labels


def shuffle_labels(y: Any, groups: Any, *, seed: int = 0) -> np.ndarray:
    """Null control: labels [n] exchanged inside groups, uniformly over each group's labelings.

    A quadruplet has six. Raises ConfigError where no group holds both labels.
    """
    return permute_labels(y, groups, 1, seed=seed)[0]


def gaussian_features(candidates: int, clips: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Null control: normal noise [candidates, clips, width] float32, as many candidates as the model has."""
    if min(candidates, clips, width) < 1:
        raise ConfigError(f"gaussian features of shape [{candidates}, {clips}, {width}]; sizes are at least 1")
    return np.random.default_rng(seed).standard_normal((candidates, clips, width), np.float32)


def random_projections(features: Any, candidates: int, width: int, *, seed: int = 0) -> np.ndarray:
    """As many candidates from one input as a network has blocks: [candidates, clips, width] float32.

    A control with one candidate gets no luck from a choice among many; this gives latents [clips, D] the
    same number of draws. Projections are normal with variance 1 / D; candidate k does not depend on how many
    there are.
    """
    features = check_features(features, ndim=2, name="features").astype(np.float32)
    if min(candidates, width) < 1:
        raise ConfigError(f"{candidates} projections to {width} features; both are at least 1")
    size = features.shape[1]
    draws = (np.random.default_rng([seed, k]).standard_normal((size, width), np.float32) for k in range(candidates))
    return np.stack([features @ (draw / np.float32(np.sqrt(size))) for draw in draws])


def between_frame_products(frame_means: Any) -> np.ndarray:
    """Comparison: each channel's products between frames, [clips, C T' (T' + 1) / 2] from [clips, T', C].

    After removing each clip's mean over frames, so what is left is how frames differ together: the simplest
    features that see whether before and after belong together, which no linear one can on matched scenes.
    """
    x = np.asarray(frame_means)
    if x.ndim != 3 or 0 in x.shape:
        raise ConfigError(f"frame means have shape {x.shape}; expected [clips, T', C]")
    x = x.astype(np.float32) - x.astype(np.float32).mean(1, keepdims=True)
    first, second = np.triu_indices(x.shape[1])
    return (x[:, first] * x[:, second]).reshape(len(x), -1)


def control_labels(attribute: Any, groups: Any, *, seed: int = 0) -> np.ndarray:
    """Control task: a random label for each value of `attribute` [n], True for half of the values: bool [n].

    A probe tells them on held-out scenes only by knowing the values again, so the attribute has to recur: were it the
    scene itself, nothing could be told on held-out ones and selectivity would be an accuracy minus chance.

    Raises
    ------
    ConfigError
        The attribute has fewer than two values, or one of them occurs in one group alone.
    """
    attribute = np.asarray(attribute)
    codes = check_groups(groups, len(attribute))
    values, of_clip = np.unique(one_per_clip(attribute, len(codes), "attribute"), return_inverse=True)
    if len(values) < 2:
        raise ConfigError("the attribute has one value only; a control task needs two to tell apart")
    alone = [v for k, v in enumerate(values.tolist()) if len(np.unique(codes[of_clip == k])) < 2]
    if alone:
        raise ConfigError(
            f"{alone[0]!r} and {len(alone) - 1} more of {len(values)} values of the attribute occur in one group alone: "
            "what never recurs cannot be told on held-out groups; use an attribute that does, such as a colour"
        )
    labels = np.arange(len(values)) < len(values) // 2
    return np.random.default_rng(seed).permutation(labels)[of_clip]
