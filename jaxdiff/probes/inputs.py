"""Checks of what a caller hands to the probes: said once, with the clip, candidate or group that is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError, NonFiniteError

LARGEST = 1e18  # squares of float32 features must stay finite


def check_features(X: Any, *, ndim: int, name: str = "X") -> np.ndarray:
    """`X` as an array of `ndim` axes, finite, numeric and not empty; bfloat16 and integers become float32.

    Raises
    ------
    ConfigError
        `X` has another number of axes, an empty axis, or a dtype that is no real number.
    NonFiniteError
        A value is NaN, infinite, or beyond 1e18 in magnitude; names the first one.
    """
    try:
        X = np.asarray(X)
        X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is not an array of real numbers: {error}") from error
    axes = {2: "[clips, D]", 3: "[candidates, clips, D]"}[ndim]
    if X.ndim != ndim:
        raise ConfigError(f"{name} has shape {X.shape}; expected {axes}")
    if 0 in X.shape:
        raise ConfigError(f"{name} has shape {X.shape}: an axis of {axes} is empty")
    # The sum of magnitudes is finite and small exactly for usable input, and needs no array of booleans.
    if not max(abs(float(X.max())), abs(float(X.min()))) <= LARGEST:
        where = np.argwhere(~(np.abs(X) <= LARGEST))
        place = dict(zip(("candidate", "clip", "feature")[3 - ndim :], where[0].tolist(), strict=True))
        text = ", ".join(f"{axis} {index}" for axis, index in place.items())
        raise NonFiniteError(
            f"{name} holds {len(where)} values that are NaN, infinite or beyond {LARGEST:g}, the first "
            f"({X[tuple(where[0])]}) at {text}; drop that clip, or find out why its inversion diverged"
        )
    return X


def check_labels(y: Any, clips: int | None = None, *, both: bool = True) -> np.ndarray:
    """Binary labels as a bool array [clips]; True is the positive class ("possible").

    Raises
    ------
    ConfigError
        `y` is not one-dimensional, does not have `clips` entries, holds something else than 0 and 1 (or
        False and True), or, with `both`, only one of the two.
    """
    y = np.asarray(y)
    if y.ndim != 1:
        raise ConfigError(f"y has shape {y.shape}; expected one label per clip, [clips]")
    if clips is not None and len(y) != clips:
        raise ConfigError(f"y has {len(y)} labels for {clips} clips; give one label per clip")
    values = np.unique(y)
    if not all(value in (0, 1) for value in values.tolist()):
        raise ConfigError(f"y holds {values[:5].tolist()}; labels are False/True or 0/1")
    if both and len(values) < 2:
        raise ConfigError(
            f"y holds one class only ({values.tolist()[0] if len(values) else 'no clip at all'}); "
            "a probe needs clips of both"
        )
    return y.astype(bool)


def check_groups(groups: Any, clips: int) -> np.ndarray:
    """Groups as whole numbers 0 .. G-1 [clips], in the order in which they first appear.

    Raises
    ------
    ConfigError
        `groups` is not one-dimensional or does not have `clips` entries.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or len(groups) != clips:
        raise ConfigError(f"groups has shape {groups.shape} for {clips} clips; give one group per clip")
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[codes]


def check_penalties(penalties: Any) -> np.ndarray:
    """Penalties as a float64 array [P], as given.

    Raises
    ------
    ConfigError
        There is none, or one is not a positive finite number, or one is given twice.
    """
    values = np.atleast_1d(np.asarray(penalties, np.float64))
    if values.ndim != 1 or not len(values) or not np.all((values > 0) & np.isfinite(values)):
        raise ConfigError(f"penalties are {penalties!r}; give positive finite numbers")
    if len(np.unique(values)) < len(values):
        raise ConfigError(f"penalties {values.tolist()} name one penalty twice")
    return values


def named_candidates(X: Any) -> dict[str, np.ndarray]:
    """Candidate sets by name: an array [candidates, clips, D] is one set named "features".

    Raises
    ------
    ConfigError
        There is no set, or the sets disagree about the number of clips.
    NonFiniteError
        See `check_features`.
    """
    sets: Mapping[Any, Any] = X if isinstance(X, Mapping) else {"features": X}
    if not sets:
        raise ConfigError("X is an empty dict; give at least one array [candidates, clips, D]")
    checked = {str(k): check_features(v, ndim=3, name=f"X[{k!r}]" if sets is X else "X") for k, v in sets.items()}
    clips = {name: array.shape[1] for name, array in checked.items()}
    if len(set(clips.values())) > 1:
        raise ConfigError(f"the arrays of X hold different numbers of clips: {clips}")
    return checked


def one_per_clip(values: Sequence[Any] | np.ndarray, clips: int, name: str) -> np.ndarray:
    """`values` as an array [clips]; raises ConfigError where the length differs."""
    values = np.asarray(values)
    if values.ndim != 1 or len(values) != clips:
        raise ConfigError(f"{name} has shape {values.shape} for {clips} clips; give one entry per clip")
    return values


def check_margins(margins: Any, clips: int) -> np.ndarray:
    """Margins [..., clips] as an array; raises ConfigError where the length differs or one is not finite."""
    margins = np.asarray(margins)
    if margins.ndim < 1 or margins.shape[-1] != clips:
        raise ConfigError(f"margins have shape {margins.shape} for {clips} clips; expected [n] or [..., n]")
    if not np.all(np.isfinite(margins)):
        raise ConfigError(f"{int((~np.isfinite(margins)).sum())} margins are not finite; pass held-out clips only")
    return margins
