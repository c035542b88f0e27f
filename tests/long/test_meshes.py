"""Inversion, sampling and captures on every kind of mesh: the numbers of one device, and their bits along `data`."""

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxdiff import Tap
from jaxdiff.data.video import write_video
from jaxdiff.flow import invert
from jaxdiff.store import ActivationStore
from jaxdiff.study.models import ASSETS
from tests.flow.pipelines import inputs, tiny_wan

ON_EIGHT = """
import dataclasses, math, sys
import jax, jax.numpy as jnp, numpy as np
from jaxdiff import Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert, sample
from jaxdiff.mesh import data_size, parse_mesh, shard_batch
from jaxdiff.reducers import Grid
from tests.flow.pipelines import inputs, spread_weights, tiny_cogvideox, tiny_ltx, tiny_wan

TAPS = (
    Tap("block_out"), Tap("block_out", "frame_mean"), Tap("mlp_out", Grid(2, 3)), Tap("block_out", "moments"),
    Tap("block_in", "project"), Tap("self_attention_map"), Tap("self_attention_out", "full", blocks=(-1,)),
    Tap("mlp_out", lambda x, grid: x[:, 1::3, 0], name="own"),
)
CLIPS = 8

def frames_apart(factors, key, sigma):
    return factors * jnp.where(jnp.eye(factors.shape[-1]), 1.0, 0.25)

def reversed_tokens(h, key, sigma):
    return h + 0.1 * h[:, ::-1]

EDITS = (Edit("self_attention_map", (0,), frames_apart), Edit("mlp_out", (-1,), reversed_tokens))

def run(pipeline, x, text, flag):
    mesh = parse_mesh(flag, jax.devices()[: math.prod(int(part.split("=")[1]) for part in flag.split(","))])
    pipeline, clips = spread_weights(pipeline, mesh), data_size(mesh)
    rows = []
    for i in range(0, CLIPS, clips):
        part = shard_batch((x[i : i + clips], text[i : i + clips]), mesh)
        there = invert(pipeline, *part, steps=2, taps=TAPS)
        captured = {name: np.moveaxis(np.asarray(value, np.float32), 2, 0) for name, value in there.captured.items()}
        rows.append({"latents": np.asarray(there.latents), **captured})
        if GUIDED:
            back = sample(pipeline, there.latents, part[1], steps=2, solver="euler", guidance_scale=2.0,
                          negative=0 * part[1], taps=TAPS[:1], edits=EDITS)
            guided = np.moveaxis(np.asarray(back.captured["block_out.mean"]), 2, 0)
            rows[-1] |= {"back": np.asarray(back.latents), "guided": guided}
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

def compare(what, got, want):
    assert got.keys() == want.keys() and len(want) == 9 + 2 * GUIDED
    for name, value in want.items():
        assert got[name].shape == value.shape, (what, name)
        error = np.abs(got[name] - value).max() / np.abs(value).max()
        # Whole tokens are bfloat16: the last bit of one may turn.
        assert error <= (2 ** -8 if name.endswith("full") else 1e-5), (what, name, error)

GUIDED = sys.argv[1] == "tiny_wan8"
pipeline = {"tiny_wan8": lambda: tiny_wan(2, 8, 12), "tiny_wan3": lambda: tiny_wan(2, 3, 8), "tiny_ltx": tiny_ltx,
            "tiny_cogvideox": tiny_cogvideox}[sys.argv[1]]()
text = inputs(CLIPS, text_dim=8)[1]
x = jax.random.normal(jax.random.key(3), (CLIPS, *map(int, sys.argv[2].split("x")), 4))
one = run(pipeline, x, text, "data=1")
for flag in sys.argv[3:]:
    got = run(pipeline, x, text, flag)
    if "," not in flag and flag.startswith("data"):
        for name, value in one.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)
    compare(flag, got, one)
    print(flag)
"""

CASES = {
    # Eight heads: Ulysses.
    "tiny_wan8": ("3x8x8", "data=8", "fsdp=4", "seq=2", "data=2,fsdp=2,seq=2"),
    # Three heads: a ring.
    "tiny_wan3": ("4x6x8", "seq=8"),
    "tiny_ltx": ("3x4x4", "data=2,seq=4"),
    "tiny_cogvideox": ("3x8x8", "fsdp=4,seq=2"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_gives_the_numbers_of_one_device(name, run_with_devices):
    assert run_with_devices(8, ON_EIGHT, name, *CASES[name]).split() == list(CASES[name][1:])


PROCESS = """
import sys
import jax, numpy as np
port, rank, path = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
from jaxdiff import Tap
from jaxdiff.flow import invert
from jaxdiff.mesh import data_size, parse_mesh, shard_batch
from tests.flow.pipelines import inputs, spread_weights, tiny_wan

mesh = parse_mesh("fsdp=2,seq=4")  # weights are split over the processes, tokens within them
split = spread_weights(jax.tree.map(np.asarray, tiny_wan(2, 8, 4)), mesh)
x, text = shard_batch(jax.tree.map(np.asarray, inputs(data_size(mesh), text_dim=8)), mesh)
run = invert(split, x, text, steps=2, taps=(Tap("block_out"), Tap("self_attention_map")))
own = {"latents": run.latents, **run.captured}
for name, value in own.items():
    (part,) = (shard for shard in value.addressable_shards if shard.replica_id == 0)
    np.save(f"{path}/{name}.{rank}.npy", part.data)
"""


def test_two_processes_on_one_mesh_hold_their_own_clips_and_the_numbers_of_one(run_with_devices, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda rank: run_with_devices(4, PROCESS, port, rank, tmp_path), range(2)))
    one = invert(tiny_wan(2, 8, 4), *inputs(2, text_dim=8), steps=2, taps=(Tap("block_out"), Tap("self_attention_map")))
    for name, value in {"latents": one.latents[None, None], **one.captured}.items():
        for rank in range(2):
            want, got = (
                np.asarray(value[:, :, rank]),
                np.load(tmp_path / f"{name}.{rank}.npy").reshape(value[:, :, rank].shape),
            )
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), (name, rank)


INVERT = """
import sys
from experiments._main import run_binary
from experiments.invert import Config, run
sys.argv = ["invert", *sys.argv[1:]]
try:
    run_binary(run, Config)
except SystemExit as stop:
    print("exit", stop.code)
"""


def test_a_binary_on_pretended_devices_streams_the_same_store(tmp_path, run_python):
    scenes = np.random.default_rng(0).integers(0, 256, (3, 17, 4, 4, 3), np.uint8)
    for i, video in enumerate(scenes):
        write_video(tmp_path / "videos" / f"{i}.mp4", video.repeat(8, 1).repeat(8, 2))
    flags = (
        f"--checkpoint={ASSETS / 'nano'}", f"--videos={tmp_path / 'videos'}", "--frames=17", "--size=32", "--steps=4",
        "--capture_at=0,2,3", "--taps=block_out.mean,self_attention_map.frame_map", "--fidelity_clips=0",
        "--text_embeddings=zeros", "--stream",
    )  # fmt: skip
    one, many = tmp_path / "one", tmp_path / "many"
    for folder, devices, mesh in ((one, 1, "auto"), (many, 8, "data=2,fsdp=2,seq=2")):
        out = run_python(INVERT, *flags, f"--workdir={folder}", f"--cpu_devices={devices}", f"--mesh={mesh}")
        assert out.endswith("exit 0\n"), out
    stores = [ActivationStore.open(folder / "store") for folder in (one, many)]
    assert stores[0].config_hash == stores[1].config_hash and stores[1].finished() == {0, 1, 2}
    for name in stores[0].specs:
        want, got = (store.read(name) for store in stores)
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
