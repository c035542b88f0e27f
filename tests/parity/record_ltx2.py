"""Record what diffusers' LTX-2 computes, for the tests that run without torch.

    python -m tests.parity.record_ltx2

writes tests/goldens/ltx2.json (configurations, tensor names and shapes, parameter counts of the published ones) and
ltx2.npz: of every transformer case both outputs, that of the video alone, and the mean over batch and tokens of what leaves
each site of each video block; every 97th channel of the rotations of the published widths; both texts of the connectors;
the VAE's moments and every fifth pixel of their decoding.
"""

import json
from pathlib import Path

import numpy as np

from tests.parity import ltx2_reference as reference
from tests.parity import ltx_vae_reference
from tests.parity.record_ltx import describe
from tests.reference import ltx2_states

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
# As the folder Lightricks/LTX-2 has them; all else is the classes' own.
PUBLISHED = {"transformer": {"rope_type": "split"}, "connectors": {"rope_type": "split"}, "vae": {}}
VIDEO = {"frames": 9, "height": 64, "width": 64}


def record() -> None:
    """Write both files."""
    described: dict = {"transformers": {}, "video": VIDEO, "parameters": reference.parameters(**PUBLISHED)}
    arrays = {}
    for name, (_, grid) in reference.CASES.items():
        model, given = reference.transformer(name), reference.inputs(name)
        said = reference.run(model, given)
        arrays[f"{name}/video"], arrays[f"{name}/audio"] = said.video, said.audio
        arrays[f"{name}/alone"] = reference.run(model, given, alone=True).video
        for site, values in said.sites.items():
            arrays[f"{name}/{site}"] = values.mean((1, 2))
        described["transformers"][name] = {**describe(model), "seed": len(name), "grid": grid}
    for number, table in enumerate(reference.rotations("split", (16, 1, 1), 126, 24.0)):
        arrays[f"rotation_{number}"] = table.reshape(len(table), -1)[:, ::97]
    model = reference.connectors()
    arrays["text"], arrays["audio_text"] = reference.connect(model, *ltx2_states(reference.CONNECTORS))
    described["connectors"] = {**describe(model), "seed": 3}
    vae = reference.vae()
    arrays["moments"], decoded = reference.encode_and_decode(vae, ltx_vae_reference.video(**VIDEO, batch=1))
    arrays["decoded"] = decoded[:, :, ::5, ::5]
    described["vae"] = {**describe(vae), "seed": 4}
    (GOLDENS / "ltx2.json").write_text(json.dumps(described, sort_keys=True, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDENS / "ltx2.npz", **arrays)
    for file in ("ltx2.json", "ltx2.npz"):
        print(f"{GOLDENS / file}: {(GOLDENS / file).stat().st_size} bytes")


if __name__ == "__main__":
    record()
