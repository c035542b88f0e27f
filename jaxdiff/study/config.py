"""What a study is told: the flags of `experiments.study` as one frozen value, checked before anything slow starts."""

import dataclasses
from pathlib import Path

from jaxdiff.data.datasets import SPLITS
from jaxdiff.errors import ConfigError
from jaxdiff.study.analysis import BOTH, Protocol
from jaxdiff.study.clips import WORLD
from jaxdiff.study.levels import LEVELS
from jaxdiff.study.reading import Reading
from jaxdiff.study.sources import PROMPT, VARIANTS, chosen_controls

NANO, REAL = "nano", "real"


def encoder_name(folder: Path) -> str:
    """What an encoder is called: its folder, or the run of `experiments.train_encoder` whose `encoder/` it is."""
    return (folder.parent.name if folder.name == "encoder" else "") or folder.name


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """See the flags of `experiments.study`."""

    model: str
    config: str = REAL
    dataset: str = WORLD
    data_dir: Path | None = None
    split: str | None = None
    subset: bool = False
    labels: Path | None = None
    leaking_prompt: bool = False
    structureless: Path | None = None
    frames: int = 81
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    steps: int = 100
    solver: str = "ab2"
    taps: tuple[str, ...] = ("block_out.mean",)
    capture_sigmas: tuple[float, ...] | None = LEVELS
    capture_at: tuple[int, ...] | None = None
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 4
    dtype: str | None = None
    stream: bool = False
    controls: tuple[str, ...] = ("untrained", "noised")
    prompt_ablation: str | None = None
    encoders: tuple[Path, ...] = ()
    fidelity_clips: int = 4
    error_steps: int = 10
    scenes: int = 60
    time_budget: float = 0.0
    seed: int = 0
    world_seed: int = 0
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    which: str = BOTH  # --protocol
    capacity: bool = True
    published_seeds: int = 5
    published_batch: int = 32
    published_test: float = 0.4
    published_by_category: bool = False
    skip_bad_clips: bool = False

    def __post_init__(self):
        if self.config not in (NANO, REAL):
            raise ConfigError(f"--config={self.config} is unknown; choose {NANO} or {REAL}")
        if self.dataset not in SPLITS:
            raise ConfigError(f"--dataset={self.dataset} is unknown; choose one of {', '.join(SPLITS)}")
        if self.dataset != WORLD and self.data_dir is None:
            raise ConfigError(f"--dataset={self.dataset} needs --data_dir=DIR, the folder that holds it")
        for name in ("split", "subset", "labels", "leaking_prompt"):
            if self.dataset == WORLD and getattr(self, name):
                raise ConfigError(f"--{name} is for a data set on disk; generated scenes have none")
        if self.leaking_prompt and (self.prompt or self.text_embeddings is not None):
            raise ConfigError(
                "--leaking_prompt gives every clip its own prompt; leave out --prompt and --text_embeddings"
            )
        if self.time_budget and (self.dataset != WORLD or self.data_dir is not None):
            raise ConfigError(
                "--time_budget chooses how many scenes are generated; it needs --dataset=world and its folder"
            )
        chosen_controls(self.controls)
        if len({encoder_name(folder) for folder in self.encoders}) < len(self.encoders):
            raise ConfigError(f"--encoders={','.join(map(str, self.encoders))}: two encoders have one name")
        if (self.capture_sigmas is None) == (self.capture_at is None):
            raise ConfigError(
                "a study reads at noise levels (--capture_sigmas) or at steps (--capture_at), one of them"
            )
        for name in ("capture_sigmas", "capture_at"):
            places = getattr(self, name)
            if places is None:
                continue
            if 0 not in places:
                raise ConfigError(f"--{name} must hold 0: the clean latent is where the evidence is cleanest")
            if list(places) != sorted(set(places)):
                # The trajectory meets them in this order, and so do the tables that are made of what it read.
                raise ConfigError(f"--{name}={places} must ascend, each value once")

    def reading(self) -> Reading:
        names = {f.name for f in dataclasses.fields(Reading)} - {"order", "order_seed"}
        return Reading(**{name: getattr(self, name) for name in names})

    @property
    def captures(self) -> int:
        """How many places of the trajectory are read."""
        return len(self.capture_at if self.capture_sigmas is None else self.capture_sigmas)  # type: ignore[arg-type]

    def variants(self) -> dict[str, Reading]:
        """The model's own further inversions, by name (see `sources.VARIANTS`): how their clips are read."""
        reading = dataclasses.replace(self.reading(), error_steps=0)
        controls = chosen_controls(self.controls)
        orders = {name: order for name, (order, *_) in VARIANTS.items() if name in controls}
        found = {
            name: dataclasses.replace(reading, order=order, order_seed=self.seed) for name, order in orders.items()
        }
        return found if self.prompt_ablation is None else {**found, PROMPT: reading}

    def protocol(self, middle: float = 0.5) -> Protocol:
        """How it is probed; `middle` is the noise level that half of the steps lead to."""
        same = {f.name for f in dataclasses.fields(Protocol)} & {f.name for f in dataclasses.fields(self)}
        return Protocol(middle=middle, **{name: getattr(self, name) for name in same})
