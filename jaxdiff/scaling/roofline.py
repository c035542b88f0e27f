"""What a compiled program needs of a chip, and what a study of so many clips would then cost at best."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from jaxdiff.scaling.hlo import Program as Text
from jaxdiff.scaling.operations import count
from jaxdiff.scaling.programs import Work, program_of

if TYPE_CHECKING:
    from jax.sharding import Mesh

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU's published numbers: memory in bytes, bfloat16 operations, memory and interconnect bytes a second."""

    memory: float
    flops: float
    bandwidth: float
    interconnect: float


# https://cloud.google.com/tpu/docs/v5p, v6e, v5e: HBM, peak, HBM bandwidth, inter-chip interconnect (all links, one way).
CHIPS = {
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
}

# Labelled clips: of IntPhys 2019's dev split (Riochet et al. 2018), and of InfLevel Lab (Weihs et al. 2022).
STUDIES = {"IntPhys": 360, "InfLevel": 5772}


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long a call takes at least, of `clips` clips on `devices` devices: the slowest of its three parts.

    Attributes
    ----------
    compute : seconds of matrix products at the chip's peak; memory : of traffic to its memory at full bandwidth;
        interconnect : of collectives over all its links. At best they overlap.
    """

    compute: float
    memory: float
    interconnect: float
    clips: int
    devices: int

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """Which of the three it is."""
        parts = {"compute": self.compute, "memory": self.memory, "interconnect": self.interconnect}
        return max(parts, key=parts.__getitem__)

    @property
    def clips_per_hour(self) -> float:
        return 3600 * self.clips / self.seconds

    def hours(self, clips: int) -> float:
        """Of so many clips, in whole batches: devices without a clip wait."""
        return math.ceil(clips / self.clips) * self.seconds / 3600

    def chip_hours(self, clips: int) -> float:
        """`hours`, over all devices."""
        return self.hours(clips) * self.devices


def measure(work: Work, mesh: "Mesh", chip: Chip | None = None) -> dict[str, Any]:
    """Compile some work for a mesh, with the kernels of its devices, and say what it takes.

    Returns
    -------
    A dict in json types. "fits" is there for a known chip; where the program does not fit, "why" is the compiler's reason and
    what only a compiled program tells is absent. "flops" are those of one call over all devices; "seconds" of a call.
    """
    from jaxdiff.kernels import compiling_for

    program = program_of(work, mesh)
    arguments = program.argument_bytes()
    found: dict[str, Any] = {
        "mesh": ",".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        "devices": int(mesh.size),
        "clips": program.clips,
        "steps": program.steps,
        "argument_gb_per_device": arguments / GB,
    }
    with compiling_for(mesh.devices.flat[0].platform, devices=mesh.size):
        traced = program.function.trace(*program.arguments)
    found["flops"] = count(traced.jaxpr.jaxpr)
    found["flops_per_device"] = found["flops"] / mesh.size
    if chip is not None and arguments > chip.memory:
        return found | {"fits": False, "why": f"the arguments alone are {arguments / GB:.1f} GB"}
    try:
        with compiling_for(mesh.devices.flat[0].platform, devices=mesh.size):
            compiled = compile_traced(traced)
    except RuntimeError as error:  # jax's, from the compiler
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"fits": False, "why": str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]}
    memory, text = compiled.memory_analysis(), Text(compiled.as_text())
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    peak = memory.argument_size_in_bytes + made + memory.temp_size_in_bytes
    found |= {
        "argument_gb_per_device": memory.argument_size_in_bytes / GB,
        "temporary_gb_per_device": memory.temp_size_in_bytes / GB,
        "hbm_gb_per_device": peak / GB,
        "collectives": text.collectives(),
        "traffic_bytes_per_device": text.traffic(),
    }
    return found if chip is None else found | {"fits": bool(peak <= chip.memory)} | costs(found, chip)


def compile_traced(traced: Any) -> Any:
    """The compiled program of a traced one: the slow part."""
    return traced.lower().compile()


def operations(work: Work) -> float:
    """Of one step on one clip, counted without compiling anything."""
    import jax

    from jaxdiff.kernels import compiling_for
    from jaxdiff.mesh import data_mesh

    program = program_of(work, data_mesh(jax.devices("cpu")[:1]))
    with compiling_for("tpu"):
        jaxpr = program.function.trace(*program.arguments).jaxpr.jaxpr
    return count(jaxpr) / program.clips / program.steps


def costs(found: dict[str, Any], chip: Chip) -> dict[str, Any]:
    """What `measure` found, in seconds of a chip and in studies."""
    speed = speed_of(found, chip)
    return {
        "seconds": {"compute": speed.compute, "memory": speed.memory, "interconnect": speed.interconnect},
        "bound": speed.bound,
        "seconds_per_step": speed.seconds / found["steps"],
        "clips_per_hour": speed.clips_per_hour,
        "chip_hours": {name: speed.chip_hours(clips) for name, clips in STUDIES.items()},
    }


def speed_of(found: dict[str, Any], chip: Chip) -> Speed:
    """The bounds on a call of a program that `measure` compiled."""
    moved = sum(entry["received"] for entry in found["collectives"].values())
    return Speed(
        found["flops_per_device"] / chip.flops,
        found["traffic_bytes_per_device"] / chip.bandwidth,
        moved / chip.interconnect,
        found["clips"],
        found["devices"],
    )
