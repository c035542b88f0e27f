"""Where along the flow a study reads: noise levels that models share, or steps of each model's own grid.

The log signal-to-noise ratio of a state ``x = (1 - s) x0 + s e`` is ``2 log((1 - s) / s)`` (x0 and e of unit variance),
from +inf for the clean latent to -inf for noise. Every model is read in these coordinates, whatever its own: a
variance-preserving state ``a x0 + b e`` is this one at ``s = b / (a + b)``, where ``log(a^2 / b^2)`` is the same
number. One formula therefore serves all schedules.
"""

import math
from collections.abc import Sequence

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.schedule import UniPCFlow

# Noise levels that are common to all models; 0 is the clean latent, before any step is taken.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PUBLISHED = "published"


def nano_levels(steps: int) -> tuple[float, ...]:
    """The points of the nano model's own grid nearest to `LEVELS`, so that reading there adds no steps."""
    grid = UniPCFlow(shift=1.0).grid(steps)
    return tuple(sorted({round(float(grid[np.argmin(np.abs(grid - level))]), 6) for level in LEVELS}))


def published_steps(steps: int) -> tuple[int, ...]:
    """The steps that the paper reads at: every tenth of the grid, and the last (arXiv 2606.05328, section 4)."""
    return tuple(sorted({*(i * steps // 10 for i in range(10)), steps - 1}))


def sigma_at(log_snr: float) -> float:
    """The noise level s with ``2 log((1 - s) / s)`` = `log_snr`; +inf is 0.

    Raises
    ------
    ConfigError : not a number.
    """
    if math.isnan(log_snr):
        raise ConfigError("--capture_log_snr holds nan; give numbers, and inf for the clean latent")
    return float(0.5 - 0.5 * math.tanh(log_snr / 4))


def captures(
    steps: int,
    sigmas: Sequence[float] | None,
    at: Sequence[str] | None,
    log_snr: Sequence[float] | None,
    default: Sequence[float],
) -> tuple[tuple[float, ...] | None, tuple[int, ...] | None]:
    """Noise levels and step numbers to read at, one of them None, from the flags of a study.

    The clean latent is always read: `log_snr` need not name it.

    Raises
    ------
    ConfigError : more than one way is given, or steps are neither numbers nor "published".
    """
    given = {"capture_sigmas": sigmas, "capture_at": at, "capture_log_snr": log_snr}
    named = [f"--{name}" for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} say the same thing in different ways; give one")
    if log_snr is not None:
        return tuple(sorted({0.0, *map(sigma_at, log_snr)})), None
    if at is None:
        return tuple(default if sigmas is None else sigmas), None
    if tuple(at) == (PUBLISHED,):
        return None, published_steps(steps)
    try:
        return None, tuple(int(step) for step in at)
    except ValueError:
        raise ConfigError(f"--capture_at={','.join(at)}: give {PUBLISHED}, or step numbers 0 to {steps - 1}") from None
