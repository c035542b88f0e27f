"""What a controlled clip does with the mask that it was given, and what that does to the other objects, in numbers.

Discs of the generated billiards are found by their colours, no two of which are the same in a clip. Motion fidelity is that of
Yatim et al. (arXiv 2311.17009), which InterDyn reports on tracked points; here it is on tracks of objects.
"""

import dataclasses

import numpy as np

from jaxdiff.data.worlds.scene import COLOURS
from jaxdiff.errors import ConfigError
from jaxdiff.physics.tracking import OPAQUE, amounts, patches

LEAST = 0.3  # of a disc's area in the first frame, from which on a patch of its colour is the disc
STILL = 0.008  # of the frame's side in a frame: less is no motion; a quarter of a pixel of 32


@dataclasses.dataclass(frozen=True)
class DiscTracks:
    """Discs of N clips of T frames, K of them in each; lengths are fractions of the frame.

    Attributes
    ----------
    masks : bool [N, T, K, H, W], what was found of each.
    position : [N, T, K, 2], their centres; nan where not found.
    """

    masks: np.ndarray
    position: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """bool [N, T, K]"""
        return np.isfinite(self.position[..., 0])


def track_discs(video: np.ndarray, colour: np.ndarray, radius: np.ndarray) -> DiscTracks:
    """Find discs by colour.

    Parameters
    ----------
    video : uint8 [N, T, H, W, 3]
    colour : int [N, K], indices into COLOURS, of each clip's discs.
    radius : [N, K]
    """
    video, colour = np.asarray(video), np.asarray(colour)
    if video.ndim != 5 or video.shape[-1] != 3 or video.dtype != np.uint8 or len(colour) != len(video):
        raise ConfigError(
            f"clips are uint8 [N, T, H, W, 3], with N rows of colours; got {video.shape} and {colour.shape}"
        )
    parts = [slice(i, i + 64) for i in range(0, len(video), 64)]
    found = [_track(video[part], colour[part], np.asarray(radius)[part]) for part in parts]
    return DiscTracks(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _track(video: np.ndarray, colour: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    clips, frames, height, width = video.shape[:4]
    rgb = video.astype(np.float32) / 255
    amount, nearest = amounts(rgb - rgb.mean(-1, keepdims=True))
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    masks, places = [], []
    for k in range(colour.shape[1]):
        which = colour[:, k]
        assert which.min() >= 0 and which.max() < len(COLOURS)
        share = np.take_along_axis(amount, which[:, None, None, None, None], -1)[..., 0]
        flat = (clips * frames, height, width)
        (patch,) = patches(nearest.reshape(flat), (share > OPAQUE).reshape(flat), 1)
        patch = patch.reshape(share.shape)
        weight = share * patch
        mass = weight.sum((2, 3))
        there = mass >= LEAST * np.pi * radius[:, None, k] ** 2 * height * width
        centre = np.stack([weight.sum(2) @ x, weight.sum(3) @ y], -1) / np.maximum(mass, 1e-6)[..., None]
        masks.append(patch)
        places.append(np.where(there[..., None], centre, np.nan))
    return np.stack(masks, 2), np.stack(places, 2)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks bool [N, T, H, W] without the first frame, which is given: [N].

    Over all frames of a clip together; nan where both are empty.
    """
    both, either = ((x[:, 1:].sum((1, 2, 3), dtype=np.int64)) for x in (a & b, a | b))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def displacement(position: np.ndarray, disc: int = 1) -> np.ndarray:
    """How far a disc is at the end from where it was at first [N, 2]: of tracks [N, T, K, 2], where it was seen first and last;
    nan for one that was not seen twice."""
    path = position[:, :, disc]
    seen = np.isfinite(path[..., 0])
    rows, first, last = np.arange(len(path)), seen.argmax(1), path.shape[1] - 1 - seen[:, ::-1].argmax(1)
    return np.where((seen.sum(1) > 1)[:, None], path[rows, last] - path[rows, first], np.nan)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation over the clips and both axes of displacements [N, 2]; nan without spread."""
    there = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    a, b = a[there].ravel(), b[there].ravel()
    if len(a) < 4 or np.std(a) == 0 or np.std(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def motion_fidelity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How alike two clips move [N], from tracks [N, T, K, 2]: 1 for equal motion, -1 for the opposite.

    The likeness of two tracks is the mean cosine between their velocities, over frames in which either moves; where one of the
    two does not, the cosine counts as 0. Every track that moves is compared with the moving one of the other clip that is most
    like it, and the means of both directions are averaged (equations 9 and 10 there). 0 where nothing moves in one of the
    clips, nan where nothing does in either.
    """
    if a.shape != b.shape:
        raise ConfigError(f"tracks {a.shape} and {b.shape} are of clips of different length or number")
    va, vb = np.diff(a, axis=1), np.diff(b, axis=1)
    count = va.shape[2]
    alike = np.stack([[_alike(va[:, :, i], vb[:, :, j]) for j in range(count)] for i in range(count)], 0)
    alike = alike.transpose(2, 0, 1)  # [N, K of a, K of b]
    moves = [np.nan_to_num(np.linalg.norm(v, axis=-1)).max(1) >= STILL for v in (va, vb)]  # [N, K]
    alike = np.where(moves[0][:, :, None] & moves[1][:, None], alike, -1.0)
    ends = [np.where(moves[side], alike.max(2 - side), 0).sum(1) / np.maximum(moves[side].sum(1), 1) for side in (0, 1)]
    there = [moving.any(1) for moving in moves]
    return np.where(there[0] & there[1], (ends[0] + ends[1]) / 2, np.where(there[0] | there[1], 0.0, np.nan))


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean cosine of velocities [N, T - 1, 2], over the frames in which either moves; [N]."""
    sizes = [np.nan_to_num(np.linalg.norm(v, axis=-1)) for v in (a, b)]
    moves = [size >= STILL for size in sizes]
    dot = np.nan_to_num((a * b).sum(-1)) / np.maximum(sizes[0] * sizes[1], 1e-12)
    either = moves[0] | moves[1]
    return np.where(moves[0] & moves[1], dot, 0).sum(1) / np.maximum(either.sum(1), 1)


def energy_gain(position: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """By how much the kinetic energy of elastic discs comes to exceed what it was at first, as a share of that [N]; 0 if never.

    Of tracks [N, T, K, 2]; a disc's mass is the square of its radius. Velocities are taken over a quarter of the clip, so that
    errors of a fraction of a pixel matter less; a bounce in between makes them smaller, and a gain of energy is therefore not
    an artefact, while a loss may be one. nan where a disc is not found, or nothing moves at first.
    """
    lag = max(1, (position.shape[1] - 1) // 4)
    v = (position[:, lag:] - position[:, :-lag]) / lag
    energy = (np.square(radius)[:, None] * np.square(v).sum(-1)).sum(-1) / 2
    start = energy[:, : lag + 1].max(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(start > 0, np.maximum(energy.max(1) / start - 1, 0), np.nan)
