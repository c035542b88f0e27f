"""Where a token is, in the three ways in which CogVideoX checkpoints are told: sines that are added, angles that
queries and keys are rotated by, and a learned table (which is a weight, and not here).

Numerics follow diffusers (`get_3d_sincos_pos_embed`, `get_3d_rotary_pos_embed`): positions and rotary angles are formed
in float32, the added sines in float64.
"""

import numpy as np

Grid3 = tuple[int, int, int]
THETA = 10000.0


def sincos(grid: Grid3, width: int, spatial_scale: float, temporal_scale: float) -> np.ndarray:
    """The table that CogVideoX-2B adds to its video tokens.

    Channels are ``[time: D/4 | column: 3D/8 | row: 3D/8]``, each ``[sin | cos]`` of ``position / scale`` times
    frequencies ``10000 ** (-2 i / d)``.

    Parameters
    ----------
    grid : (T', H', W') token counts per axis.
    width : D, a multiple of 16.
    spatial_scale, temporal_scale : positions are divided by them.

    Returns
    -------
    float32 [T' H' W', D]
    """
    scales = (temporal_scale, spatial_scale, spatial_scale)
    tables = []
    for axis, channels in ((0, width // 4), (2, 3 * width // 8), (1, 3 * width // 8)):
        position = np.arange(grid[axis], dtype=np.float32) / np.float32(scales[axis])
        frequencies = 1.0 / THETA ** (np.arange(channels // 2) / (channels / 2.0))
        angles = position.astype(np.float64)[:, None] * frequencies
        tables.append(_over(grid, axis, np.concatenate([np.sin(angles), np.cos(angles)], -1)))
    return np.concatenate(tables, -1).reshape(-1, width).astype(np.float32)


def rotary(
    grid: Grid3, head_dim: int, base: tuple[int, int] | None = None, *, still: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the rotary embedding of the 5B checkpoints.

    A head's channels are split into (d/4, 3d/8, 3d/8) for time, rows and columns.

    Parameters
    ----------
    grid : (T', H', W') token counts per axis.
    head_dim : d, a multiple of 16.
    base : rows and columns of the size that the checkpoint was trained at: every other grid is laid over it, centred,
        in its own aspect ratio and as large as fits (CogVideoX 1.0). None: tokens are one apart from 0 on (1.5).
    still : tokens in front of the grid that are not rotated, those of the text.

    Returns
    -------
    cos, sin : float32 [still + T' H' W', d / 2], one angle per channel pair.
    """
    positions = [np.arange(n, dtype=np.float64) for n in grid]
    if base is not None:
        for axis, (start, size) in zip((1, 2), _fitted(grid[1:], base), strict=True):
            positions[axis] = np.linspace(start, (start + size) * (grid[axis] - 1) / grid[axis], grid[axis])
    angles = []
    for axis, channels in enumerate((head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)):
        exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
        frequencies = np.float32(1) / (THETA ** exponents.astype(np.float64)).astype(np.float32)
        angles.append(_over(grid, axis, positions[axis].astype(np.float32)[:, None] * frequencies))
    table = np.concatenate(angles, -1).reshape(-1, head_dim // 2)
    table = np.concatenate([np.zeros((still, head_dim // 2), np.float32), table])  # an angle of 0 changes no bit
    return np.cos(table), np.sin(table)


def _fitted(size: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(start, extent) along rows and columns of a grid of `size` scaled into one of `base`."""
    (height, width), (base_height, base_width) = size, base
    if height / width > base_height / base_width:
        extent = base_height, round(base_height / height * width)
    else:
        extent = round(base_width / width * height), base_width
    starts = (round((outer - inner) / 2.0) for outer, inner in zip(base, extent, strict=True))
    rows, columns = zip(starts, extent, strict=True)
    return rows, columns


def _over(grid: Grid3, axis: int, table: np.ndarray) -> np.ndarray:
    """[n, c], a row for each place along one axis, repeated along the other two: [T', H', W', c]."""
    shape = [1, 1, 1, table.shape[-1]]
    shape[axis] = grid[axis]
    return np.broadcast_to(table.reshape(shape), (*grid, table.shape[-1]))
