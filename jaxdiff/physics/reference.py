"""Clips of the generated world whose physics is known: right ones, and ones in which another thing comes out of hiding."""

import dataclasses

import numpy as np

from jaxdiff.data.worlds import WorldConfig, prompts, quadruplets
from jaxdiff.data.worlds.scene import CATEGORIES


@dataclasses.dataclass(frozen=True)
class Reference:
    """Clips that show a thing, with what they show known exactly.

    Attributes
    ----------
    video : uint8 [N, T, S, S, 3].
    words : int32 [N, 3], the prompts; of a clip that shows two things, of the one before.
    truth : "positions" [N, T, 2], "visibility" [N, T], "colour" and "shape" int [N], as `truth_errors` takes them.
    """

    video: np.ndarray
    words: np.ndarray
    truth: dict[str, np.ndarray]

    @property
    def captions(self) -> list[str]:
        """The prompts in words."""
        return [prompts.as_text(row) for row in self.words]


def references(config: WorldConfig, seed: int, scenes: int) -> tuple[Reference, Reference]:
    """Possible and impossible clips of the test scenes of a world seed, `scenes` of each category.

    Clips without a thing before the switch are left out, and of the possible ones therefore those of an empty stage.
    """
    found: dict[bool, list] = {True: [], False: []}
    for quadruplet in quadruplets(config, seed, scenes, CATEGORIES):
        for clip, possible in enumerate(quadruplet.possible):
            thing = quadruplet.things[quadruplet.parts[clip, 0]]
            if not thing.present:
                continue
            frames = quadruplet.frames
            truth = {
                "positions": frames.positions[clip],
                "visibility": frames.visibility[clip],
                "colour": thing.colour,
                "shape": thing.shape,
            }
            found[bool(possible)].append((frames.video[clip], np.asarray(prompts.words(thing)), truth))
    possible, impossible = (_stack(found[which]) for which in (True, False))
    return possible, impossible


def _stack(clips: list) -> Reference:
    video, words, truth = zip(*clips, strict=True)
    return Reference(np.stack(video), np.stack(words), {k: np.stack([t[k] for t in truth]) for k in truth[0]})
