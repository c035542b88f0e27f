"""The suite gpu: ours and every peer on one NVIDIA card, each in a process of its own, and what comes of the two.

Weights are random and made on the card; nothing is downloaded. A part (`PARTS`) is a process that measures and prints json; the
cases below turn parts into rows. A part prints what it has so far whenever it has measured something more, so that what fails or takes
too long later costs no more than itself. One is started while half of what it should take is left of the suite's budget
(`Settings.budget`), ended with the budget, and listed as missing otherwise. Those that came to their end are kept
(`Settings.folder`), and are not run again. Ratios within a part are of interleaved calls. Those between two
processes are of medians; every part measures the matmul ceiling among its own calls, and the ceiling of one process over that
of the other stands beside the ratio as its control.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.rows import PeerMissing, Row, Settings
from benchmarks.timing import MIN_PAIRS, Bar, Interval, Paired, interval, listed, unpaired

# Part -> module and about how many seconds it takes: estimates, none was ever measured.
PARTS = {
    "check": ("gpu_peers", 45),
    "long": ("gpu_ours", 150),
    "study": ("gpu_ours", 110),
    "eager": ("gpu_peers", 120),
    "compiled": ("gpu_peers", 110),
    "encode": ("gpu_ours", 60),
    "probes": ("gpu_ours", 80),
    "finetune": ("gpu_ours", 130),
    "forward_14b": ("gpu_ours", 110),
}
PEAK = {"H100": 989e12, "H200": 989e12}  # bfloat16 operations a second, dense, by NVIDIA's data sheets
CLIPS = 360  # of IntPhys dev
RELEASED = 100  # Euler steps of the released code
# Evaluations of UniPC from which on what differs between clips is closer to a fine run than by 100-step Euler: the case `solvers`
# of the suite cpu, on the nano model.
EVALUATIONS = 30

_STARTED = time.monotonic()


def part(name: str, settings: Settings) -> dict[str, Any]:
    """What a part measured; it is started when it is first asked for, and once.

    Raises
    ------
    PeerMissing : it does not fit into the budget, it failed, or what it compares with is not installed.
    """
    found = outcome(name, settings)
    if isinstance(found, str):
        raise PeerMissing(found)
    return found


@functools.cache
def outcome(name: str, settings: Settings) -> dict[str, Any] | str:
    """What a part measured, or why it measured nothing."""
    module, takes = PARTS[name]
    kept = None if settings.folder is None else Path(settings.folder) / f"{name}.json"
    asked = {"pairs": settings.pairs, "tiny": settings.tiny}
    if kept is not None and kept.exists():
        before = json.loads(kept.read_text())
        if before["settings"] == asked:
            return before["found"]
    left = settings.budget - (time.monotonic() - _STARTED)
    if left < takes / 2:
        return f"out of time: {left:.0f} s are left and it takes about {takes} s; run the same command again, or it with --only"
    try:
        found = run_part(module, name, settings, left)
    except PeerMissing as error:
        return str(error)
    if kept is not None and not found.get("stopped"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"settings": asked, "found": found}))
    return found


def run_part(module: str, name: str, settings: Settings, timeout: float) -> dict[str, Any]:
    """Run a part in a process of its own; what it printed last, and why it came to no end if it did not (`stopped`)."""
    command = [sys.executable, "-m", f"benchmarks.{module}", name, json.dumps(dataclasses.asdict(settings))]
    where = Path(__file__).parent.parent
    # Of ours the step of a training is the largest, and needs more than the three quarters of a card that JAX would take.
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "PYTHONUNBUFFERED": "1", **os.environ}
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd=where, timeout=timeout, env=env)
        printed, errors, why = done.stdout, done.stderr, f"ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        printed, errors, why = error.stdout or b"", b"", f"out of time: ended after {timeout:.0f} s"
    told = [
        line for line in printed.decode(errors="replace").splitlines() if line.startswith("{") and line.endswith("}")
    ]
    found = json.loads(told[-1]) if told else {}
    if not found.pop("complete", False):
        found["stopped"] = f"{module} {name} {why}: {errors.decode(errors='replace').strip()[-1500:]}".rstrip(": ")
    if "missing" in found or set(found) == {"stopped"}:
        raise PeerMissing(found.get("missing") or found["stopped"])
    return found


def serve(parts: Mapping[str, Any], device: Callable[[], str]) -> None:
    """The main program of a part: print as json what it has measured so far on `device`; on a CPU only toys are."""
    name, told = sys.argv[1:]
    settings = Settings(**json.loads(told))
    try:
        if not settings.tiny and device() == "cpu":
            raise PeerMissing("there is no accelerator here, or its library is not installed")
        found = parts[name](settings, lambda found: print(json.dumps(found), flush=True))
    except PeerMissing as error:
        found = {"missing": str(error)}
    print(json.dumps(found | {"complete": True}), flush=True)


# ------------------------------------------------------------------------------------------------------ cases


def check(settings: Settings) -> list[Row]:
    """The peers compute what ours does: small twins of the same weights, on this card."""
    errors = part("check", settings)["errors"]
    return [
        rows.number("peers against ours, same weights: largest relative difference", max(errors.values()),
                    Bar(1e-4, at_least=False), errors=errors)
    ]  # fmt: skip


def long(settings: Settings) -> list[Row]:
    """Wan 1.3B at 32,760 tokens: the forward against the matmul ceiling, and what reading costs it."""
    found = part("long", settings)
    return [
        of_ceiling("Wan 1.3B forward, 32,760 tokens, bf16 / matmul ceiling", found, found["forward"], 0.70),
        rows.number("copy ceiling", found["copy_gb_s"], unit="GB/s", witness={"device": found["device"]}),
        reading("capture of all block means, 32,760 tokens: scan outputs / none", found, "means", 1.01),
        reading("exact frame attention maps, 32,760 tokens / none", found, "maps", 1.06),
    ]


def study(settings: Settings) -> list[Row]:
    """Wan 1.3B at the study's 5,376 tokens, at the batch that is fastest a clip."""
    found = part("study", settings)
    batch = found["best_batch"]
    name = f"Wan 1.3B, study shape of 5,376 tokens, batch {batch}"
    by_batch = {k: round(float(np.median(v["forward"])) / int(k), 5) for k, v in found["by_batch"].items()}
    return [
        of_ceiling(
            f"{name} / matmul ceiling", found, found["by_batch"][str(batch)], 0.60, seconds_a_clip_by_batch=by_batch
        ),
        reading(f"{name}: capture of all block means, scan outputs / none", found, "means", 1.01),
        reading(f"{name}: exact frame attention maps / none", found, "maps", 1.06),
        reading(
            f"{name}: capture of all block means, io_callback to a store / none", found, "streamed", 1.03, "streaming"
        ),
    ]


def peers(settings: Settings) -> list[Row]:
    """diffusers, eager, with hooks, over ours with captures; seconds a clip, each side at its best batch."""
    theirs, out = part("eager", settings), []
    for shape, tokens in (("study", "5,376"), ("long", "32,760")):
        ours = part(shape, settings)
        for mode, told, bar in (("cpu", "hooks + .cpu()", 3.0), ("pool", "hooks that pool on the GPU", 1.8)):
            name = f"diffusers eager + {told} / ours with captures, {tokens} tokens"
            out.append(between(name, theirs, shape, ours, bar, mode))
    return out


def compiled(settings: Settings) -> list[Row]:
    """diffusers by its fastest compiled recipe, reading nothing, over ours with captures."""
    theirs, out = part("compiled", settings), []
    for shape, tokens in (("study", "5,376"), ("long", "32,760")):
        name = f"diffusers, fastest compiled recipe, no captures / ours with captures, {tokens} tokens"
        out.append(between(name, theirs, shape, part(shape, settings), 1.15))
    return out


def projection(settings: Settings) -> list[Row]:
    """IntPhys dev with Wan 1.3B, from measured parts: what the released code does over what gives the same fidelity here.

    Encoding a clip is counted at our time on both sides, which makes the ratio smaller. Probes of the released code run on a CPU
    and count nothing for it.
    """
    ours, theirs, encode, probes = (part(name, settings) for name in ("study", "eager", "encode", "probes"))
    if "reads" not in ours or "means" not in ours["reads"]:
        raise PeerMissing(lacking(ours, "means"))
    a_clip = float(np.median(encode["seconds"]["encode"]))
    probing = float(np.mean(probes["ours"])) * probes["sets"]
    one, other = per_clip(ours), theirs["study"]["1"]["cpu"]

    def hours(evaluation: float, evaluations: int, more: float) -> float:
        return (CLIPS * (evaluations * evaluation + a_clip) + more) / 3600

    mine = hours(float(np.median(one)), EVALUATIONS, probing)
    released = hours(float(np.median(other)), RELEASED, 0.0)
    witness = {
        "gpu_hours": {"ours": mine, "released": released},
        "seconds": {"evaluation_ours": float(np.median(one)), "evaluation_released": float(np.median(other)),
                    "encode_a_clip": a_clip, "all_probes": probing},
        "evaluations": {"ours": EVALUATIONS, "released": RELEASED},
        "control_ceilings": control(theirs, ours),
    }  # fmt: skip
    name = f"IntPhys-dev study of {CLIPS} clips, GPU time: released code / ours at equal fidelity, projected"
    return [rows.number(name, released / mine, Bar(10, at_least=True), witness=witness)]


def probes(settings: Settings) -> list[Row]:
    """The grid of probes on the card, over scikit-learn in two processes of the host."""
    found = part("probes", settings)
    mine, peer = np.array(found["ours"]), np.array(found["peer"])
    ratio = unpaired(peer, mine)
    witness = {"largest_gap": found["gap"], "seconds_of_the_grid": float(mine.mean() * found["sets"])}
    seconds = {"a_set_ours": listed(mine), "a_set_peer": listed(peer)}
    name = f"probes: {found['fits']:,} fits, scikit-learn in two processes / ours"
    return [rows.measured(name, ratio, MIN_PAIRS, Bar(1000, at_least=True), witness=witness, seconds=seconds)]


def finetune(settings: Settings) -> list[Row]:
    """A step of fine-tuning all weights of Wan 1.3B at 32,760 tokens: operations of the model (three forwards) over the peak."""
    found = part("finetune", settings)
    step = np.array(found["seconds"]["step"])
    peak = next((value for card, value in PEAK.items() if card in found["device"]), None)
    per_second = found["flops"] / step
    ceiling = rate(found, found["seconds"])
    used = interval(per_second / (ceiling if peak is None else peak))
    witness = {
        "of_measured_ceiling": float(np.median(per_second / ceiling)),
        "over": "the measured ceiling" if peak is None else f"{peak / 1e12:.0f} TFLOP/s",
        "device": found["device"],
        **found["witness"],
    }
    return [
        rows.measured(
            "fine-tune step, Wan 1.3B, 32,760 tokens: model operations / peak (MFU)", used, len(step),
            Bar(0.45, at_least=True), shapes=found["shapes"], witness=witness, seconds=found["seconds"],
        )
    ]  # fmt: skip


def forward_14b(settings: Settings) -> list[Row]:
    """Wan 14B at 32,760 tokens against the matmul ceiling."""
    found = part("forward_14b", settings)
    return [of_ceiling("Wan 14B forward, 32,760 tokens, bf16 / matmul ceiling", found, found["forward"], 0.75)]


# ------------------------------------------------------------------------------------------------------ numbers


def rate(found: Mapping[str, Any], seconds: Mapping[str, Any]) -> np.ndarray:
    """Operations a second of the matmul ceiling, one a round."""
    return found["ceiling_flops"] / np.array(seconds["ceiling"])


def of_ceiling(name: str, found: Mapping[str, Any], seconds: Mapping[str, Any], bar: float, **witness: Any) -> Row:
    """A forward's operations a second over the ceiling's, round by round."""
    forward, ceiling = np.array(seconds["forward"]), rate(found, seconds)
    flops = found["flops"] * found.get("best_batch", 1)
    told = {
        "tflops": float(np.median(flops / forward)) / 1e12,
        "ceiling_tflops": float(np.median(ceiling)) / 1e12,
        "flops_by_hand": flops,
        "device": found["device"],
    }
    control = interval(np.array(seconds["control"]) / forward) if "control" in seconds else None
    return rows.measured(
        name, interval(flops / forward / ceiling), len(forward), Bar(bar, at_least=True), control=control,
        shapes=found["shapes"], witness=told | witness, seconds=seconds,
    )  # fmt: skip


def lacking(found: Mapping[str, Any], kind: str) -> str:
    """Why a part has not measured something."""
    return found.get("failed", {}).get(kind) or found.get("stopped") or "its part did not measure it"


def reading(name: str, found: Mapping[str, Any], kind: str, bar: float, among: str = "reads") -> Row:
    """An inversion that reads over the same that does not."""
    seconds = found.get(among, {})
    if kind not in seconds:
        return rows.missing(name, lacking(found, kind), Bar(bar, at_least=False))
    times = Paired(*(np.array(seconds[key]) for key in ("none", kind, "control")))
    return rows.ratio(
        name, times, Bar(bar, at_least=False), shapes=found["shapes"], witness={"device": found["device"]}
    )


def per_clip(found: Mapping[str, Any]) -> np.ndarray:
    """Seconds of ours of one evaluation of one clip, block means captured."""
    return np.array(found["reads"]["means"]) / found["steps"] / found.get("best_batch", 1)


def fastest(by_way: Mapping[str, Any], mode: str | None = None) -> np.ndarray:
    """Seconds of one evaluation of one clip, by the peer's fastest batch (or recipe and batch, "RECIPE BATCH")."""
    ways = {way: np.array(s if mode is None else s[mode]) / int(way.split()[-1]) for way, s in by_way.items()}
    return min(ways.values(), key=lambda seconds: float(np.median(seconds)))


def control(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """The matmul ceiling of their process over that of ours."""
    return theirs["ceiling_tflops"] / ours["ceiling_tflops"]


def between(
    name: str, theirs: Mapping[str, Any], shape: str, ours: Mapping[str, Any], bar: float, mode: str | None = None
) -> Row:
    """Theirs at a shape, by their fastest way, over ours, from two processes."""
    for found, has in ((theirs, theirs.get(shape)), (ours, "means" in ours.get("reads", {}))):
        if not has:
            return rows.missing(name, lacking(found, "means"), Bar(bar, at_least=True))
    other, mine, same = fastest(theirs[shape], mode), per_clip(ours), control(theirs, ours)
    seconds = {"a_clip_ours": listed(mine), "a_clip_theirs": listed(other)}
    repeats = min(len(mine), len(other))
    witness = {"ours": ours["device"], "theirs": theirs["device"], "versions": theirs["versions"]}
    return rows.measured(
        name, unpaired(other, mine), repeats, Bar(bar, at_least=True), control=Interval(same, same, same),
        shapes=ours["shapes"], witness=witness, seconds=seconds,
    )  # fmt: skip
