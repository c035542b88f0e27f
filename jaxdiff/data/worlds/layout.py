"""Generated scenes on disk, exactly as IntPhys lays out its dev split, so that the real loader reads them.

Beyond the published dev split, depth and masks are written as IntPhys's training movies have them (16-bit
gray with `65535 - millimetres`; 8-bit gray levels named in status.json), and status.json carries the exact
trajectories.
"""

import dataclasses
import errno
import io
import json
from pathlib import Path

import numpy as np

from jaxdiff.data.worlds.clips import Quadruplet, quadruplets
from jaxdiff.data.worlds.render import LAYERS
from jaxdiff.data.worlds.scene import CATEGORIES, COLOURS, SHAPES, WorldConfig
from jaxdiff.errors import ConfigError, Resumable

GRAY = tuple(40 * (i + 1) for i in range(len(LAYERS)))
"""The mask's gray level of each layer."""

MARKER = "world.json"  # what the folder holds; rewritten as complete once everything lies there


def write_intphys(
    config: WorldConfig,
    seed: int,
    scenes_per_block: int,
    out: str | Path,
    *,
    depth: bool = True,
    masks: bool = True,
) -> Path:
    """Write a generated dev split: `out/dev/<block>/<scene>/<1..4>/{scene,depth,masks}/*.png` and
    `status.json`.

    The four runs of a scene are in shuffled order. An equal world that lies there complete is left as it is;
    one that was interrupted is written again over itself.

    Parameters
    ----------
    config : WorldConfig
    seed : int
        World seed. Scene k is the same whatever `scenes_per_block` is.
    scenes_per_block : int
        Quadruplets in each of O1, O2, O3.
    out : str or Path
        A new or empty folder, or an earlier result.
    depth, masks : bool
        Whether to write them; the probe needs neither.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    ConfigError
        If `out` holds something else.
    Resumable
        If the disk is full.
    """
    out = Path(out)
    content = {
        "layout": "intphys",
        "seed": seed,
        "scenes_per_block": scenes_per_block,
        "depth": depth,
        "masks": masks,
        "world": json.loads(json.dumps(dataclasses.asdict(config))),
    }
    if scenes_per_block < 1:
        raise ConfigError(f"write_intphys: scenes_per_block={scenes_per_block}, but it must be at least 1.")
    if _state(out, content):
        return out
    try:
        out.mkdir(parents=True, exist_ok=True)
        _mark(out, content, complete=False)
        digits = max(2, len(str(scenes_per_block)))
        for quadruplet in quadruplets(config, seed, scenes_per_block, CATEGORIES):
            folder = out / "dev" / quadruplet.category / f"{quadruplet.scene + 1:0{digits}d}"
            _write_quadruplet(config, quadruplet, folder, depth, masks)
        _mark(out, content, complete=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Resumable(
                f"{out}: no space left while writing the world. Make room and run the same command again."
            ) from error
        raise
    return out


def _state(out: Path, content: dict) -> bool:
    """Whether this very world lies there complete; raises if anything else does."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MARKER).read_text())
        complete = found.pop("complete")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(f"{out}: is not empty and holds no generated world. Give a new folder for --out.") from None
    if found != content:
        differing = sorted(k for k in {*found, *content} if found.get(k) != content.get(k))
        raise ConfigError(
            f"{out}: holds a world with other settings ({', '.join(differing)}). "
            "Give a new folder for --out, or remove this one."
        )
    return complete


def _mark(out, content, complete):
    partial = out / f"{MARKER}.partial"
    partial.write_text(json.dumps({**content, "complete": complete}, indent=1, sort_keys=True) + "\n")
    partial.replace(out / MARKER)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _write_quadruplet(config, quadruplet, folder, depth, masks):
    frames = quadruplet.frames
    kinds = {"scene": frames.video}
    if depth:
        kinds["depth"] = (65535 - np.round(frames.depth)).astype(np.uint16)
    if masks:
        kinds["masks"] = np.asarray(GRAY, np.uint8)[frames.masks]
    digits = max(3, len(str(config.frames)))
    after = np.arange(config.frames) >= config.switch
    encoded = {}  # equal parts are encoded once
    for run in range(4):
        here = folder / str(run + 1)
        for kind, pictures in kinds.items():
            (here / kind).mkdir(parents=True, exist_ok=True)
            for f, picture in enumerate(pictures[run]):
                part = (kind, f, int(quadruplet.parts[run, int(after[f])]))
                if part not in encoded:
                    encoded[part] = _png(picture)
                (here / kind / f"{kind}_{f + 1:0{digits}d}.png").write_bytes(encoded[part])
        (here / "status.json").write_text(json.dumps(_status(config, quadruplet, run)))


def _status(config: WorldConfig, quadruplet: Quadruplet, run: int) -> dict:
    """The label in `header`, and per frame what IntPhys's training movies tell, in this world's units."""
    frames, levels = [], dict(zip(LAYERS, GRAY, strict=True))
    for f in range(config.frames):
        thing = quadruplet.things[quadruplet.parts[run, int(f >= config.switch)]]
        entry: dict[str, object] = {"masks": levels}
        if thing.present:
            x, y = quadruplet.frames.positions[run, f].tolist()
            entry["object_1"] = {
                "location": {"x": x, "y": y},
                "scale": float(thing.radius),
                "shape": SHAPES[int(thing.shape)],
                "material": COLOURS[int(thing.colour)],
                "visibility": float(quadruplet.frames.visibility[run, f]),
            }
        frames.append(entry)
    header = {
        "is_possible": bool(quadruplet.possible[run]),
        "block_name": quadruplet.category,
        "block_type": "test",  # as the generator of IntPhys calls scenes of matched movies, those of dev among them
    }
    return {"header": header, "frames": frames}
