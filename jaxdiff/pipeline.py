"""A loaded checkpoint: the networks, the schedule, and the calls that every family answers alike."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff import taps as taps_lib
from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextEncoder


def load(folder: str | Path, *, dtype=None, mesh=None) -> "Pipeline":
    """Load a checkpoint folder in the diffusers layout.

    Parameters
    ----------
    folder : holds model_index.json, transformer/, scheduler/ and usually vae/; weights as safetensors, single or
        sharded.
    dtype : dtype of the matmul weights; None: bfloat16 on accelerators, float32 on a CPU. Norms, time embedding and
        modulation tables stay float32.
    mesh : `jax.sharding.Mesh` to place the weights on (replicated over its axes); None: the default device.

    Raises
    ------
    CheckpointError : not a checkpoint, a pickle, a truncated file, or tensors missing, extra or misshaped (all
        problems are listed at once).
    ConfigError : a configuration key that this version does not know.
    """
    from ports.folder import load_pipeline  # the one import against the grain: weights come in from outside

    return load_pipeline(folder, dtype=dtype, mesh=mesh)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["transformer", "vae"],
    meta_fields=["family", "schedule", "text_encoder"],
)
@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A video diffusion checkpoint as a pytree: weights are leaves, everything else is static and hashable.

    Pass it to your own `jax.jit`, `jax.vmap` or `jax.grad` as an argument like any other array tree.
    """

    transformer: Network
    family: Any
    schedule: Any
    vae: Network | None = None
    text_encoder: TextEncoder | None = None  # its weights are not here: `condition` reads them when it needs them

    # ------------------------------------------------------------------------------------------ video <-> latents

    def encode(self, video: jax.Array) -> jax.Array:
        """Video to latents: posterior mode, normalised per channel.

        Parameters
        ----------
        video : [B, T, H, W, 3], float in [-1, 1] or uint8; T = 1 + k * temporal stride.

        Returns
        -------
        [B, T', H', W', C] float32

        Raises
        ------
        ConfigError : T, H or W do not fit the VAE's strides.
        MissingDataError : the folder had no vae/.
        """
        return _encode(self._vae("encode"), video)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, T', H', W', C] to video [B, T, H, W, 3] float32 in [-1, 1]."""
        return _decode(self._vae("decode"), latents)

    def _vae(self, verb: str) -> Network:
        if self.vae is None:
            raise MissingDataError(f"Pipeline.{verb} needs a VAE, but the checkpoint folder has no vae/")
        return self.vae

    # ------------------------------------------------------------------------------------------ conditioning

    def condition(
        self,
        prompt: str | Sequence[str] | None = None,
        image=None,
        fps: float | None = None,
        *,
        text=None,
        text_mask=None,
        max_length: int | None = None,
    ) -> Conditioning:
        """Build a `Conditioning` from prompts (needs the folder's text encoder) or from ready embeddings.

        Prompts are cleaned, padded and masked as the published pipeline of this family does it. Embeddings are kept in
        $JAXDIFF_CACHE (default ~/.cache/jaxdiff; nothing is kept if it is set to nothing), and the encoder's weights,
        up to tens of gigabytes, are read only while a prompt needs them: give many prompts in one call. They go
        where `load` put the transformer, or to the device of `jax.default_device`.

        For guidance, condition on the negative prompt likewise: ``sample(..., negative=pipeline.condition(""))``.

        Parameters
        ----------
        prompt : one text, or B of them
        image : [B, T', H', W', C] encoded first frame(s), for image-to-video families
        fps : frames per second
        text : [B, N, text_dim], embeddings instead of a prompt
        text_mask : [B, N] bool, True at the real tokens of `text`, for families that mask
        max_length : N, instead of the family's; the empty rest is padded.

        Returns
        -------
        Conditioning with text float32 [B, N, text_dim]

        Raises
        ------
        MissingDataError : a prompt was given and the folder has no text encoder.
        CheckpointError : text_encoder/ or tokenizer/ cannot be read.
        ConfigError : neither or both of `prompt` and `text`.
        """
        if (prompt is None) == (text is None):
            raise ConfigError("condition takes a prompt or text embeddings, one of the two; the empty prompt is ''")
        if prompt is not None:
            if self.text_encoder is None:
                raise MissingDataError(
                    f"cannot embed the prompt {prompt!r}: the checkpoint folder has no text encoder (text_encoder/ and "
                    "tokenizer/). Pass text embeddings computed elsewhere: condition(text=array [B, N, "
                    f"{self.transformer.config.text_dim}]), or --text_embeddings=FILE.npy|zeros on the command line; "
                    "zeros is not the same as the empty prompt"
                )
            from ports.folder import load_text_encoder  # as in `load`

            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            convention = self.family.text
            text, mask = self.text_encoder.embed(prompts, convention, load_text_encoder, max_length)
            text_mask = mask if convention.pass_mask else None
        return Conditioning(
            text=jnp.asarray(text),
            text_mask=None if text_mask is None else jnp.asarray(text_mask, bool),
            image_latents=image,
            fps=fps,
        )

    # ------------------------------------------------------------------------------------------ the network

    def denoise(self, latents: jax.Array, timestep: jax.Array, cond: Conditioning | jax.Array) -> jax.Array:
        """Raw network output, in the checkpoint's own parametrisation.

        Parameters
        ----------
        latents : [B, T', H', W', C]
        timestep : scalar or [B], in the checkpoint's own units (0..1000)
        cond : `Conditioning`, or text embeddings [B, N, text_dim]

        Returns
        -------
        [B, T', H', W', C] in the compute dtype
        """
        return _denoise(self, latents, timestep, as_conditioning(cond))

    def velocity(
        self,
        latents: jax.Array,
        sigma: jax.Array,
        cond: Conditioning | jax.Array,
        *,
        label: jax.Array | None = None,
    ) -> jax.Array:
        """The field that jaxdiff integrates: dx / dsigma at ``x = (1 - sigma) x0 + sigma noise``.

        Parameters
        ----------
        latents : [B, T', H', W', C], the state x
        sigma : scalar or [B] in [0, 1]; places the state. 0 is clean, 1 is noise.
        cond : `Conditioning`, or text embeddings [B, N, text_dim]
        label : the sigma whose timestep the network is told; default `sigma`.

        Returns
        -------
        [B, T', H', W', C] float32
        """
        return _velocity(self, latents, sigma, as_conditioning(cond), label)

    def evaluate(
        self,
        latents: jax.Array,
        sigma: jax.Array,
        cond: Conditioning | jax.Array,
        *,
        label: jax.Array | None = None,
        taps: tuple[taps_lib.Tap, ...] = (),
        edits: tuple[taps_lib.Edit, ...] = (),
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`velocity`, and what the taps read on the way: name -> [rows, B, ...]. Not jitted: for use inside a jit."""
        cond = as_conditioning(cond)
        taps, edits = tuple(taps), tuple(edits)
        self.family.validate(self.transformer, latents.shape, cond)
        taps_lib.check(taps, edits, tap_sites(self), self.transformer.config.num_layers)
        label = sigma if label is None else label
        timestep = jnp.broadcast_to(jnp.asarray(self.schedule.timestep(label), jnp.float32), (latents.shape[0],))
        state = self.schedule.to_network(latents, sigma)
        output, captured = self.family.denoise(
            self.transformer, state, timestep, cond, taps=taps, edits=edits, sigma=sigma, key=key
        )
        return self.schedule.velocity(output, latents, sigma), captured

    def tap_shapes(
        self, taps: tuple[taps_lib.Tap, ...], latents_shape: tuple[int, ...], cond: Conditioning | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every captured array of one evaluation, [rows, B, ...], without running anything.

        `cond` may hold shapes instead of arrays; without it a text of one token stands for it, which is not enough for
        families that need more than a text.
        """
        if cond is None:
            text: Any = jax.ShapeDtypeStruct((1, 1, self.transformer.config.text_dim), jnp.float32)
            cond = Conditioning(text=text)
        latents = jax.ShapeDtypeStruct(tuple(latents_shape), jnp.float32)

        def captured(pipeline, latents, cond):
            return pipeline.evaluate(latents, 0.5, cond, taps=taps)[1]

        return jax.eval_shape(captured, self, latents, cond)


def tap_sites(pipeline: Pipeline) -> tuple[str, ...]:
    """The sites that this pipeline's backbone offers to `Tap` and `Edit`."""
    return pipeline.transformer.module.sites


# Jitted here, once, with the weights as arguments; inside a caller's own jit they are simply inlined.


@jax.jit
def _encode(vae: Network, video: jax.Array) -> jax.Array:
    if video.dtype == jnp.uint8:
        video = video.astype(jnp.float32) / 127.5 - 1.0
    module = vae.bind()
    mean, _ = jnp.split(module.encode(video).astype(jnp.float32), 2, axis=-1)
    return module.normalise(mean)


@jax.jit
def _decode(vae: Network, latents: jax.Array) -> jax.Array:
    module = vae.bind()
    return module.decode(module.denormalise(latents)).astype(jnp.float32)


@jax.jit
def _denoise(pipeline: Pipeline, latents, timestep, cond: Conditioning) -> jax.Array:
    pipeline.family.validate(pipeline.transformer, latents.shape, cond)
    timestep = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), (latents.shape[0],))
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, cond)[0]


@jax.jit
def _velocity(pipeline: Pipeline, latents, sigma, cond: Conditioning, label) -> jax.Array:
    return pipeline.evaluate(latents, sigma, cond, label=label)[0]
