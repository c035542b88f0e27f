"""Record what torchvision's RAFT makes of seeded weights: tests/goldens/raft.npz.

    python -m tests.parity.record_raft FOLDER

takes a folder with the unpacked wheel of torchvision 0.28 (``pip download --no-deps torchvision==0.28.0``, unzip). Its compiled
operators, which RAFT does not use, need not fit the installed torch: their names are declared here. With --full the published
sizes are compared with ours as well, which takes a minute; the errors are printed and not kept.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.raft import SIZES, UPDATES, pictures, weights
from tests.reference import relative_error

GOLDEN = Path(__file__).parent.parent / "goldens" / "raft.npz"


def torchvision_raft(folder: str):
    """The module that holds torchvision's RAFT."""
    sys.path.insert(0, folder)
    text = (Path(folder) / "torchvision" / "_meta_registrations.py").read_text()
    declared = torch.library.Library("torchvision", "DEF")
    for name in set(re.findall(r'register_(?:meta\("|fake\("torchvision::)(\w+)"', text)):
        declared.define(f"{name}() -> ()")
    from torchvision.models.optical_flow import raft

    return raft, declared


def build(raft, sizes):
    """A RAFT of these sizes by torchvision's own builder."""
    norms = {"instance": torch.nn.InstanceNorm2d, "batch": torch.nn.BatchNorm2d, "none": None}
    blocks = {"residual": raft.ResidualBlock, "bottleneck": raft.BottleneckBlock}
    from jaxdiff.models.vision.raft import RAFTConfig

    given = vars(RAFTConfig(**sizes)).copy()
    for side in ("feature", "context"):
        given[f"{side}_encoder_block"] = blocks[given[f"{side}_encoder_block"]]
        given[f"{side}_encoder_norm_layer"] = norms[given[f"{side}_encoder_norm_layer"]]
    kernel = given["recurrent_block_kernel_size"]
    return raft._raft(recurrent_block_padding=tuple((a // 2, b // 2) for a, b in kernel), **given)


def randomised(network):
    """The network with every tensor drawn from its name, in evaluation; and its tensors."""
    state = weights({name: tuple(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    return network.eval(), {name: np.asarray(value) for name, value in state.items()}


def run(network, first, second, updates):
    """What the modules give, channels last: name -> array."""
    kept = {}

    def keep(name):
        def hook(module, given, output):
            kept[name] = output
            if name == "hidden":
                kept["before"], kept["told"] = given

        return hook

    parts = {
        "feature": network.feature_encoder,
        "context": network.context_encoder,
        "motion": network.update_block.motion_encoder,  # of the last update
        "hidden": network.update_block.recurrent_block,
        "step": network.update_block.flow_head,
    }
    if network.mask_predictor is not None:
        parts["upsampling"] = network.mask_predictor
    hooks = [module.register_forward_hook(keep(name)) for name, module in parts.items()]
    looked = network.corr_block.index_pyramid

    def watched(centroids_coords):
        kept["correlation"] = looked(centroids_coords=centroids_coords)
        return kept["correlation"]

    network.corr_block.index_pyramid = watched
    a, b = (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in (first, second))
    with torch.no_grad():
        kept["flow"] = network(a, b, num_flow_updates=updates)[-1]
    for hook in hooks:
        hook.remove()
    network.corr_block.index_pyramid = looked
    return {name: value.numpy().transpose(0, 2, 3, 1) for name, value in kept.items()}


def compare_full(raft) -> None:
    """Print our error on the published sizes, through the real loader."""
    from jaxdiff.models.vision.raft import load_raft

    first, second = pictures(1, 128, 160)
    for name, builder in (("large", raft.raft_large), ("small", raft.raft_small)):
        network, state = randomised(builder(weights=None))
        theirs = run(network, first, second, 12)["flow"]
        with tempfile.TemporaryDirectory() as folder:
            save_file(state, Path(folder) / "raft.safetensors")
            ours = load_raft(Path(folder) / "raft.safetensors")(first, second, updates=12)
        print(
            f"raft_{name}, 12 updates: {relative_error(ours, theirs):.2e} of flows up to {np.abs(theirs).max():.1f} px"
        )


def main(folder: str, full: bool) -> None:
    raft, _declared = torchvision_raft(folder)
    made = {}
    for name, sizes in SIZES.items():
        network, state = randomised(build(raft, sizes))
        made |= {f"{name}.{key}": value for key, value in run(network, *pictures(), UPDATES).items()}
        made[f"{name}.shapes"] = np.array(json.dumps({key: value.shape for key, value in state.items()}))
        made[f"{name}.flow"] = made[f"{name}.flow"][:, ::3, ::3]
        if "mask_predictor.conv.weight" in state:
            made[f"{name}.upsampling"] = made[f"{name}.upsampling"][:, ::2, ::3]
    np.savez_compressed(GOLDEN, **made)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes, flows up to {np.abs(made['large.flow']).max():.2f} px")
    if full:
        compare_full(raft)


if __name__ == "__main__":
    main(sys.argv[1], "--full" in sys.argv)
