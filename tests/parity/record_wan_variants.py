"""Record what diffusers and transformers compute for Wan's image-to-video, TI2V and two-expert checkpoints.

    python -m tests.parity.record_wan_variants

writes tests/goldens/wan_variants.json (configurations, tensor names and shapes) and wan_variants.npz: of each transformer
the output and the mean over batch and tokens of what leaves each site of each block, of each pipeline the latents that a
guided sample ends in, and what the image encoder and its processor make of pictures.
"""

import json

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModel

from tests import wan_variants as variants
from tests.parity import wan_reference as reference


def describe(model) -> dict:
    """What `tests.wan_variants.write_pipeline` rebuilds a network from."""
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if isinstance(model, CLIPVisionModel):
        config = json.loads(model.config.to_json_string()) | {"architectures": ["CLIPVisionModel"]}
    else:
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        config["_class_name"] = type(model).__name__
    return {"config": config, "shapes": shapes}


def record() -> None:
    """Write both files."""
    networks: dict[str, dict] = {}
    arrays: dict[str, np.ndarray] = {}
    pipelines: dict[str, dict] = {}
    for name in variants.TRANSFORMERS:
        model = reference.transformer(name)
        networks[name] = describe(model)
        output, sites = reference.run(model, *variants.transformer_inputs(name))
        arrays[f"transformer/{name}/output"] = output
        for site, values in sites.items():
            arrays[f"transformer/{name}/{site}"] = values.mean((1, 2))
    for name, (_, _, settings) in variants.PIPELINES.items():
        made = reference.pipeline(name)
        noise, texts, *pictures = variants.sample_inputs(name)
        shown = [None if x is None else Image.fromarray(x) for x in pictures]
        scale_2 = variants.SCALE_2 if "boundary_ratio" in settings else None
        arrays[f"pipeline/{name}"] = reference.sample(
            made, noise, texts, *shown, steps=variants.STEPS, scale=variants.SCALE, scale_2=scale_2
        )
        kind = "ti2v_5b" if name in ("ti2v_5b_image", "t2v_a14b") else name
        parts = {"transformer": [kind, 2], "vae": ["vae", 1]}
        if "boundary_ratio" in settings:
            parts["transformer_2"] = [kind, 3]
        if getattr(made, "image_encoder", None) is not None:
            parts["image_encoder"] = ["clip", 5]
            networks["clip"] = describe(made.image_encoder)
            seen = made.image_processor(images=Image.fromarray(variants.picture(0)), return_tensors="pt")[
                "pixel_values"
            ]
            with torch.no_grad():
                hidden = made.image_encoder(seen, output_hidden_states=True).hidden_states
            arrays["clip/pixels"] = seen.permute(0, 2, 3, 1).numpy()
            arrays["clip/penultimate"] = hidden[-2].numpy()
        networks["vae"] = describe(made.vae)
        pipelines[name] = parts
    described = {"networks": networks, "pipelines": pipelines}
    (variants.GOLDENS / "wan_variants.json").write_text(json.dumps(described, sort_keys=True) + "\n")
    np.savez_compressed(variants.GOLDENS / "wan_variants.npz", **arrays)


if __name__ == "__main__":
    record()
