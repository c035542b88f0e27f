"""What a compiled program moves, read from its text: between devices, and between a device and its memory.

XLA's cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}

# Of these nothing is read or written: names for what is there, control, and ends of what was counted at its start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "opt-barrier", "partition-id", "replica-id", "async-start", "async-update",
}  # fmt: skip
_OPENING = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|called_computation)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    kind: str
    result: str  # its type, as written
    rest: str  # operands and attributes
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.-]+)", self.rest.partition(")")[0]))

    @property
    def value(self) -> int:
        """Of an integer constant; 1 of any other."""
        text = self.rest.partition(")")[0]
        return int(text) if text.isdigit() else 1

    @property
    def index(self) -> int:
        """Of a get-tuple-element."""
        found = re.search(r"index=(\d+)", self.rest)
        return int(found[1]) if found else 0

    @property
    def called(self) -> list[str]:
        """Computations that it runs, but for those of a while."""
        found = _CALLED.findall(self.rest)
        return [part.strip().lstrip("%") for one, many in found for part in (one or many).split(",")]


class Program:
    """A compiled program's text (`jax.stages.Compiled.as_text`), taken apart."""

    def __init__(self, text: str):
        self._bodies: dict[str, list[_Instruction]] = {}
        self._entry = name = ""
        for line in text.splitlines():
            if opening := _OPENING.match(line):
                name = opening[2]
                self._entry = name if opening[1] else self._entry
                self._bodies[name] = []
            elif name and (found := _LINE.match(line)):
                self._bodies[name].append(_Instruction(found[2], found[4], found[3], found[5], bool(found[1])))

    def collectives(self) -> dict[str, dict[str, int]]:
        """Kind -> "count", how often; "bytes", of the results; "received", bytes that a device receives from others at least.

        Of n devices, an all-gather and an all-to-all that leave B bytes bring each (n - 1) / n B, an all-reduce twice that, a
        reduce-scatter (n - 1) B. Where the text does not say how many take part, B counts.
        """
        found: dict[str, dict[str, int]] = {}
        goes_on = self._going_on
        for instruction, body, times, _ in self._run():
            kind = instruction.kind.removesuffix("-start")
            if kind in KINDS and body not in goes_on:
                entry = found.setdefault(kind, {"count": 0, "bytes": 0, "received": 0})
                size, received = _sent(instruction, kind)
                entry["count"] += times
                entry["bytes"] += times * size
                entry["received"] += times * received
        return found

    def traffic(self) -> int:
        """Bytes that a device reads from its memory and writes to it, every instruction by itself.

        A fusion reads its operands and writes its results once; of an array of which it takes a slice, the slice. What
        stays on the chip (memory spaces other than 0) is free. Pallas kernels count as reading each operand once.
        """
        return sum(
            times * self._moved(instruction, body) for instruction, body, times, fused in self._run() if not fused
        )

    # ------------------------------------------------------------------------------ inside

    def _run(self) -> Iterator[tuple[_Instruction, str, int, bool]]:
        """Every instruction, the computation it is in, how often it runs, and whether it is a part of a fusion."""

        def walk(body: str, times: int, fused: bool) -> Iterator[tuple[_Instruction, str, int, bool]]:
            for instruction in self._bodies.get(body, ()):
                yield instruction, body, times, fused
                if instruction.kind == "while":
                    parts = dict(re.findall(r"(condition|body)=%?([\w.-]+)", instruction.rest))
                    yield from walk(
                        parts["body"], times * self._trips(instruction, parts["condition"], parts["body"]), fused
                    )
                else:
                    apart = fused or instruction.kind not in ("call", "conditional", "async-start")
                    for part in instruction.called:
                        yield from walk(part, times, apart)

        yield from walk(self._entry, 1, False)

    def _trips(self, loop: _Instruction, condition: str, body: str) -> int:
        """How often a loop runs: what the compiler noted, or the bound that its counter is compared with, from 0."""
        noted = re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest)
        if noted:
            return int(noted[1])
        bodies = [condition, *(part for item in self._bodies.get(condition, ()) for part in item.called)]
        items = [item for name in bodies for item in self._bodies.get(name, ())]
        bound = max((item.value for item in items if item.kind == "constant"), default=1)
        counters = [item.index for item in items if item.kind == "get-tuple-element"]
        return -(-bound // (self._step(body, counters[0]) if len(counters) == 1 else 1))

    def _step(self, body: str, index: int) -> int:
        """By how much a turn of a loop raises element `index` of its state: more than 1 where loops are unrolled."""
        named = self._named.get(body, {})
        (root,) = (item for item in named.values() if item.root) if named else (None,)
        if root is None or index >= len(root.operands) or root.operands[index] not in named:
            return 1
        found, step = named[root.operands[index]], 0
        while found.kind in ("add", "copy"):
            parts = [named[name] for name in found.operands if name in named]
            step += sum(part.value for part in parts if part.kind == "constant")
            rest = [part for part in parts if part.kind != "constant"]
            if len(rest) != 1:
                return 1
            found = rest[0]
        return step if found.kind == "get-tuple-element" and found.index == index and step > 0 else 1

    @functools.cached_property
    def _going_on(self) -> set[str]:
        """Fusions that carry on or end a collective that another one began: TPUs hide it behind other work, and its text is
        in each of them."""
        items = [item for items in self._bodies.values() for item in items if item.kind == "fusion"]
        return {
            part
            for item in items
            for part in item.called
            if item.name.startswith("async-collective-done") or part.startswith("async_collective_fusion")
        }

    @functools.cached_property
    def _named(self) -> dict[str, dict[str, _Instruction]]:
        return {body: {item.name: item for item in items} for body, items in self._bodies.items()}

    def _moved(self, item: _Instruction, body: str) -> int:
        """Bytes that one instruction outside a fusion reads and writes."""
        if item.kind in _FREE or item.kind.endswith("-done") or item.name.startswith("async-collective-done"):
            return 0
        if "AllocateBuffer" in item.rest:
            return 0
        named = self._named[body]
        sources = [named[name] for name in item.operands if name in named]
        if item.kind == "fusion":
            (inner,) = item.called
            return self._read(inner, sources) + self._written(inner, item)
        if item.kind in ("dynamic-slice", "slice", "gather"):
            return 2 * _in_memory(item.result)
        if item.kind in ("dynamic-update-slice", "scatter"):
            return 2 * _in_memory(sources[min(1, len(sources) - 1)].result)
        if item.kind.endswith("-start"):  # its result holds operands, results and marks
            return 2 * _largest(item.result)
        return _in_memory(item.result) + sum(_in_memory(source.result) for source in sources)

    def _passes(self, item: _Instruction, inner: str) -> bool:
        """Whether a fusion only hands on what this instruction takes or makes."""
        return (item.root and item.kind == "tuple") or (item.kind in KINDS and inner in self._going_on)

    def _read(self, inner: str, sources: list[_Instruction]) -> int:
        total = 0
        for parameter in self._bodies[inner]:
            if parameter.kind == "parameter":
                number = int(parameter.rest.partition(")")[0])
                whole = _in_memory(sources[number].result) if number < len(sources) else 0
                total += self._used(inner, parameter.name, whole)
        return total

    def _used(self, inner: str, name: str, whole: int) -> int:
        """Bytes of a fusion's parameter that it looks at: all, unless it only takes slices or writes into it."""
        total = 0
        for user in self._bodies[inner]:
            if name not in user.operands or self._passes(user, inner):
                continue
            first = user.operands[0] == name
            if user.kind in ("dynamic-slice", "slice", "gather") and first:
                total += _size(user.result)
            elif user.kind == "bitcast" and not user.root:
                total += self._used(inner, user.name, whole)
            elif user.kind == "fusion":
                (part,) = user.called
                place = user.operands.index(name)
                parameters = [item for item in self._bodies[part] if item.kind == "parameter"]
                (there,) = (item.name for item in parameters if item.rest.startswith(f"{place})"))
                total += self._used(part, there, whole)
            elif not (user.kind == "dynamic-update-slice" and first):
                return whole
        return min(total, whole)

    def _written(self, inner: str, item: _Instruction) -> int:
        """Bytes that a fusion writes: of an array that it updates in place, the new part."""
        named = self._named[inner]
        (root,) = (found for found in self._bodies[inner] if found.root)
        ends = [named[name] for name in root.operands] if root.kind == "tuple" else [root]
        results = _SHAPE.findall(item.result)
        total = 0
        for end, result in zip(ends, results, strict=False):
            while end.kind == "bitcast" and end.operands[0] in named:
                end = named[end.operands[0]]
            whole = 0 if _on_chip(result[2]) else _bytes(*result[:2])
            if end.kind == "parameter" or self._passes(end, inner):
                whole = 0
            elif end.kind == "dynamic-update-slice":
                whole = min(whole, _size(named[end.operands[1]].result))
            total += whole
        return total


def _sent(item: _Instruction, kind: str) -> tuple[int, int]:
    """Bytes of a collective's result on a device, and those that it receives for it."""
    sizes = [_bytes(*shape[:2]) for shape in _SHAPE.findall(item.result)]
    n = _group(item.rest)
    if not item.kind.endswith("-start"):
        size = sum(sizes)
    else:  # it holds operands and results: what is gathered is the larger, what is scattered the smaller
        size = (min if kind == "reduce-scatter" else max)((s for s in sizes if s > 4), default=0)
    if n is None or kind == "collective-permute":
        return size, size
    if kind == "reduce-scatter":
        return size, size * (n - 1)
    return size, size * (n - 1) * (2 if kind == "all-reduce" else 1) // n


def _group(text: str) -> int | None:
    """How many devices take part. Groups are written one by one, as [groups, devices of each]<=[...], or as axes of a mesh."""
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(counted[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    return len(listed[1].split(",")) if listed else None


def _bytes(kind: str, dims: str) -> int:
    return BYTES.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n)


def _on_chip(layout: str) -> bool:
    return bool(re.search(r"S\([1-9]", layout))


def _size(result: str) -> int:
    return sum(_bytes(kind, dims) for kind, dims, _ in _SHAPE.findall(result))


def _in_memory(result: str) -> int:
    return sum(_bytes(kind, dims) for kind, dims, layout in _SHAPE.findall(result) if not _on_chip(layout))


def _largest(result: str) -> int:
    return max((_bytes(kind, dims) for kind, dims, layout in _SHAPE.findall(result) if not _on_chip(layout)), default=0)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """`Program.collectives` of a compiled program's text."""
    return Program(text).collectives()
