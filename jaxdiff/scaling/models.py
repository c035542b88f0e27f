"""Published models at their published sizes, as shapes: what is compiled without a checkpoint."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxdiff.errors import ConfigError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxdiff.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model.

    Attributes
    ----------
    pipeline : class of its pipeline; preset : constructor of the transformer's configuration.
    frames, height, width : of a clip at its published size.
    strides : of the latents in time and space; patch : side of a token in latents; channels : of the latents.
    """

    pipeline: str
    preset: str
    scheduler: dict[str, Any]
    frames: int
    height: int
    width: int
    strides: tuple[int, int] = (4, 8)
    patch: int = 2
    channels: int = 16

    def latents(self, frames: int | None = None, size: Sequence[int] = ()) -> tuple[int, int, int, int]:
        """[T', H', W', C] of a clip, at the published size unless told otherwise.

        Raises
        ------
        ConfigError : the frames are not a whole number of strides and one, or a side does not divide.
        """
        frames, (height, width) = frames or self.frames, tuple(size) or (self.height, self.width)
        (time, space), side = self.strides, self.strides[1] * self.patch
        if (frames - 1) % time or height % side or width % side:
            raise ConfigError(
                f"{frames} frames of {height}x{width} do not fit {self.pipeline}: frames must be {time}k + 1 and both sides "
                f"multiples of {side}"
            )
        return 1 + (frames - 1) // time, height // space, width // space, self.channels


_COGVIDEOX = {
    "_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
}  # fmt: skip
_WAN = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True,
    "flow_shift": 3.0,
}  # fmt: skip
_LTX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
MODELS = {
    "cogvideox-2b": Model("CogVideoXPipeline", "cogvideox_2b", _COGVIDEOX | {"snr_shift_scale": 3.0}, 49, 480, 720),
    "cogvideox-5b": Model("CogVideoXPipeline", "cogvideox_5b", _COGVIDEOX, 49, 480, 720),
    "ltx-13b": Model("LTXConditionPipeline", "ltx_13b", _LTX, 121, 512, 704, (8, 32), 1, 128),
    "wan2.1-t2v-1.3b": Model("WanPipeline", "t2v_1_3b", _WAN, 81, 480, 832),
    "wan2.1-t2v-14b": Model("WanPipeline", "t2v_14b", _WAN, 81, 480, 832),
    "nano": Model("WanPipeline", "nano", _WAN, 17, 32, 32),
}


def outline(model: Model, mesh: "Mesh | None" = None) -> "Pipeline":
    """The pipeline with shapes for weights, in bfloat16 and split over the mesh as `jaxdiff.load` would have them."""
    import jax
    import jax.numpy as jnp

    from jaxdiff.flow.schedule import Schedule
    from jaxdiff.models.network import Network
    from jaxdiff.pipeline import Pipeline
    from ports.families import FAMILIES
    from ports.table import expected_names, flatten, partition_specs, rebuild

    family = FAMILIES[model.pipeline]
    (port,) = family.ports["transformer"].values()
    network = Network.abstract(port.module, getattr(port.config, model.preset)())
    table = port.table(network.config)
    groups, leaves = expected_names(table, network.params)[0], flatten(network.params)
    places = {} if mesh is None else flatten(partition_specs(table, network.params, mesh))
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, groups[path].rule.dtype(jnp.bfloat16), sharding=places.get(path))
        for path, leaf in leaves.items()
    }
    network = network.replace(rebuild(network.params, shapes))
    return Pipeline(network, family.drive, Schedule.from_config(model.scheduler))
