"""Sigma grids: where along the flow a sampler places its states, and which timestep it tells the network.

Everything is in flow coordinates, ``x = (1 - sigma) x0 + sigma noise`` with sigma in [0, 1]. A *label* is the
sigma whose timestep the network is told; it is usually the state's own sigma.
"""

import abc
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """A checkpoint's sigma grid and timesteps; frozen and hashable, so it may be static under `jax.jit`.

    Make one with `Schedule.from_config`.

    Parameters
    ----------
    shift : ratio k of the time shift ``k s / (1 + (k - 1) s)`` (Esser et al., arXiv 2403.03206, eq. 23).
    num_train_timesteps : network timesteps at sigma 1.
    """

    shift: float = 1.0
    num_train_timesteps: int = 1000

    # Keys of scheduler_config.json that are understood, and the values without which this grid is wrong.
    KEYS: ClassVar[frozenset[str]] = frozenset()
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {}
    SHIFT_KEY: ClassVar[str] = "shift"
    # What the reference assumes when the key is absent.
    DEFAULTS: ClassVar[dict[str, Any]] = {}

    def __post_init__(self):
        if not self.shift > 0 or self.num_train_timesteps < 1:
            raise ConfigError(
                f"a schedule needs a positive shift and timesteps, got shift={self.shift}, "
                f"num_train_timesteps={self.num_train_timesteps}"
            )

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Schedule":
        """The schedule that a diffusers scheduler_config.json describes.

        Parameters
        ----------
        config : the parsed file. ``_class_name`` chooses the class (`UniPCMultistepScheduler` with flow
            sigmas, as Wan ships it, or `FlowMatchEulerDiscreteScheduler`); other keys that begin with "_" are
            metadata.

        Raises
        ------
        ConfigError : a class, key or value that this version does not reproduce.
        """
        name = config.get("_class_name")
        if name not in SCHEDULERS:
            raise ConfigError(f"unknown scheduler class {name!r}; {_hint(name, SCHEDULERS)}")
        cls = SCHEDULERS[name]
        for key, value in config.items():
            if not key.startswith("_") and key not in cls.KEYS:
                raise ConfigError(f"{name}: unknown key {key!r}={value!r}; {_hint(key, cls.KEYS)}")
        for key, allowed in cls.REQUIRED.items():
            value = config.get(key, cls.DEFAULTS.get(key))
            if value not in allowed:
                raise ConfigError(f"{name}: {key}={value!r} is not supported; only {' or '.join(map(repr, allowed))}")
        try:
            return cls(float(config.get(cls.SHIFT_KEY, 1.0)), int(config.get("num_train_timesteps", 1000)))
        except TypeError as error:
            raise ConfigError(f"{name}: {cls.SHIFT_KEY} and num_train_timesteps must be numbers: {error}") from error

    def grid(self, steps: int) -> np.ndarray:
        """Sigmas in the sampler's order, float64 [steps + 1]: from about 1 down to exactly 0.

        Rounded to float32 they are, bit for bit, the `sigmas` of the diffusers scheduler.

        Raises
        ------
        ConfigError : `steps` is not a positive integer, or so large that neighbours coincide in float32.
        """
        if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"steps must be a positive integer, got {steps!r}")
        sigmas = np.append(self._sampler_sigmas(int(steps)), 0.0)
        if not (np.diff(sigmas.astype(np.float32)) < 0).all():
            raise ConfigError(f"{type(self).__name__} with {self}: {steps} steps are too many to tell apart")
        return sigmas

    def timestep(self, label):
        """What the network is told at `label`, in its own units (0..1000). NumPy in, NumPy out; JAX in, JAX
        out.
        """
        return label * self.num_train_timesteps

    @abc.abstractmethod
    def rounded(self, sigmas) -> np.ndarray:
        """Labels whose `timestep` is the one that the scheduler itself would send at `sigmas`.

        Parameters
        ----------
        sigmas : [...] in [0, 1]; float64, as `grid` gives them (float32 values may fall on the other side of
            an integer timestep).

        Returns
        -------
        float32 [...]
        """

    @abc.abstractmethod
    def _sampler_sigmas(self, steps: int) -> np.ndarray:
        """The grid without its final 0, float64 [steps]."""

    def _shifted(self, s):
        return self.shift * s / (1 + (self.shift - 1) * s)


@dataclasses.dataclass(frozen=True)
class UniPCFlow(Schedule):
    """`UniPCMultistepScheduler` with ``use_flow_sigmas``: the grid of the published Wan folders.

    ``s = linspace(1, 1 / 1000, steps + 1)[:-1]``, shifted; sigma 1 becomes 1 - 1e-6; then 0. Timesteps are
    ``1000 sigma`` cut to integers, so the first is 999.
    """

    SHIFT_KEY: ClassVar[str] = "flow_shift"
    KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "predict_x0",
            "solver_type", "lower_order_final", "disable_corrector", "solver_p", "use_karras_sigmas",
            "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas", "flow_shift", "timestep_spacing",
            "steps_offset", "final_sigmas_type", "rescale_betas_zero_snr", "use_dynamic_shifting",
            "time_shift_type", "sigma_min", "sigma_max", "shift_terminal",
        }
    )  # fmt: skip
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prediction_type": ("flow_prediction",),
        "use_flow_sigmas": (True,),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_dynamic_shifting": (False, None),
        "shift_terminal": (None,),
        "thresholding": (False, None),
        "final_sigmas_type": ("zero",),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "prediction_type": "epsilon",
        "use_flow_sigmas": False,
        "final_sigmas_type": "zero",
    }

    def _sampler_sigmas(self, steps):
        sigmas = self._shifted(np.linspace(1, 1 / self.num_train_timesteps, steps + 1)[:-1])
        if abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6
        return sigmas

    def rounded(self, sigmas):
        """Labels of integer timesteps: ``1000 sigma`` cut off, and 999 at sigma 1."""
        sigmas = np.minimum(np.asarray(sigmas, np.float64), 1 - 1e-6)
        timesteps = np.trunc(sigmas * self.num_train_timesteps)
        return (timesteps / self.num_train_timesteps).astype(np.float32)

    def timestep(self, label):
        """``1000 label``; within a rounding error of an integer it is that integer, as the reference sends
        it.
        """
        t = super().timestep(label)
        xp = jnp if isinstance(label, jax.Array) else np
        # For ten of the integers below 1000 no float32 label times 1000 gives the integer itself.
        missed = xp.round(t) - t
        missed = xp.where(abs(missed) <= self.num_train_timesteps * np.finfo(np.float32).eps, missed, 0)
        return t + (jax.lax.stop_gradient(missed) if xp is jnp else missed)


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler(Schedule):
    """`FlowMatchEulerDiscreteScheduler` with a static shift.

    The grid runs linearly between the ends of the *shifted* training sigmas and is then shifted again, as the
    reference does: its low end is shifted twice. Timesteps are ``1000 sigma`` in float32, not rounded.
    """

    KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift",
            "base_image_seq_len", "max_image_seq_len", "invert_sigmas", "shift_terminal", "use_karras_sigmas",
            "use_exponential_sigmas", "use_beta_sigmas", "time_shift_type", "stochastic_sampling",
        }
    )  # fmt: skip
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "use_dynamic_shifting": (False, None),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "invert_sigmas": (False, None),
        "stochastic_sampling": (False, None),
        "shift_terminal": (None,),
    }

    def _sampler_sigmas(self, steps):
        # The reference forms these two ends in float32 and everything after in float64.
        ends = np.array([self.num_train_timesteps, 1], np.float32) / np.float32(self.num_train_timesteps)
        ends = np.float32(self.shift) * ends / (1 + np.float32(self.shift - 1) * ends)
        high, low = (float(end) * self.num_train_timesteps for end in ends)
        return self._shifted(np.linspace(high, low, steps) / self.num_train_timesteps)

    def rounded(self, sigmas):
        """The sigmas in float32: this scheduler does not round."""
        return np.asarray(sigmas, np.float32)


SCHEDULERS: dict[str, type[Schedule]] = {
    "UniPCMultistepScheduler": UniPCFlow,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
}


def _hint(name: Any, known) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
