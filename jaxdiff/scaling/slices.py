"""Slices of TPUs as devices without TPUs, for programs that are compiled and never run."""

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from jaxdiff.errors import ConfigError
from jaxdiff.scaling.roofline import CHIPS, Chip

if TYPE_CHECKING:
    from jax.sharding import Mesh

# There is no TPU to ask for its surroundings, and none that two processes could quarrel about. Of which type this host's would be
# is asked for as well, and has no bearing on a slice that is named.
_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice, "v5p:4x4x4" say, or those of this process for "cpu".

    Raises
    ------
    ConfigError : there is no libtpu, or no such slice.
    """
    import jax
    from jax.experimental import topologies

    kind = topology.partition(":")[0]
    if kind == "cpu":
        return jax.devices("cpu")
    if kind not in CHIPS:
        raise ConfigError(f"--topology={topology}: no TPU {kind!r}; there are {', '.join(CHIPS)}")
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('compiling for TPUs needs libtpu: pip install "jaxdiff[tpu]". It needs no TPU')
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # programs for devices that are not there cannot be read back
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        raise ConfigError(f"--topology={topology} is no slice that libtpu knows: {error}") from error


def chip_of(topology: str) -> Chip | None:
    """The published numbers of a slice's chips; None for "cpu"."""
    return CHIPS.get(topology.partition(":")[0])


def mesh_on(devices: list[Any], text: str) -> "Mesh":
    """The mesh of a text over all these devices.

    Raises
    ------
    ConfigError : as `jaxdiff.mesh.parse_mesh`.
    """
    from jaxdiff.mesh import data_mesh, parse_mesh

    return parse_mesh(text, devices) or data_mesh(devices)
