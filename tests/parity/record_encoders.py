"""Record what transformers' video encoders compute, for the tests that run without torch.

    python -m tests.parity.record_encoders

writes tests/goldens/encoders.json (configurations, tensor names and shapes) and encoders.npz: for each encoder the pixels
that its processor makes of a clip, and what leaves its blocks or stages and the model. (The states of V-JEPA 2 are those of
Pillow's pixels, of which its processor's differ in the last bit of some bytes.)
"""

import json

import numpy as np

from jaxdiff.data.sampling import frame_indices
from jaxdiff.models.vision import PictureConfig, to_pixels
from tests import encoders
from tests.parity import encoder_reference as reference

FRAMES = 4  # of the transformers


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for case, (name, config) in encoders.CASES.items():
        made = reference.model(name, config, encoders.SEEDS[case])
        video = encoders.video()
        if case != "resnet":
            video = video[:, frame_indices(video.shape[1], FRAMES)]
        pixels = np.stack([reference.processed(case, clip) for clip in video]).astype(np.float32)
        arrays[f"{case}/pixels"] = pixels[:, :1]  # a frame is enough
        if case == "vjepa2":
            pictures = PictureConfig.from_dict(encoders.PROCESSORS[case])
            pixels = np.stack([to_pixels(clip, pictures) for clip in video])
        found = reference.states(made, pixels)[1:]
        if case == "resnet":  # per frame, averaged over positions
            arrays |= {f"{case}/{i}": x.mean((2, 3)) for i, x in enumerate(found)}
        else:
            arrays[f"{case}/states"] = np.stack(found)
        shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
        values = json.loads(made.config.to_json_string()) | {"architectures": [name]}
        values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
        described[case] = {"config": values, "shapes": shapes}
    (encoders.GOLDENS / "encoders.json").write_text(json.dumps(described, indent=1) + "\n")
    np.savez_compressed(encoders.GOLDENS / "encoders.npz", **arrays)


if __name__ == "__main__":
    record()
