"""A loaded checkpoint: the networks, the schedule, and the calls that every family answers alike."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import taps as taps_lib
from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.models.family import posterior_mode
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextEncoder, encoder_of
from jaxdiff.models.vision.pictures import PictureConfig, as_bytes, as_floats, first_picture, image_fields, to_pixels


def load(
    folder: str | Path, *, dtype=None, mesh=None, lora: str | Path | None = None, lora_scale: float = 1.0
) -> "Pipeline":
    """Load a checkpoint.

    Parameters
    ----------
    folder : a folder in the diffusers layout (model_index.json, transformer/, scheduler/ and usually vae/; weights as
        safetensors, single or sharded), one that `python -m ports.convert` wrote, or a checkpoint in its original
        layout (Wan-AI's folders, the single files of Wan and LTX-Video).
    dtype : dtype of the matmul weights; None: bfloat16 on accelerators, float32 on a CPU. Norms, time embedding and
        modulation tables stay float32.
    mesh : `jax.sharding.Mesh` to place the weights on; None: the default device. Large matrices are split over its
        axes "fsdp" and "tensor", where it has them and they divide; all else is replicated. Each process reads only
        what its devices hold.
    lora : a LoRA to add to the transformer, as safetensors (a file, or the folder that holds it) with the names of
        diffusers, finetrainers, peft or the original repositories.
    lora_scale : what the LoRA is multiplied by.

    Raises
    ------
    CheckpointError : not a checkpoint, a pickle, a truncated file, a half-written conversion, or tensors missing,
        extra or misshaped, the LoRA's included (all problems are listed at once).
    ConfigError : a configuration key that this version does not know.
    """
    from ports.folder import load_pipeline  # the one import against the grain: weights come in from outside

    return load_pipeline(folder, dtype=dtype, mesh=mesh, lora=lora, lora_scale=lora_scale)


def outline(folder: str | Path, *, lora: str | Path | None = None) -> "Pipeline":
    """What `load` would make of a folder, with shapes in the place of weights: checked as far as `load` can fail, and no
    weight is read. For `jax.eval_shape`, and for settings that are to be looked at before anything slow starts.

    Parameters and errors are those of `load`. A component that its text encoder needs is looked for, not opened.
    """
    from ports.folder import outline_pipeline

    return outline_pipeline(folder, lora=lora)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["transformer", "vae", "transformer_2", "image_encoder", "connectors"],
    meta_fields=["family", "schedule", "text_encoder", "image_processor"],
)
@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A video diffusion checkpoint as a pytree: weights are leaves, everything else is static and hashable.

    Pass it to your own `jax.jit`, `jax.vmap` or `jax.grad` as an argument like any other array tree.

    Where there are two networks (`transformer_2`, Wan 2.2), the timestep that they are told decides which one answers:
    `transformer` from ``family.boundary_ratio`` of the timesteps up, `transformer_2` below. All clips of a batch are then
    told the same one.
    """

    transformer: Network
    family: Any
    schedule: Any
    vae: Network | None = None
    text_encoder: TextEncoder | None = None  # its weights are not here: `condition` reads them when it needs them
    transformer_2: Network | None = None
    image_encoder: Network | None = None
    image_processor: PictureConfig | None = None
    connectors: Network | None = None  # of LTX-2, between its language model and its transformer

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
        frames: int | None = None,
        last_image=None,
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
        image : the picture that the video begins with, see `with_image`
        fps : frames per second
        frames, last_image : see `with_image`
        text : [B, N, text_dim], embeddings instead of a prompt; where the folder has connectors (LTX-2), also what
            these take
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
        if image is None and (last_image is not None or frames is not None):
            raise ConfigError("condition: frames and last_image belong to an image, and there is none")
        if prompt is not None:
            encoder = encoder_of(prompt, self.family, self.text_encoder, self.transformer.config.text_dim)
            from ports.folder import load_text_encoder  # as in `load`

            prompts = [prompt] if isinstance(prompt, str) else list(prompt)
            convention = self.family.text
            text, mask = encoder.embed(prompts, convention, load_text_encoder, max_length)
            text_mask = mask if convention.pass_mask else None
        cond = Conditioning(
            text=jnp.asarray(text),
            text_mask=None if text_mask is None else jnp.asarray(text_mask, bool),
            fps=fps,
        )
        cond = cond if self.connectors is None else _connect(self, cond)
        return cond if image is None else self.with_image(cond, image, frames=frames, last_image=last_image)

    def with_image(
        self, cond: Conditioning | jax.Array, image, *, frames: int | None = None, last_image=None
    ) -> Conditioning:
        """`cond` for a video that begins with a picture, for the families that can continue one.

        The picture goes through the VAE and, where the network takes its tokens, through the folder's image encoder, as
        in the published pipeline of the family (given the posterior's mode, and a picture of the video's size).

        Parameters
        ----------
        cond : `Conditioning`, or text embeddings [B, N, text_dim]
        image : [H, W, 3] or [B, H, W, 3] in the size of the video, uint8 or float in [-1, 1]; or a video
            [B, T, H, W, 3], whose first frame it is.
        frames : T of the video to be; default: that of `image`, if it is a video.
        last_image : as `image`, the picture that the video ends with, for checkpoints that know one.

        Returns
        -------
        `cond` with `image_latents`, and with `image_embeds` where the network takes tokens; both of batch B.

        Raises
        ------
        ConfigError : the family takes no image, `frames` is missing, or the picture does not fit the VAE.
        MissingDataError : the folder has no VAE or no image encoder.
        """
        cond = as_conditioning(cond)
        first, length = first_picture(image, 0)
        frames = length if frames is None else frames
        if frames is None:
            raise ConfigError(
                "a picture does not say how long the video is to be: frames=T, or give a video as the image"
            )
        last = None if last_image is None else first_picture(last_image, -1)[0]
        if last is not None and last.shape != first.shape:
            raise ConfigError(f"image and last_image must have the same shape, got {first.shape} and {last.shape}")
        self._vae("with_image")
        pixels = None
        if self.family.takes_image_tokens(self.transformer):
            pixels = [self._pixels(picture) for picture in (first, last) if picture is not None]
        fields = _image_fields(self, first, last, pixels, frames=int(frames))
        return dataclasses.replace(cond, **fields)

    def _pixels(self, picture) -> Any:
        """What the image encoder takes: float32 [B, h, w, 3], on the devices of the picture."""
        if self.image_encoder is None or self.image_processor is None:
            raise MissingDataError(
                "this checkpoint attends to the tokens of an image, but its folder has no image_encoder/ and "
                "image_processor/. Set Conditioning.image_embeds and image_latents to arrays computed elsewhere"
            )
        pixels = to_pixels(as_bytes(np.asarray(picture)), self.image_processor)
        return jax.device_put(pixels, picture.sharding) if isinstance(picture, jax.Array) else pixels

    # ------------------------------------------------------------------------------------------ the network

    def denoise(self, latents: jax.Array, timestep: jax.Array, cond: Conditioning | jax.Array) -> jax.Array:
        """Raw network output, in the checkpoint's own parametrisation.

        Parameters
        ----------
        latents : [B, T', H', W', C]
        timestep : scalar or [B], in the checkpoint's own units (0..1000); a scalar where there are two networks
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
        self.validate(latents.shape, cond)
        written = edit_sites(self)
        taps_lib.check(taps, edits, tap_sites(self), self.transformer.config.num_layers, written)
        label = sigma if label is None else label
        state = self.schedule.to_network(latents, sigma)
        output, captured = self.output(
            state, self.schedule.timestep(label), cond, taps=taps, edits=edits, sigma=sigma, key=key
        )
        velocity = self.schedule.velocity(output, latents, sigma)
        if cond.image_latents is not None:
            velocity = self.family.hold(velocity, latents, sigma, cond)
        return velocity, captured

    @property
    def boundary(self) -> float | None:
        """The timestep from which up `transformer` answers, and below which `transformer_2` does; None: there is one.

        Raises
        ------
        ConfigError : the two networks are not of the same configuration, or nothing says when each is used.
        """
        if self.transformer_2 is None:
            return None
        if self.transformer_2.config != self.transformer.config:
            raise ConfigError("transformer and transformer_2 must have the same configuration")
        ratio = self.family.boundary_ratio
        if ratio is None:
            raise ConfigError("there is a transformer_2, but no boundary_ratio that says when it is used")
        return ratio * self.schedule.num_train_timesteps

    def validate(self, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that the network cannot take."""
        self.family.validate(self.transformer, latents_shape, cond)

    def output(
        self, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Raw output and captures of the network that serves this timestep (scalar or [B]). Neither checked nor jitted.

        `latents` are in the schedule's coordinates (`Schedule.to_network`); `reading` goes to the network: taps, edits, sigma,
        key, remat.
        """
        timestep = jnp.asarray(timestep, jnp.float32)
        each = jnp.broadcast_to(timestep, (latents.shape[0],))

        def run(network):
            return self.family.denoise(network, latents, each, cond, **reading)

        boundary = self.boundary
        if boundary is None:
            return run(self.transformer)
        if timestep.size != 1:
            raise ConfigError(
                "this checkpoint has two networks, and the timestep chooses one for the whole batch: give one number, got "
                f"{timestep.shape}; jax.vmap over clips gives each its own"
            )
        high = timestep.reshape(()) >= boundary
        return jax.lax.cond(
            high, lambda first, _: run(first), lambda _, second: run(second), self.transformer, self.transformer_2
        )

    def tap_shapes(
        self, taps: tuple[taps_lib.Tap, ...], latents_shape: tuple[int, ...], cond: Conditioning | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every captured array of one evaluation, [rows, B, ...], without running anything.

        `cond` may hold shapes instead of arrays; without it, the family's example stands for it.
        """
        if cond is None:
            cond = self.family.example(self.transformer, tuple(latents_shape))
        latents = jax.ShapeDtypeStruct(tuple(latents_shape), jnp.float32)

        def captured(pipeline, latents, cond):
            return pipeline.evaluate(latents, 0.5, cond, taps=taps)[1]

        return jax.eval_shape(captured, self, latents, cond)


def tap_sites(pipeline: Pipeline) -> tuple[str, ...]:
    """The sites that this pipeline's backbone offers to `Tap`."""
    return pipeline.transformer.module.sites


def edit_sites(pipeline: Pipeline) -> tuple[str, ...]:
    """The sites that this pipeline's backbone offers to `Edit`: those of `tap_sites`, and of some families one more."""
    module = pipeline.transformer.module
    return getattr(module, "written", module.sites)


# Jitted here, once, with the weights as arguments; inside a caller's own jit they are simply inlined.


@jax.jit
def _encode(vae: Network, video: jax.Array) -> jax.Array:
    return posterior_mode(vae, as_floats(video))


@jax.jit
def _decode(vae: Network, latents: jax.Array) -> jax.Array:
    module = vae.bind()
    return module.decode(module.denormalise(latents)).astype(jnp.float32)


@jax.jit
def _denoise(pipeline: Pipeline, latents, timestep, cond: Conditioning) -> jax.Array:
    pipeline.validate(latents.shape, cond)
    return pipeline.output(latents, timestep, cond)[0]


@jax.jit
def _velocity(pipeline: Pipeline, latents, sigma, cond: Conditioning, label) -> jax.Array:
    return pipeline.evaluate(latents, sigma, cond, label=label)[0]


@jax.jit
def _connect(pipeline: Pipeline, cond: Conditioning) -> Conditioning:
    return pipeline.family.connect(pipeline.connectors, cond)


_image_fields = jax.jit(image_fields, static_argnames="frames")
