"""What a compiled program is made of: witnesses that no other process can disturb."""

import re
from typing import Any

import jax

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = \w+\[([\d,]*)\]\S* ([\w-]+)\(")
# Instructions whose result is a tuple have no one shape; they are counted, not looked into.
ANY = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = ", re.MULTILINE)
HOST = re.compile(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|custom_call_target=\"[^\"]*callback[^\"]*\"")
NAMING = {"parameter", "get-tuple-element", "bitcast"}  # they name what is there already


def made(hlo: str, shapes: set[tuple[int, ...]]) -> dict[str, int]:
    """How many instructions of which kind produce arrays of these shapes.

    Insides of fusions are left out: only a fusion's result is written to memory, and it counts as `fusion`.
    """
    found: dict[str, int] = {}
    fused = False
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            fused = "fused_computation" in line.split(" ", 1)[0]
        if fused:
            continue
        match = INSTRUCTION.match(line)
        if match and match[2] not in NAMING and tuple(int(n) for n in match[1].split(",") if n) in shapes:
            found[match[2]] = found.get(match[2], 0) + 1
    return found


def host_transfers(hlo: str) -> int:
    """Instructions that talk to the host."""
    return len(HOST.findall(hlo))


def instructions(hlo: str) -> int:
    """Length of the optimised program."""
    return len(ANY.findall(hlo))


def stacked_shapes(pipeline: Any) -> set[tuple[int, ...]]:
    """Shapes [L, in, out] of the stacked kernels."""
    layers = pipeline.transformer.config.num_layers
    leaves = jax.tree.leaves(pipeline.transformer.params)
    return {leaf.shape for leaf in leaves if leaf.ndim == 3 and leaf.shape[0] == layers}


def cost(compiled: Any) -> dict[str, int]:
    """Operations and bytes by XLA's cost analysis (a loop's body counts once), and temporary memory."""
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops_loops_once": int(analysis.get("flops", 0)),
        "bytes_loops_once": int(analysis.get("bytes accessed", 0)),
        "temp_bytes": int(memory.temp_size_in_bytes) if memory is not None else -1,
    }
