"""What a run leaves behind, and what is raised when a state blew up."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.errors import NonFiniteError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["latents", "sigmas", "captured", "capture_sigmas", "capture_labels", "failed_at", "metrics"],
    meta_fields=["evaluations", "labels"],
)
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What a run leaves behind; a pytree.

    Attributes
    ----------
    latents : [B, T', H', W', C] float32, the end state.
    sigmas : [steps + 1], the grid that was walked, `capture_sigmas` included.
    captured : tap name -> [captured, rows, B, ...]; empty when a sink took them.
    capture_sigmas : [captured], the sigma of each captured state.
    capture_labels : [captured], the sigma whose timestep the network was told there.
    failed_at : int32 [B], the step whose result was first not finite, -1 for none.
    evaluations : forward passes of the network, those made only to read it included.
    labels : "sigma" or "scheduler", whose timesteps the network was told.
    metrics : name -> [steps, B], what a guide reported of every step; empty without one.
    """

    latents: jax.Array
    sigmas: Any
    captured: dict[str, jax.Array]
    capture_sigmas: Any
    capture_labels: Any
    failed_at: jax.Array
    evaluations: int
    labels: str
    metrics: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def start_sigma(self) -> float:
        """Where the run started."""
        return _number(self.sigmas[0])

    @property
    def end_sigma(self) -> float:
        """Where the run stopped. Of an inversion that is the schedule's `sigma_max`, and may be below 1."""
        return _number(self.sigmas[-1])


class DivergedError(NonFiniteError):
    """A state became NaN or infinite.

    Attributes
    ----------
    clips : indices into the batch, ascending
    step, sigma : where the first of them failed
    trajectory : what was computed, None if the input itself was not finite. The other clips' parts are good.
    """

    def __init__(self, message: str, clips: Sequence[int], step: int, sigma: float, trajectory: Trajectory | None):
        super().__init__(message)
        self.clips, self.step, self.sigma, self.trajectory = list(clips), step, sigma, trajectory


def check_start(latents: jax.Array, sigmas: Any) -> None:
    """Raise a `DivergedError` for latents that are not finite; nothing under a caller's trace."""
    finite = _finite(latents)
    if isinstance(finite, jax.core.Tracer):
        return
    clips = np.flatnonzero(~_told(finite))
    if len(clips):
        sigma = _number(sigmas[0])
        raise DivergedError(
            f"the latents of clip(s) {_list(clips)} of the batch are not finite before step 0, at sigma "
            f"{sigma:g}; look at the video and at its encoding",
            clips.tolist(), 0, sigma, None,
        )  # fmt: skip


def check_end(trajectory: Trajectory) -> None:
    """Raise a `DivergedError` for states that are not. The only wait for the device in a run."""
    if isinstance(trajectory.failed_at, jax.core.Tracer):
        return
    failed_at = _told(trajectory.failed_at)
    clips = np.flatnonzero(failed_at >= 0)
    if len(clips):
        step = int(failed_at[clips].min())
        first = clips[failed_at[clips] == step]
        sigma, end = (_number(trajectory.sigmas[i]) for i in (step, step + 1))
        raise DivergedError(
            f"the state of clip(s) {_list(first)} of the batch became non-finite in step {step} of "
            f"{len(trajectory.sigmas) - 1}, from sigma {sigma:g} to {end:g}"
            + (f"; clip(s) {_list(clips)} in all" if len(clips) > len(first) else "")
            + "; a bfloat16 model or a large step may overflow: try dtype=float32 or more steps",
            clips.tolist(), step, sigma, trajectory,
        )  # fmt: skip


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all(range(1, x.ndim))


def _told(per_clip: Any) -> np.ndarray:
    """Numbers a clip, [B], on the host of every process, those of the clips of other processes too."""
    if isinstance(per_clip, jax.Array) and not per_clip.is_fully_addressable:
        whole = NamedSharding(per_clip.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]  # spans processes: on a mesh
        per_clip = jax.jit(lambda x: x, out_shardings=whole)(per_clip)
    return np.asarray(per_clip)


def _number(sigma: Any) -> float:
    return float("nan") if isinstance(sigma, jax.core.Tracer) else float(sigma)


def _list(clips: np.ndarray) -> str:
    return ", ".join(map(str, clips[:8])) + (", ..." if len(clips) > 8 else "")
