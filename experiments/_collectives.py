"""What a compiled program sends between devices, read from its text."""

import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Kind -> how often and how many bytes a device receives, loops counted as often as they run."""
    bodies: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in hlo.splitlines():
        opening = re.match(r"^(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if opening:
            name = opening[2]
            entry = name if opening[1] else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    found: dict[str, dict[str, int]] = {}

    def walk(computation: str, times: int) -> None:
        for line in bodies.get(computation, ()):
            loop = re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line)
            if loop:
                walk(loop[2], times * _trips(line, bodies.get(loop[1], [])))
                continue
            for called in re.findall(r"(?:calls|to_apply|branch_computations)=\{?([%\w., -]+)\}?", line):
                for part in called.split(","):
                    walk(part.strip().lstrip("%"), times)
            kind = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            if kind:
                sizes = [_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", kind[1])]
                # A start holds operands and results; the larger is what was gathered, or what is scattered.
                entry = found.setdefault(kind[2], {"count": 0, "bytes": 0})
                entry["count"] += times
                entry["bytes"] += times * (max(sizes, default=0) if kind[3] else sum(sizes))

    walk(entry, 1)
    return found


def _trips(line: str, condition: list[str]) -> int:
    """How often a loop runs: what the compiler noted, or the bound that its counter is compared with."""
    noted = re.search(r"known_trip_count\W+n\W+(\d+)", line)
    if noted:
        return int(noted[1])
    return max((int(bound) for bound in re.findall(r" constant\((\d+)\)", "\n".join(condition))), default=1)


def _bytes(kind: str, dims: str) -> int:
    return BYTES.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n)
