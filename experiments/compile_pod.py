"""Compile a program for a slice of TPUs on a machine without any, and say whether it fits.

    python -m experiments.compile_pod --model=cogvideox-5b --program=finetune_lora --topology=v5p:2x2x4 \\
        --mesh=data=2,fsdp=8 --workdir=runs/pod

needs `pip install "jaxdiff[tpu]"`, no TPU and no weights: only shapes are compiled. Writes result.json and prints a table:
arguments, temporaries and the sum per device against the chip's memory, every kind of collective with its bytes, operations,
and what these take at least. `--topology=cpu` compiles for the devices of this process, for tests.
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments._collectives import collectives
from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxdiff.pipeline import Pipeline

GB = 1e9
SETTINGS = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


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


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model at its published size."""

    pipeline: str  # its class
    preset: str  # constructor of the transformer's configuration
    scheduler: dict[str, Any]
    latents: tuple[int, int, int, int]  # [T', H', W', C]


COGVIDEOX = {
    "_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
}  # fmt: skip
WAN = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "flow_shift": 3.0,
}  # fmt: skip
MODELS = {
    "cogvideox-2b": Model("CogVideoXPipeline", "cogvideox_2b", COGVIDEOX | {"snr_shift_scale": 3.0}, (13, 60, 90, 16)),
    "cogvideox-5b": Model("CogVideoXPipeline", "cogvideox_5b", COGVIDEOX, (13, 60, 90, 16)),  # 49 x 480 x 720
    "wan2.1-t2v-1.3b": Model("WanPipeline", "t2v_1_3b", WAN, (21, 60, 104, 16)),  # 81 x 480 x 832
    "wan2.1-t2v-14b": Model("WanPipeline", "t2v_14b", WAN, (21, 60, 104, 16)),
    "nano": Model("WanPipeline", "nano", WAN, (5, 4, 4, 16)),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled, and for what."""

    model: Literal["cogvideox-2b", "cogvideox-5b", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "nano"] = setting(help="Model.")
    program: Literal["finetune", "finetune_lora", "invert", "sample"] = setting("finetune_lora", "Program.")
    topology: str = setting("v5p:2x2x1", "Slice, as v5p:4x4x4 or v6e:4x4; cpu: the devices of this process.")
    mesh: str = setting("auto", "Devices as data=2,fsdp=4; auto: all along fsdp.")
    clips_per_device: int = setting(1, "Clips a step, per device that batches are split over.")
    rank: int = setting(128, "Of finetune_lora.")
    steps: int = setting(50, "Of invert and sample.")
    remat: bool = setting(True, "Recompute blocks in the backward pass.")

    def __post_init__(self):
        if min(self.clips_per_device, self.rank, self.steps) < 1:
            raise ConfigError("--clips_per_device, --rank and --steps must be at least 1")


def run(config: Config, workdir: Path) -> None:
    """Compile, write, print."""
    # There is no TPU to ask for its surroundings, and none that two processes could quarrel about.
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from jaxdiff.workdir import Workdir

    mesh = mesh_of(config)
    result: dict[str, Any]
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        try:
            with work.stage("compile"):
                compiled = compile_program(config, mesh)
            result = measure(config, mesh, compiled)
        except RuntimeError as error:  # jax's, from the compiler
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            why = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]
            result = {"fits": False, "devices": int(mesh.size), "table": {"DOES NOT FIT": why}}
        work.write_result({"headline": {}, **result})
        work.finish(("result.json",))
    print(f"{config.model} {config.program} on {config.topology}, {dict(mesh.shape)}, per device:")
    for name, value in result["table"].items():
        print(f"  {name:28} {value}")


def mesh_of(config: Config) -> "Mesh":
    """The mesh over the devices of the topology.

    Raises
    ------
    ConfigError : there is no libtpu, no such topology, or the mesh does not fit it.
    """
    import jax
    from jax.experimental import topologies

    from jaxdiff.mesh import parse_mesh

    kind = config.topology.partition(":")[0]
    if kind == "cpu":
        devices = jax.devices("cpu")
    else:
        if kind not in CHIPS:
            raise ConfigError(f"--topology={config.topology}: no TPU {kind!r}; there are {', '.join(CHIPS)}")
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError('compiling for TPUs needs libtpu: pip install "jaxdiff[tpu]". It needs no TPU')
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=config.topology).devices
        except Exception as error:
            raise ConfigError(f"--topology={config.topology} is no slice that libtpu knows: {error}") from error
    text = f"data=1,fsdp={len(devices)}" if config.mesh == "auto" else config.mesh
    mesh = parse_mesh(text, devices)
    assert mesh is not None  # only "auto" gives none
    return mesh


def outlined(config: Config, mesh: "Mesh") -> "Pipeline":
    """The pipeline with shapes for weights, in bfloat16 and split as `jaxdiff.load` would have them."""
    import jax
    import jax.numpy as jnp

    from jaxdiff.flow.schedule import Schedule
    from jaxdiff.models.network import Network
    from jaxdiff.pipeline import Pipeline
    from ports.families import FAMILIES
    from ports.table import expected_names, flatten, partition_specs, rebuild

    model = MODELS[config.model]
    family = FAMILIES[model.pipeline]
    (port,) = family.ports["transformer"].values()
    network = Network.abstract(port.module, getattr(port.config, model.preset)())
    table = port.table(network.config)
    groups, leaves = expected_names(table, network.params)[0], flatten(network.params)
    places = flatten(partition_specs(table, network.params, mesh))
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, groups[path].rule.dtype(jnp.bfloat16), sharding=places[path])
        for path, leaf in leaves.items()
    }
    network = network.replace(rebuild(network.params, shapes))
    return Pipeline(network, family.drive, Schedule.from_config(model.scheduler))


def compile_program(config: Config, mesh: "Mesh") -> Any:
    """The compiled program, with the kernels of its devices."""
    from jaxdiff.kernels import compiling_for

    with compiling_for(mesh.devices.flat[0].platform, devices=mesh.size):
        return PROGRAMS[config.program](config, mesh, outlined(config, mesh))


def _batch(config: Config, mesh: "Mesh", pipeline: "Pipeline", axes: tuple[str, ...]) -> tuple[Any, Any]:
    """Latents and text of a step, split over these axes."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    split = NamedSharding(mesh, PartitionSpec(tuple(axis for axis in axes if axis in mesh.shape)))
    clips = config.clips_per_device * math.prod(mesh.shape.get(axis, 1) for axis in axes)
    latents = jax.ShapeDtypeStruct((clips, *MODELS[config.model].latents), jnp.float32, sharding=split)
    text = pipeline.family.example(pipeline.transformer, latents.shape).text
    return latents, jax.ShapeDtypeStruct((clips, *text.shape[1:]), jnp.float32, sharding=split)


def compile_finetuning(config: Config, mesh: "Mesh", pipeline: "Pipeline") -> Any:
    """One step of `jaxdiff.train.finetune` with the drift loss, a LoRA or all weights."""
    import jax
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxdiff.conditioning import Conditioning
    from jaxdiff.lamo import DriftLoss
    from jaxdiff.mesh import DATA, FSDP
    from jaxdiff.models.lora import LoRA, adapter_shardings
    from jaxdiff.train.finetune import FineTuning, trainable, training_loss
    from jaxdiff.train.loop import TrainState, update

    lora = LoRA(config.rank, float(config.rank)) if config.program == "finetune_lora" else None
    latents, text = _batch(config, mesh, pipeline, (DATA, FSDP))
    tuning = FineTuning(batch=latents.shape[0], lora=lora, losses={"drift": DriftLoss()}, remat=config.remat)
    whole = NamedSharding(mesh, PartitionSpec())

    def at(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    network = pipeline.transformer
    params = jax.eval_shape(lambda net, key: trainable(net, lora, key)[0], network, jax.random.key(0))
    if lora is None:
        places, frozen = jax.tree.map(lambda leaf: leaf.sharding, network.params), None
    else:
        places, frozen = adapter_shardings(network.params, params), network.params
    state = jax.eval_shape(lambda params: TrainState.create(params, tuning.recipe), params)
    state = TrainState(
        at(state.step, whole),
        jax.tree.map(at, state.params, places),
        jax.tree.map(at, state.ema, places),
        optax.tree_utils.tree_map_params(
            tuning.recipe.optimizer(), at, state.opt_state, places, transform_non_params=lambda leaf: at(leaf, whole)
        ),
    )
    blank: Any = jax.ShapeDtypeStruct((1, *text.shape[1:]), text.dtype, sharding=whole)
    step = jax.jit(
        update(training_loss(pipeline, tuning), tuning.recipe, mesh=mesh),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), None),
    )
    number = jax.ShapeDtypeStruct((), "int32", sharding=whole)
    return step.lower(state, (frozen, Conditioning(text=blank)), (number, (latents, text, None))).compile()


def compile_trajectory(config: Config, mesh: "Mesh", pipeline: "Pipeline") -> Any:
    """A whole inversion with the means of every block at every tenth of the way, or a whole sample with guidance."""
    import jax

    from jaxdiff.flow import invert, sample
    from jaxdiff.mesh import DATA, FSDP
    from jaxdiff.taps import Tap

    latents, text = _batch(config, mesh, pipeline, (DATA, FSDP))

    def run(pipeline, latents, text):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return trajectory(pipeline, latents, text)

    def trajectory(pipeline, latents, text):
        if config.program == "invert":
            return invert(pipeline, latents, text, steps=config.steps, taps=(Tap("block_out", "mean"),))
        return sample(pipeline, latents, text, steps=config.steps, guidance_scale=6.0, negative=text * 0)

    return jax.jit(run).lower(pipeline, latents, text).compile()


PROGRAMS: dict[str, Callable[..., Any]] = {
    "finetune": compile_finetuning,
    "finetune_lora": compile_finetuning,
    "invert": compile_trajectory,
    "sample": compile_trajectory,
}


# ------------------------------------------------------------------------------------------------ what it takes


def measure(config: Config, mesh: "Mesh", compiled: Any) -> dict[str, Any]:
    """Memory, collectives, operations and bounds on time, and the lines of the table."""
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.generated_code_size_in_bytes
    total, moved = arguments + made + temporary, collectives(compiled.as_text())
    operations = flops(config) * config.clips_per_device
    found: dict[str, Any] = {
        "argument_gb_per_device": arguments / GB,
        "temporary_gb_per_device": temporary / GB,
        "hbm_gb_per_device": total / GB,
        "flops_per_device": operations,
        "collective_bytes": moved,
        "devices": int(mesh.size),
    }
    lines = {
        "arguments": f"{arguments / GB:.3g} GB",
        "temporaries": f"{temporary / GB:.3g} GB",
        "all memory": f"{total / GB:.3g} GB",
        "operations (by hand)": f"{operations / 1e12:.3g} T",
        **{f"{kind}, {entry['count']} times": f"{entry['bytes'] / GB:.3g} GB" for kind, entry in moved.items()},
    }
    chip = CHIPS.get(config.topology.partition(":")[0])
    if chip is not None:
        found |= {
            "fits": bool(total <= chip.memory),
            "seconds_compute": operations / chip.flops,
            "seconds_interconnect": sum(entry["bytes"] for entry in moved.values()) / chip.interconnect,
        }
        lines["all memory"] += f" of {chip.memory / GB:.0f} GB: {'fits' if found['fits'] else 'DOES NOT FIT'}"
        lines["at the chip's peak"] = f"{found['seconds_compute']:.2f} s of products"
        lines["at all its links"] = f"{found['seconds_interconnect']:.2f} s of collectives"
    return {**found, "table": lines}


def flops(config: Config) -> float:
    """Operations on one clip, twice the multiply-adds of the products, by hand: XLA's analysis counts loops once."""
    import jax

    from jaxdiff.models.network import Network
    from ports.families import FAMILIES

    model = MODELS[config.model]
    (port,) = FAMILIES[model.pipeline].ports["transformer"].values()
    c = getattr(port.config, model.preset)()
    patch = getattr(c, "patch_size", 2)
    area = math.prod(patch) if isinstance(patch, tuple) else patch * patch
    tokens = math.prod(model.latents[:3]) // area
    text = 226 if model.pipeline.startswith("Cog") else 512
    own = tokens + text if model.pipeline.startswith("Cog") else tokens  # CogVideoX attends to both at once
    blocks = Network.abstract(port.module, c).params["blocks"]
    products = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(blocks):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 3 and where.endswith("kernel"):
            rows = 1 if "modulation" in where else own
            rows = text if "cross_attention/key" in where or "cross_attention/value" in where else rows
            products += 2.0 * leaf.size * rows
    scores = 4.0 * c.num_layers * c.width * own * (own if model.pipeline.startswith("Cog") else own + text)
    once = products + scores
    if config.program == "invert":
        return once * config.steps
    if config.program == "sample":
        return 2 * once * config.steps
    # Backward through activations is one forward, through weights the products once more; remat is another forward. Of
    # attention, both factors are activations, and scores are formed again, which is half of it.
    return once * (2 + config.remat) + 1.5 * scores + (products if config.program == "finetune" else 0.0)


if __name__ == "__main__":
    run_binary(run, Config)
