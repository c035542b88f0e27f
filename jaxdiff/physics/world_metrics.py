"""What a clip of the generated world does against its physics, in numbers that are zero where it does nothing.

In that world a thing keeps its colour, shape and size, moves at constant speed to the side, and keeps its height or hops on
parabolas: ``y(t) = y0 - h 4u(1 - u)`` with ``u = frac(t / p + phase)``. It vanishes behind a screen only. Every number is of
one clip and nan where the clip has too few frames to tell; a clip in which no thing is ever seen says nothing about motion
and is counted by `empty`. A thing that stands still breaks no law of motion: read residuals together with `speed`.
"""

from collections.abc import Mapping

import numpy as np

from jaxdiff.data.worlds import COLOURS, SHAPES, WorldConfig
from jaxdiff.data.worlds.prompts import MOTIONS, NOTHING
from jaxdiff.data.worlds.scene import since_switch
from jaxdiff.errors import ConfigError
from jaxdiff.physics.metrics import Metric
from jaxdiff.physics.tracking import Track

PERIODS = (5.0, 9.0)  # frames per hop of a world of tempo 1
LINE, HOP = 4, 6  # clear frames that a line and a hop need: more than they have unknowns
HOPS = 0.012  # rms of the height from which on a thing hops; of the lowest hop it is .024
AROUND = 1.5  # radii about a thing that must be free before its absence is held against a clip


METRICS: dict[str, Metric] = {
    "permanence": Metric("permanence", "frames in which the thing is missing where it must be seen, or there twice"),
    "colour": Metric("colour changes", "frames in another colour than the clip's commonest"),
    "shape": Metric("shape changes", "frames in another shape than the clip's commonest"),
    "velocity": Metric("velocity residual", "rms distance from motion at constant velocity, of the frame's side"),
    "bounce": Metric(
        "bounce residual", "rms distance of the height from the best hops, of the frame's side (hopping prompts)"
    ),
    "mass": Metric("area variance", "variance of the area over its squared mean"),
    "words": Metric("words not shown", "words of the prompt that the clip does not show"),
    "empty": Metric("empty clips", "clips in which no thing is ever wholly seen"),
    "speed": Metric("speed", "sideways speed, of the frame's side in a frame", violation=False),
}


def measure(track: Track, words: np.ndarray, config: WorldConfig) -> dict[str, np.ndarray]:
    """Every metric of every clip.

    Parameters
    ----------
    track : of N clips.
    words : int [N, 3], the prompts as `jaxdiff.data.worlds.prompts` numbers words; none may be "nothing".

    Returns
    -------
    the keys of `METRICS` -> float64 [N], nan where not defined.

    Raises
    ------
    ConfigError : another number of prompts than of clips, or a prompt that asks for nothing.
    """
    words = np.asarray(words)
    if words.shape != (len(track.found), 3):
        raise ConfigError(f"{len(track.found)} clips need as many prompts of three words, got {words.shape}")
    if (words == NOTHING).any():
        raise ConfigError("a prompt asks for nothing, and physics says nothing about that; leave such clips out")
    time = np.asarray(since_switch(config), np.float64)
    hopping = words[:, 2] - len(COLOURS) - len(SHAPES) >= MOTIONS.index("hops-left")
    x, y = track.position[..., 0], track.position[..., 1]
    speed, off_x = _line(time, x, track.clear)
    level = _where(track.clear.sum(1) >= LINE, _variance(y, track.clear))
    return {
        "permanence": _permanence(track, time, speed),
        "colour": _changes(track.colour, len(COLOURS)),
        "shape": _changes(track.shape, len(SHAPES)),
        "velocity": np.sqrt(off_x + np.where(hopping, 0.0, level)),
        "bounce": np.where(hopping, _hops(time, y, track.clear, config.tempo), np.nan),
        "mass": _variance(track.area, track.clear) / np.square(_mean(track.area, track.clear)),
        "words": _unsaid(track, words, speed, np.sqrt(level)),
        "empty": (~track.clear.any(1)).astype(np.float64),
        "speed": np.abs(speed),
    }


def _where(condition: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(condition, values, np.nan)


def _mean(values: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Mean over the clear frames [N, T] -> [N]; nan where there are none."""
    count = clear.sum(1)
    return _where(count > 0, np.where(clear, values, 0.0).sum(1) / np.maximum(count, 1))


def _variance(values: np.ndarray, clear: np.ndarray) -> np.ndarray:
    return _mean(np.square(values - _mean(values, clear)[:, None]), clear)


def _line(time: np.ndarray, values: np.ndarray, clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the least-squares line through the clear frames, and the mean square distance from it."""
    times = np.broadcast_to(time, values.shape)
    dt, dv = (v - _mean(v, clear)[:, None] for v in (times, values))
    slope = _mean(dt * dv, clear) / np.maximum(_mean(dt * dt, clear), 1e-9)
    enough = clear.sum(1) >= LINE
    return _where(enough, slope), _where(enough, _mean(np.square(dv - slope[:, None] * dt), clear))


def _hops(time: np.ndarray, heights: np.ndarray, clear: np.ndarray, tempo: float) -> np.ndarray:
    """Rms distance of the heights from the nearest curve of hops: a grid over period and phase, least squares inside."""
    period, phase = np.meshgrid(np.linspace(*PERIODS, 65) * tempo, np.arange(96) / 96, indexing="ij")
    turn = np.mod(time / period[..., None] + phase[..., None], 1.0).reshape(-1, len(time))
    lift = 4 * turn * (1 - turn)  # [grid, T]
    weight = clear / np.maximum(clear.sum(1, keepdims=True), 1)
    y = np.where(clear, heights, 0.0)
    mean, square = (weight * y).sum(1), (weight * y * y).sum(1)
    mean_lift, square_lift = weight @ lift.T, weight @ np.square(lift).T  # [N, grid]
    covariance = (weight * y) @ lift.T - mean[:, None] * mean_lift
    variance = np.maximum(square_lift - mean_lift**2, 1e-9)
    gain = np.square(np.minimum(covariance, 0.0)) / variance  # hops lead up, where y is smaller
    left = np.maximum(square - mean**2 - gain.max(1), 0.0)
    return _where(clear.sum(1) >= HOP, np.sqrt(left))


def _changes(values: np.ndarray, kinds: int) -> np.ndarray:
    """Share of the clear frames that are not of the clip's commonest kind; values [N, T] are -1 where not clear."""
    counts = (values[..., None] == np.arange(kinds)).sum(1)
    total = counts.sum(1)
    return _where(total > 0, 1 - counts.max(1) / np.maximum(total, 1))


def _permanence(track: Track, time: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """Share of the frames that owe a sight of the thing and have none, or two.

    A frame owes it if, where the thing would be on its way from the nearest frame that shows it whole, it would not touch the
    border, and no screen lies within `AROUND` radii.
    """
    size = track.screen.shape[-1]
    away = np.abs(time[:, None] - time) + np.where(track.clear, 0.0, np.inf)[:, None]  # [N, T, T]
    nearest = away.argmin(-1)
    place = np.take_along_axis(np.nan_to_num(track.position), nearest[..., None], 1)  # [N, T, 2]
    place = place + np.stack([np.nan_to_num(speed)[:, None] * (time - time[nearest]), np.zeros_like(time[nearest])], -1)
    radius = np.sqrt(np.nan_to_num(_mean(track.area, track.clear)) / np.pi)[:, None]
    inside = ((place > radius[..., None]) & (place < 1 - radius[..., None])).all(-1)
    pixel = (np.arange(size) + 0.5) / size
    dx, dy = pixel - place[..., 0, None], pixel - place[..., 1, None]
    about = np.square(dx)[:, :, None, :] + np.square(dy)[..., None] < np.square(AROUND * radius)[..., None, None]
    owed = inside & ~(about & track.screen).any((2, 3)) & (track.clear.sum(1, keepdims=True) > 0)
    wrong = owed & (~track.found | track.second)
    total = owed.sum(1)
    return _where(total > 0, wrong.sum(1) / np.maximum(total, 1))


def _unsaid(track: Track, words: np.ndarray, speed: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Share of the three words that the commonest colour and shape and the motion do not fit; nan without motion."""

    def commonest(values: np.ndarray, kinds: int) -> np.ndarray:
        return (values[..., None] == np.arange(kinds)).sum(1).argmax(1)

    colour = commonest(track.colour, len(COLOURS)) == words[:, 0]
    shape = commonest(track.shape, len(SHAPES)) + len(COLOURS) == words[:, 1]
    with np.errstate(invalid="ignore"):
        motion = 2 * (level > HOPS) + (speed >= 0) + len(COLOURS) + len(SHAPES) == words[:, 2]
    return _where(np.isfinite(speed), 1 - (colour * 1.0 + shape + motion) / 3)


def truth_errors(track: Track, truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How well the tracker does on clips whose truth is known.

    Parameters
    ----------
    truth : "positions" [N, T, 2] (of things as in `Frames`), "visibility" [N, T], "colour" and "shape" int [N].

    Returns
    -------
    "missed": frames that show the whole thing and in which none was found; "false": frames that show nothing of it and in
    which one was; "position": rms distance of the centre; "position_95": its 95th percentile; "colour", "shape": clear
    frames in which they are wrong. Shares, and fractions of the frame's side.
    """
    seen, hidden = truth["visibility"] > 0.999, truth["visibility"] < 1e-3
    distance = np.linalg.norm(track.position - truth["positions"], axis=-1)[track.clear]
    clear = max(int(track.clear.sum()), 1)

    def wrong(found: np.ndarray, true: np.ndarray) -> float:
        return float((track.clear & (found != true[:, None])).sum() / clear)

    return {
        "missed": float((seen & ~track.found).sum() / max(int(seen.sum()), 1)),
        "false": float((hidden & track.found).sum() / max(int(hidden.sum()), 1)),
        "position": float(np.sqrt(np.mean(np.square(distance)))) if distance.size else float("nan"),
        "position_95": float(np.quantile(distance, 0.95)) if distance.size else float("nan"),
        "colour": wrong(track.colour, truth["colour"]),
        "shape": wrong(track.shape, truth["shape"]),
    }
