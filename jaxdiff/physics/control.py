"""A control branch beside a frozen video transformer: InterDyn, arXiv 2412.11785, on any backbone with a stack of blocks.

The video of a mask, that of the object which is moved from outside, drives what the frozen model generates; how the others
react is the model's. As published, the branch is a trainable copy of the backbone's first blocks, sees what the backbone sees
(state, timestep, text, image), has an embedding of the control signal added to its tokens, and adds what its blocks give to
the backbone's through layers that start at zero, so that an untrained branch changes no bit. Both halves of classifier-free
guidance are told the same signal.

The published backbone is a U-Net (Stable Video Diffusion), and of its wiring these parts have no counterpart here: a link to
every skip connection and to the middle becomes one to the output of every copied block; the pyramid of convolutions that
brings the mask of each frame to a latent's size becomes a layer on the pixels that a patch of latents stands for, with their
frames, since these VAEs compress time too; the guidance scale that rises from frame to frame, and the noise levels of its
training, stay those of the backbone. As there, the clean latents of the first frame are told in every frame, unless the
backbone continues an image by itself; then they reach the branch as they reach the backbone.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.models.family import held, per_clip
from jaxdiff.models.layers import ConfigFromDict, Linear, matmul_precision, patchify
from jaxdiff.models.network import Network, Params, Remat, stack
from jaxdiff.pipeline import Pipeline
from jaxdiff.taps import Edit, Tap

CONTROL, FIRST = "control", "first"  # keys of `Conditioning.extra`
STATES = Tap("block_out", "full", name="states")
HIDDEN = 256  # channels before the layer that starts at zero, as published


@dataclasses.dataclass(frozen=True)
class ControlLinksConfig(ConfigFromDict):
    """Sizes of `ControlLinks`.

    Parameters
    ----------
    width, blocks : of the branch.
    patch : latent frames, rows and columns of a token.
    channels : of the signal at a latent, see `fold`.
    image_channels : of the first frame's latents; 0: the backbone has a way of its own for them.
    hidden : of the embedding.
    """

    width: int
    blocks: int
    patch: tuple[int, int, int]
    channels: int
    image_channels: int = 0
    hidden: int = HIDDEN


class ControlLinks(nnx.Module):
    """What a branch has beside the copied blocks: the signal's embedding, and a layer behind every block that starts at zero."""

    def __init__(self, config: ControlLinksConfig, *, rngs: nnx.Rngs):
        inputs, zeros = math.prod(config.patch) * (config.channels + config.image_channels), jax.nn.initializers.zeros
        self.config = config
        self.signal_in = Linear(inputs, config.hidden, rngs=rngs)
        self.signal_out = Linear(config.hidden, config.width, init=zeros, rngs=rngs)
        self.links = stack(lambda r: Linear(config.width, config.width, init=zeros, rngs=r), config.blocks, rngs)

    def embed(self, signal: jax.Array) -> jax.Array:
        """[B, T', H', W', channels + image_channels] -> what is added to the branch's tokens [B, S, D]."""
        return self.signal_out(jax.nn.silu(self.signal_in(patchify(signal, self.config.patch))))

    def residuals(self, states: jax.Array) -> jax.Array:
        """What the branch's blocks gave [n, B, S, D] -> what is added to the backbone's, likewise."""
        kernel, bias = self.links.kernel[...], self.links.bias[...]
        product = jnp.einsum(
            "nbsd,nde->nbse", states.astype(kernel.dtype), kernel, precision=matmul_precision(kernel.dtype)
        )
        return product + bias[:, None, None].astype(product.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["trunk", "links"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ControlBranch:
    """The trainable part: `trunk`, a backbone of n blocks, and `links`, a `ControlLinks`."""

    trunk: Network
    links: Network

    @property
    def params(self) -> Params:
        """What is trained."""
        return {"trunk": self.trunk.params, "links": self.links.params}

    def replace(self, params: Params) -> "ControlBranch":
        """The branch with other weights."""
        return ControlBranch(self.trunk.replace(params["trunk"]), self.links.replace(params["links"]))

    def residuals(
        self, family: Any, latents: jax.Array, timestep: jax.Array, cond: Conditioning, signal: jax.Array,
        *, remat: Remat = "none",
    ) -> jax.Array:  # fmt: skip
        """What is added to the output of the backbone's first n blocks, [n, B, S, D]."""
        links = self.links.bind()
        tokens = links.embed(signal)

        def add(h, key, sigma):
            return h + tokens.astype(h.dtype)

        entrance = Edit("block_in", (0,), add)
        _, read = family.denoise(self.trunk, latents, timestep, cond, taps=(STATES,), edits=(entrance,), remat=remat)
        return links.residuals(read[STATES.name])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["transformer", "vae", "transformer_2", "image_encoder", "connectors", "branch", "scale"],
    meta_fields=["family", "schedule", "text_encoder", "image_processor"],
)
@dataclasses.dataclass(frozen=True)
class ControlledPipeline(Pipeline):
    """A checkpoint with a branch; samples, inverts and is trained like any other. Make it with `controlled`.

    What is not told a control signal (`told`) is the checkpoint alone, by the same program as without a branch. A first frame
    that was told is held: the first latent frame flows straight to it.

    Parameters
    ----------
    branch : see `ControlBranch`; None: the first frame is all that can be told.
    scale : what the branch's residuals are multiplied by.
    """

    branch: ControlBranch | None = None
    scale: Any = 1.0

    def validate(self, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that backbone or branch cannot take."""
        rest, control, first = _apart(cond)
        super().validate(latents_shape, rest)
        batch, *grid = latents_shape[:4]
        if first is not None:
            _check_shape("the first frame's latents", first, batch, (1, *latents_shape[2:]))
            if takes_image(self):
                raise ConfigError(
                    f"{self.family.name} continues an image by itself: Pipeline.with_image tells it the first frame"
                )
        if control is None:
            return
        if self.branch is None:
            raise ConfigError("there is a control signal, and this pipeline has no branch to tell it to")
        config = self.branch.links.config
        _check_shape("the control signal", control, batch, (*grid, config.channels))
        if config.image_channels and first is None:
            raise ConfigError("this branch was trained with the first frame: told(cond, signal, first=latents)")

    def output(
        self, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Pipeline.output`; taps and edits are those of the backbone."""
        rest, control, first = _apart(cond)
        if control is None or self.branch is None:
            return super().output(latents, timestep, rest, **reading)
        batch, layers, blocks = latents.shape[0], self.transformer.config.num_layers, self.branch.links.config.blocks
        signal = per_clip(control, batch)
        if self.branch.links.config.image_channels:
            assert first is not None  # `validate` says so better
            signal = jnp.concatenate([signal, jnp.broadcast_to(first, (*signal.shape[:4], first.shape[-1]))], -1)
        each = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), (batch,))
        residuals = self.branch.residuals(self.family, latents, each, rest, signal, remat=reading.get("remat", "none"))
        residuals = jnp.asarray(self.scale, residuals.dtype) * residuals
        padded = jnp.pad(residuals, [(0, layers - blocks), *[(0, 0)] * 3])
        links = Edit("block_out", tuple(range(blocks)), _add, per_block=padded)
        return super().output(latents, timestep, rest, **reading | {"edits": (*reading.get("edits", ()), links)})

    def evaluate(self, latents, sigma, cond, **reading) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `Pipeline.evaluate`."""
        velocity, captured = super().evaluate(latents, sigma, cond, **reading)
        first = _apart(as_conditioning(cond))[2]
        return velocity if first is None else held(velocity, latents, sigma, first), captured


def _add(h: jax.Array, key: jax.Array, sigma: Any, own: jax.Array) -> jax.Array:
    return h + own.astype(h.dtype)


def told(cond: Conditioning | jax.Array, signal: Any = None, first: Any = None) -> Conditioning:
    """`cond` for a `ControlledPipeline`.

    Parameters
    ----------
    signal : [B or 1, T', H', W', K] as `fold` makes it of masks; None: the backbone alone.
    first : [B or 1, 1, H', W', C], latents of the first frame, which the video is to begin with; for backbones that do not
        continue an image by themselves.
    """
    cond = as_conditioning(cond)
    new = {key: jnp.asarray(value) for key, value in ((CONTROL, signal), (FIRST, first)) if value is not None}
    return dataclasses.replace(cond, extra={**(cond.extra or {}), **new} or None)


def _apart(cond: Conditioning) -> tuple[Conditioning, jax.Array | None, jax.Array | None]:
    """What the backbone is told, the control signal, and the first frame's latents."""
    if not cond.extra:
        return cond, None, None
    extra = dict(cond.extra)
    control, first = extra.pop(CONTROL, None), extra.pop(FIRST, None)
    return dataclasses.replace(cond, extra=extra or None), control, first


def fold(masks: Any, latents_shape: tuple[int, ...]) -> np.ndarray:
    """Masks as a control signal: every latent position gets the pixels that it stands for, -1 outside and 1 inside.

    The first latent frame stands for one frame, which is repeated, each other one for as many as the VAE compresses into one.

    Parameters
    ----------
    masks : [B, T, H, W], bool or 0 and 1.
    latents_shape : (T', H', W', ...) of the clips' latents.

    Returns
    -------
    float32 [B, T', H', W', frames rows columns]

    Raises
    ------
    ConfigError : masks of another number of dimensions, with other values, or of a length or size that these latents are not of.
    """
    masks = np.asarray(masks)
    if masks.ndim != 4:
        raise ConfigError(f"masks must be [B, T, H, W], got {list(masks.shape)}")
    if masks.dtype != bool and not np.isin(masks, (0, 1)).all():
        raise ConfigError("masks must be true and false, or 0 and 1")
    batch, frames, height, width = masks.shape
    t, h, w = latents_shape[:3]
    every = (frames - 1) // max(t - 1, 1) if t > 1 else 1
    if frames != 1 + every * (t - 1) or height % h or width % w or height // h != width // w:
        raise ConfigError(
            f"masks of {frames} frames of {height} x {width} do not go with latents of {t} frames of {h} x {w}; give the masks "
            "in the clip's own length and size"
        )
    values = np.concatenate([np.repeat(masks[:, :1], every, 1), masks[:, 1:]], 1)
    side = height // h
    values = values.reshape(batch, t, every, h, side, w, side).transpose(0, 1, 3, 5, 2, 4, 6)
    return values.reshape(batch, t, h, w, -1).astype(np.float32) * 2 - 1


def takes_image(pipeline: Pipeline) -> bool:
    """Whether a checkpoint continues an image by itself."""
    family: Any = pipeline.family
    return family.needs_image(pipeline.transformer) or getattr(family, "expand_timesteps", False)


def patch_of(config: Any) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a token of a transformer's configuration."""
    patch = getattr(config, "patch", config.patch_size)
    return tuple(patch) if isinstance(patch, tuple) else (getattr(config, "patch_size_t", None) or 1, patch, patch)


def check_backbone(pipeline: Pipeline, blocks: int) -> None:
    """Raise a `ConfigError` for a checkpoint that takes no branch of this many blocks; its leaves may be shapes."""
    network = pipeline.transformer
    if pipeline.transformer_2 is not None:
        raise ConfigError("this checkpoint has two networks, each for its own noise levels; a branch is beside one")
    if not {"block_in", "block_out"} <= set(network.module.sites) or "blocks" not in network.params:
        raise ConfigError(f"{network.module.__name__} is no stack of blocks that a branch could be a copy of")
    if not 1 <= blocks <= network.config.num_layers:
        raise ConfigError(f"a branch of {blocks} blocks; this backbone has {network.config.num_layers}")


def new_branch(
    pipeline: Pipeline, blocks: int, latents_shape: tuple[int, ...], video_shape: tuple[int, ...], *, seed: int = 0
) -> ControlBranch:
    """A branch that changes nothing yet: a copy of the backbone's first blocks, in its dtypes.

    Parameters
    ----------
    latents_shape, video_shape : (T', H', W', C) and (T, H, W, 3) of the clips: how many pixels a latent stands for.

    Raises
    ------
    ConfigError : as `check_backbone` and `fold`.
    """
    check_backbone(pipeline, blocks)
    network = pipeline.transformer
    channels = fold(np.zeros((1, *video_shape[:3]), bool), latents_shape).shape[-1]
    config = ControlLinksConfig(
        network.config.width,
        blocks,
        patch_of(network.config),
        channels,
        0 if takes_image(pipeline) else latents_shape[-1],
    )
    dtype = network.params["patch_embedding"]["kernel"].dtype
    first = jax.tree.map(lambda leaf: leaf[:blocks], network.params["blocks"])
    trunk = Network(
        network.module, dataclasses.replace(network.config, num_layers=blocks), {**network.params, "blocks": first}
    )
    return ControlBranch(trunk, Network.init(ControlLinks, config, seed, dtype))


def controlled(pipeline: Pipeline, branch: ControlBranch | None, scale: float = 1.0) -> ControlledPipeline:
    """A pipeline with a branch, or with none, which can still be told a first frame.

    Raises
    ------
    ConfigError : the branch is of another backbone.
    """
    if branch is not None:
        blocks, network = branch.links.config.blocks, pipeline.transformer
        check_backbone(pipeline, blocks)
        expected = dataclasses.replace(network.config, num_layers=blocks)
        if branch.trunk.module is not network.module or branch.trunk.config != expected:
            raise ConfigError(
                f"this branch is of another backbone: {branch.trunk.config}, where {expected} would be a copy of "
                f"{network.module.__name__}"
            )
    parts = {field.name: getattr(pipeline, field.name) for field in dataclasses.fields(Pipeline)}
    return ControlledPipeline(**parts, branch=branch, scale=scale)


def save_branch(branch: ControlBranch, folder: str | Path) -> Path:
    """Write a branch as a folder: trunk/, in the names of the backbone's checkpoints, and links/."""
    from ports.control import PORTS  # against the grain, as in `jaxdiff.load`
    from ports.writer import save_network

    path = Path(folder)
    save_network(branch.trunk, path / "trunk")
    save_network(branch.links, path / "links", ports=PORTS)
    return path


def load_branch(folder: str | Path, *, dtype: Any = None) -> ControlBranch:
    """Read what `save_branch` wrote; `dtype` as in `jaxdiff.load`.

    Raises
    ------
    CheckpointError : no such folder, or its tensors do not fit.
    ConfigError : a configuration key that this version does not know.
    """
    from ports.control import PORTS
    from ports.folder import load_network

    path = Path(folder)
    return ControlBranch(
        load_network(path / "trunk", dtype=dtype), load_network(path / "links", dtype=dtype, ports=PORTS)
    )


def _check_shape(what: str, value: Any, batch: int, shape: tuple[int, ...]) -> None:
    if jnp.shape(value) not in ((batch, *shape), (1, *shape)):
        raise ConfigError(f"{what} must be {[batch, *shape]} (or of batch 1), got {list(jnp.shape(value))}")
