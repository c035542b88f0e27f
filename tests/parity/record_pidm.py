"""Record what the published U-Net of PIDM makes of seeded weights: tests/goldens/pidm_unet.npz.

    python -m tests.parity.record_pidm PATH/TO/PhysicsInformedDiffusionModels

takes a checkout of that repository (commit 733aeb0). Two libraries that it imports, for modules it never calls and for a
one-line function, are replaced here.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from tests.physics.unet_weights import SIZES, inputs, weights

GOLDEN = Path(__file__).parent.parent / "goldens" / "pidm_unet.npz"


class _Rotary(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.freqs = torch.nn.Parameter(torch.zeros(dim // 2))


def main(checkout: str) -> None:
    many = types.ModuleType("einops_exts")
    many.rearrange_many = lambda tensors, pattern, **sizes: [rearrange(t, pattern, **sizes) for t in tensors]
    rotary = types.ModuleType("rotary_embedding_torch")
    rotary.RotaryEmbedding = _Rotary
    sys.modules |= {"einops_exts": many, "rotary_embedding_torch": rotary}
    sys.path.insert(0, checkout)
    from src.unet_model import Unet3D

    network = Unet3D(**SIZES).eval()
    own = network.state_dict()
    given = {name: torch.from_numpy(value) for name, value in weights({n: v.shape for n, v in own.items()}).items()}
    network.load_state_dict(given)
    x, t = inputs()
    with torch.no_grad():
        y = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(t)).numpy().transpose(0, 2, 3, 1)
    np.savez_compressed(GOLDEN, y=y)
    print(f"{GOLDEN}: {y.shape}, std {y.std():.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
