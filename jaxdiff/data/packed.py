"""Video files packed into one HDF5 file.

A clip in there is addressed by a path that continues the file's, as if the file were a folder:
`parabola_eval.hdf5/00000/00012` is row 12 of the dataset `video_streams/00000`, the bytes of an mp4.
"""

from pathlib import Path

import numpy as np

SUFFIX = ".hdf5"
VIDEOS = "video_streams"


def packed_path(file: Path, split: str, row: int) -> Path:
    """The path of a packed clip."""
    return file / split / f"{row:05d}"


def is_packed(path: Path) -> bool:
    """Whether a path leads into an HDF5 file."""
    file = path.parent.parent
    return file.suffix == SUFFIX and file.is_file()


def packed_bytes(path: Path) -> bytes:
    """The bytes of a packed clip.

    Raises
    ------
    ValueError, KeyError, OSError
        If there is no such row, or the file cannot be read.
    """
    import h5py

    with h5py.File(path.parent.parent, "r") as packed:
        rows = packed[f"{VIDEOS}/{path.parent.name}"]
        row = int(path.name)
        if row >= len(rows):
            raise ValueError(f"it holds {len(rows)} clips in {path.parent.name}")
        stored = rows[row]
    return stored if isinstance(stored, bytes) else np.asarray(stored).tobytes()
