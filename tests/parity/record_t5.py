"""Record what transformers' T5 and UMT5 encoders compute, for the tests that run without torch.

    python -m tests.parity.record_t5

writes tests/goldens/t5.json (configurations, tensor names and shapes) and t5.npz (for each case the embeddings of every
tenth token, without and with a mask).
"""

import json
from pathlib import Path

import numpy as np

from tests.parity.text_reference import CASES, batch, encoder, run

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for seed, (name, (kind, config)) in enumerate(CASES.items()):
        model = encoder(kind, seed, **config)
        ids, mask = batch(model.config.vocab_size)
        arrays[f"{name}/embeddings"] = run(model, ids, None)[:, ::10]
        arrays[f"{name}/masked"] = run(model, ids, mask)[:, ::10]
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        del shapes["encoder.embed_tokens.weight"]
        values = json.loads(model.config.to_json_string()) | {"architectures": [kind.__name__]}
        described[name] = {"config": values, "seed": seed, "shapes": shapes}
    (GOLDENS / "t5.json").write_text(json.dumps(described, indent=1) + "\n")
    np.savez_compressed(GOLDENS / "t5.npz", **arrays)


if __name__ == "__main__":
    record()
