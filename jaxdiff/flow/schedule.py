"""Sigma grids: where along the flow a sampler places its states, and which timestep it tells the network.

Everything is in flow coordinates, ``x = (1 - sigma) x0 + sigma noise`` with sigma in [0, 1]. A *label* is the
sigma whose timestep the network is told; it is usually the state's own sigma.
"""

import abc
import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.multistep import UniPC
from jaxdiff.flow.solvers import Euler, Solver


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
    # The key of a field that is not named like it.
    KEY_OF: ClassVar[dict[str, str]] = {}

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
        cls = KARRAS[name] if name in KARRAS and config.get("use_karras_sigmas") else SCHEDULERS[name]
        for key, value in config.items():
            if not key.startswith("_") and key not in cls.KEYS:
                raise ConfigError(f"{name}: unknown key {key!r}={value!r}; {_hint(key, cls.KEYS)}")
        for key, allowed in cls.REQUIRED.items():
            value = config.get(key, cls.DEFAULTS.get(key))
            if value not in allowed:
                raise ConfigError(f"{name}: {key}={value!r} is not supported; only {' or '.join(map(repr, allowed))}")
        own = {field.name for field in dataclasses.fields(cls)} - {"shift", "num_train_timesteps"}
        keys = {field: cls.KEY_OF.get(field, field) for field in own}
        values = {field: _hashable(config[key]) for field, key in keys.items() if config.get(key) is not None}
        try:
            return cls(
                float(config.get(cls.SHIFT_KEY, cls.DEFAULTS.get(cls.SHIFT_KEY, 1.0))),
                int(config.get("num_train_timesteps", 1000)),
                **values,
            )
        except TypeError as error:
            raise ConfigError(f"{name}: {cls.SHIFT_KEY} and num_train_timesteps must be numbers: {error}") from error

    def grid(self, steps: int, *, tokens: int | None = None) -> np.ndarray:
        """Sigmas in the sampler's order, float64 [steps + 1]: from about 1 down to exactly 0.

        Rounded to float32 they are, bit for bit, the `sigmas` of the diffusers scheduler.

        Parameters
        ----------
        steps : intervals of the grid.
        tokens : positions T' H' W' of the latents, where the shift depends on the size of the video.

        Raises
        ------
        ConfigError : `steps` is not a positive integer, or so large that neighbours coincide in float32; `tokens` is
            needed and missing.
        """
        if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
            raise ConfigError(f"steps must be a positive integer, got {steps!r}")
        sigmas = np.append(self._sampler_sigmas(int(steps), tokens), 0.0)
        if not (np.diff(sigmas.astype(np.float32)) < 0).all():
            raise ConfigError(f"{type(self).__name__} with {self}: {steps} steps are too many to tell apart")
        return sigmas

    @property
    def solver(self) -> Solver:
        """The scheduler's own steps, with which `jaxdiff.sample` makes what the published pipeline makes."""
        return Euler()

    def timestep(self, label):
        """What the network is told at `label`, in its own units (0..1000). NumPy in, NumPy out; JAX in, JAX
        out.
        """
        return label * self.num_train_timesteps

    @property
    def sigma_min_trained(self) -> float:
        """The smallest sigma that the network was trained at; below it its timestep is that of this one."""
        return 0.0

    @property
    def sigma_max(self) -> float:
        """The largest sigma of the grids."""
        return 1.0

    def to_network(self, x: jax.Array, sigma: Any) -> jax.Array:
        """The state in the coordinates that the network takes: x itself unless a subclass says otherwise.

        Parameters
        ----------
        x : [B, T', H', W', C], ``(1 - sigma) x0 + sigma noise``
        sigma : scalar or [B]
        """
        return x

    def velocity(self, output: jax.Array, x: jax.Array, sigma: Any) -> jax.Array:
        """``dx / dsigma`` at the state x, float32, from what the network made of it; arguments as in `to_network`."""
        return output.astype(jnp.float32)

    def target(self, clean: jax.Array, noise: jax.Array, sigma: Any) -> jax.Array:
        """What the network would say if it were right, float32: `velocity` of it is ``noise - clean``.

        A training loss is the mean square distance of the network's output to it, in the network's own parametrisation.

        Parameters
        ----------
        clean, noise : [B, T', H', W', C]; the state is ``(1 - sigma) clean + sigma noise``
        sigma : scalar or [B]
        """
        return noise.astype(jnp.float32) - clean.astype(jnp.float32)

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
    def _sampler_sigmas(self, steps: int, tokens: int | None) -> np.ndarray:
        """The grid without its final 0, float64 [steps]."""

    def shift_ratio(self, tokens: int) -> float:
        """k of the time shift, for latents of T' H' W' = `tokens` positions."""
        return self.shift

    def _shifted(self, s):
        return self.shift * s / (1 + (self.shift - 1) * s)


class TruncatedFlow(Schedule):
    """Timesteps that are ``1000 sigma`` cut to integers."""

    SHIFT_KEY: ClassVar[str] = "flow_shift"

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
class UniPCFlow(TruncatedFlow):
    """`UniPCMultistepScheduler` with ``use_flow_sigmas``: the grid of the published Wan folders.

    ``s = linspace(1, 1 / 1000, steps + 1)[:-1]``, shifted; sigma 1 becomes 1 - 1e-6; then 0. Timesteps are
    ``1000 sigma`` cut to integers, so the first is 999.

    Parameters
    ----------
    solver_order, disable_corrector : of the scheduler's own steps, `UniPC`.
    """

    solver_order: int = 2
    disable_corrector: tuple[int, ...] = ()

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
        "solver_order": (2, 1),
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # the scheduler takes the last three for the first
        "predict_x0": (True,),
        "lower_order_final": (True,),
        "solver_p": (None,),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "prediction_type": "epsilon",
        "use_flow_sigmas": False,
        "final_sigmas_type": "zero",
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "lower_order_final": True,
    }

    @property
    def solver(self) -> Solver:
        """`UniPC`."""
        return UniPC(self.solver_order, self.disable_corrector)

    @property
    def sigma_max(self) -> float:
        """1 - 1e-6, in place of sigma 1 whatever the shift."""
        return 1 - 1e-6

    def _sampler_sigmas(self, steps, tokens):
        sigmas = self._shifted(np.linspace(1, 1 / self.num_train_timesteps, steps + 1)[:-1])
        if abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6
        return sigmas


@dataclasses.dataclass(frozen=True)
class FlowMatchEuler(Schedule):
    """`FlowMatchEulerDiscreteScheduler`: a static shift, or one that grows with the size of the video.

    The scheduler's own grid runs linearly between the ends of the *shifted* training sigmas and is then shifted again,
    as the reference does: its low end is shifted twice. A dynamic shift has unshifted ends. Timesteps are
    ``1000 sigma`` in float32, not rounded.

    Parameters
    ----------
    use_dynamic_shifting : sigma becomes ``e / (e + 1 / sigma - 1)`` with e = exp(mu), and mu linear in the tokens:
        `base_shift` at `base_image_seq_len`, `max_shift` at `max_image_seq_len`, and on beyond both.
    time_shift_type : "exponential", or "linear" for e = mu.
    shift_terminal : the sigma to which the last one before 0 is stretched.
    spacing : what the pipeline hands the scheduler to shift. "scheduler": a number of steps. "even":
        ``linspace(1, 1 / steps, steps)``. "linear_quadratic": see `_linear_quadratic`. A property of the pipeline's
        class, and not in the scheduler's file.
    """

    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"
    spacing: str = "scheduler"

    KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift",
            "base_image_seq_len", "max_image_seq_len", "invert_sigmas", "shift_terminal", "use_karras_sigmas",
            "use_exponential_sigmas", "use_beta_sigmas", "time_shift_type", "stochastic_sampling",
        }
    )  # fmt: skip
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "invert_sigmas": (False, None),
        "stochastic_sampling": (False, None),
        "time_shift_type": ("exponential", "linear"),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = {"time_shift_type": "exponential"}

    def __post_init__(self):
        super().__post_init__()
        if self.spacing not in ("scheduler", "even", "linear_quadratic"):
            raise ConfigError(f"unknown spacing {self.spacing!r}; choose scheduler, even or linear_quadratic")
        if self.use_dynamic_shifting and self.spacing == "linear_quadratic":
            raise ConfigError("use_dynamic_shifting=True is not supported for pipelines with linear-quadratic steps")

    def _sampler_sigmas(self, steps, tokens):
        # The reference forms what it is handed and all that follows from it in float32; of its own grid the two ends
        # in float32 and everything after in float64.
        if self.spacing == "even":
            sigmas = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
        elif self.spacing == "linear_quadratic":  # handed over as timesteps
            sigmas = _linear_quadratic(steps).astype(np.float32) * np.float32(1000) / self.num_train_timesteps
        else:
            ends = np.array([self.num_train_timesteps, 1], np.float32) / np.float32(self.num_train_timesteps)
            if not self.use_dynamic_shifting:
                ends = np.float32(self.shift) * ends / (1 + np.float32(self.shift - 1) * ends)
            high, low = (float(end) * self.num_train_timesteps for end in ends)
            sigmas = np.linspace(high, low, steps) / self.num_train_timesteps
        if self.use_dynamic_shifting:
            e = self.shift_ratio(tokens)
            sigmas = e / (e + (1 / sigmas - 1))
        else:
            sigmas = self._shifted(sigmas)
        if self.shift_terminal:
            if steps < 2:
                raise ConfigError(f"shift_terminal={self.shift_terminal} fixes the last of at least 2 steps, got 1")
            rest = 1 - sigmas
            sigmas = 1 - rest / (rest[-1] / (1 - self.shift_terminal))
        return sigmas.astype(np.float64)

    def shift_ratio(self, tokens):
        """k of the time shift; where it is dynamic, ``exp(mu)`` or mu of so many tokens."""
        if not self.use_dynamic_shifting:
            return self.shift
        mu = self._mu(tokens)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu

    def _mu(self, tokens: int | None) -> float:
        if tokens is None:
            raise ConfigError("this schedule shifts with the size of the video: grid(steps, tokens=T' * H' * W')")
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return tokens * slope + (self.base_shift - slope * self.base_image_seq_len)

    def rounded(self, sigmas):
        """The sigmas in float32: this scheduler does not round."""
        return np.asarray(sigmas, np.float32)


def _linear_quadratic(steps: int, threshold: float = 0.025) -> np.ndarray:
    """Sigmas of `LTXConditionPipeline`, float64 [steps]: 1 - x, where x rises linearly to `threshold` in the first half
    of the steps, and from there to 1 along the parabola that continues the line."""
    if steps < 2:
        return np.ones(1)
    linear = steps // 2
    curved = steps - linear
    excess = linear - threshold * steps
    i = np.arange(linear, steps)
    slope = threshold / linear - 2 * excess / curved**2
    parabola = excess / (linear * curved**2) * (i**2 + linear**2) + slope * i
    return 1.0 - np.concatenate([np.arange(linear) * threshold / linear, parabola])


SCHEDULERS: dict[str, type[Schedule]] = {
    "UniPCMultistepScheduler": UniPCFlow,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEuler,
}


# The same classes with ``use_karras_sigmas``, which is another grid.
KARRAS: dict[str, type[Schedule]] = {}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _hint(name: Any, known) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
